import copy

import pytest
import yaml

from phicalc.errors import ConfigError
from phicalc.train.config import load_config, parse_config


def changed(content, path, value):
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    part = content
    for parent in parents:
        part = part[int(parent)] if isinstance(part, list) else part.setdefault(parent, {})
    part[last] = value
    return content


def test_a_file_is_read_as_it_is_written(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    config = load_config(path)
    assert config.model.backbone.features == 8
    assert config.schedule.warmup_steps == 2
    assert config.loss.properties == ("energy", "forces")
    assert config.total_steps(steps_per_epoch=5) == 15


def test_an_exponent_without_a_point_is_a_number(content, tmp_path):
    path = tmp_path / "config.yaml"  # YAML 1.1 reads 5e-4 as a string
    path.write_text(yaml.safe_dump(content) + "optimizer: {learning_rate: 5e-4}\n")
    assert load_config(path).optimizer.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("given", "kind", "rate"),
    [
        ({}, "adamw", 1e-3),
        ({"learning_rate": 5e-4}, "adamw", 5e-4),
        ("soap", "soap", 3e-3),
        ({"kind": "soap", "betas": [0.9, 0.95]}, "soap", 3e-3),
    ],
)
def test_an_optimizer_is_a_kind_or_a_mapping(content, given, kind, rate):
    optimizer = parse_config(content | {"optimizer": given}).optimizer
    assert (optimizer.kind, optimizer.learning_rate) == (kind, rate)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", 1, r"^config: learning_rate: unknown key$"),
        ("model.backbone.featurs", 1, r"model\.backbone\.featurs: unknown key"),
        ("model.backbone.features", "many", r"model\.backbone\.features: expected .*got 'many'"),
        ("model.heads.0.sigma", -1, r"model\.heads\.0\.sigma: expected greater than 0, got -1"),
        ("model.backbone.kind", "mace", r"model\.backbone\.kind: expected one of .*got 'mace'"),
        ("schedule.warmup_steps", -2, r"schedule\.warmup_steps: expected greater than or equal"),
        ("schedule", {}, r"schedule\.kind: missing"),
        ("optimizer.learning_rate", float("nan"), r"optimizer\.learning_rate: expected .*finite"),
        ("optimizer.betas", [0.9, 1.0], r"optimizer\.betas\.1: expected less than 1, got 1\.0"),
        ("optimizer", "adam", r"optimizer\.kind: expected one of 'adamw', 'soap', got 'adam'"),
        ("optimizer.basis_steps", 5, r"optimizer\.basis_steps: unknown key"),
        (
            "optimizer",
            {"kind": "soap", "betas": [2, 0]},
            r"optimizer\.betas\.0: expected less than",
        ),
        ("max_steps", 5, r"top level: expected exactly one of epochs and max_steps"),
        ("data.valid_fraction", 0.1, r"data: expected exactly one of valid and valid_fraction"),
        ("loss.weights", {"energy": 0, "forces": 0}, r"loss\.weights: expected at least one"),
        ("loss.kind", "l1", r"loss\.kind: expected 'huber' or 'mse', got 'l1'"),
        ("device", "tpu", r"device: expected .*got 'tpu'"),
        ("data", {"valid": "x"}, r"data\.train: missing"),
    ],
)
def test_an_error_names_the_key_in_one_line(content, key, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(changed(content, key, value))
    assert "\n" not in str(caught.value)


def test_several_errors_are_counted(content):
    wrong = changed(changed(content, "batch_size", 0), "seed", -1)
    with pytest.raises(ConfigError, match=r"and 1 more"):
        parse_config(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of keys to values, got an empty file"),
        ("- 1\n", "expected a mapping of keys to values, got list"),
        ("a: [1\n", "not a YAML file"),
        ("model: {}\nseed: 0\nmodel: {cutoff: 4}\n", "the key 'model' stands twice .*line 3"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
