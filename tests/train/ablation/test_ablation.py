"""Rows × seeds: what is trained, what is skipped, what is printed, and how it goes on."""

import dataclasses
import itertools
import json
import signal
import statistics

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.errors import ConfigError, DataError
from phicalc.train.ablation import study
from phicalc.train.ablation.config import folder_name, load_ablation, merged
from phicalc.train.ablation.measure import correlations
from phicalc.train.ablation.study import results_of, run_ablation
from phicalc.train.ablation.table import cells, statistic, write_tables
from phicalc.train.objective import Objective
from phicalc.train.trainer import train


@pytest.fixture
def asked(content, tmp_path):
    """Two rows of two seeds, a few steps each."""
    base = {key: value for key, value in content.items() if key not in ("output", "epochs")}
    base |= {"max_steps": 4, "checkpoint_minutes": 10.0}
    base["model"] = {**base["model"], "heads": []}
    return {
        "output": str(tmp_path / "ablation"),
        "seeds": [0, 3],
        "base": base,
        "rows": {"no head": {}, "Φ": {"model": {"heads": [{"kind": "phi"}]}}},
    }


@pytest.fixture
def write_yaml(tmp_path):
    def write_it(content):
        path = tmp_path / "ablation.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return write_it


def test_rows_differ_from_the_base_in_what_they_say(asked, write_yaml):
    asked["rows"]["SchNet"] = {
        "model": {"backbone": {"kind": "schnet", "features": 8, "filters": 8, "layers": 1}},
        "loss": {"weights": {"charges": 2.0}},
    }
    config = load_ablation(write_yaml(asked))
    plain, other = config.run("no head", 3), config.run("SchNet", 3)
    assert plain.seed == 3 and plain.output.parts[-2:] == ("no-head", "seed-3")
    assert config.run("Φ", 0).model.heads[0].kind == "phi" and plain.model.heads == []
    assert config.run("Φ", 0).model.backbone == plain.model.backbone
    assert other.model.backbone.kind == "schnet"  # replaced whole: no radial of PaiNN's left
    assert other.model.backbone.radial != plain.model.backbone.radial
    assert other.model.cutoff == plain.model.cutoff == 4.0
    assert other.loss.weights.charges == 2.0
    assert other.loss.weights.energy == plain.loss.weights.energy == 10.0


def test_merging_leaves_both_sides_as_they_were():
    base, change = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]}
    assert merged(base, change) == {"a": {"b": 1, "c": 3}, "d": [2]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]} and change == {"a": {"c": 3}, "d": [2]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": [1, 1]}, "seeds: expected seeds that differ"),
        ({"rows": {"a+b": {}, "a plus b": {}}}, "rows: expected names that give folders"),
        ({"rows": {"bad": {"max_steps": 0}}}, "row 'bad': max_steps"),
        ({"rows": {"bad": {"seed": 1}}}, "row 'bad': expected no seed"),
        ({"rows": {"bad": {"speed": 1}}}, "row 'bad': speed: unknown key"),
        ({"rows": {}}, "yaml: rows: expected at least 1, got 0$"),
        ({"seeds": []}, "yaml: seeds: expected at least 1, got 0$"),
        ({"speed": 1}, "yaml: speed: unknown key$"),
        ({"seeds": "many"}, "yaml: seeds: expected a list, got 'many'$"),
        ({"rows": {"bad": 1}}, "yaml: rows.bad: expected a mapping of keys to values, got 1$"),
    ],
)
def test_mistakes_are_named_before_anything_runs(asked, write_yaml, change, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        load_ablation(write_yaml(asked | change))


def test_folders_are_plain_names():
    assert folder_name("Φ + qeq, supervised") == "phi-plus-qeq-supervised"


@pytest.fixture
def interrupt(monkeypatch):
    """Press Ctrl-C in the step of that number."""

    def interrupt_at(number):
        steps = itertools.count(1)
        plain = Objective.gradients

        def gradients(self, *arguments):
            if next(steps) == number:
                signal.raise_signal(signal.SIGINT)
            return plain(self, *arguments)

        monkeypatch.setattr(Objective, "gradients", gradients)

    return interrupt_at


def test_a_stopped_ablation_goes_on_where_it_was(asked, write_yaml, monkeypatch, interrupt):
    """The second run is stopped in the middle: only it and what follows are run again."""
    config = load_ablation(write_yaml(asked))
    begun: list[tuple[str, bool]] = []

    def noting_train(settings, resume=False, **options):
        begun.append((settings.output.parts[-1], resume))
        if len(begun) == 2:
            interrupt(2)
        return train(settings, resume, **options)

    monkeypatch.setattr(study, "train", noting_train)
    lines: list[str] = []
    assert run_ablation(config, ["no head"], say=lines.append) == "SIGINT"
    assert "stopped at step 2" in lines[-1] and len(results_of(config)) == 1
    assert run_ablation(config, say=lines.append) is None
    assert begun == [
        ("seed-0", False), ("seed-3", False), ("seed-3", True), ("seed-0", False), ("seed-3", False)
    ]  # fmt: skip
    results = results_of(config)
    assert [(run.row, run.seed, run.steps) for run in results] == [
        ("no head", 0, 4), ("no head", 3, 4), ("Φ", 0, 4), ("Φ", 3, 4)
    ]  # fmt: skip
    assert run_ablation(config) is None and len(begun) == 5  # nothing is left to do


def test_the_numbers_are_those_of_the_best_weights(asked, write_yaml):
    """An independent evaluation of best.pt on the validation file finds the same errors."""
    from phicalc.train.evaluation import evaluate_file

    config = load_ablation(write_yaml(asked | {"seeds": [0]}))
    assert run_ablation(config, ["Φ"]) is None
    run = results_of(config)[0]
    found = evaluate_file(
        config.folder("Φ", 0) / "best.pt", config.run("Φ", 0).data.valid, device="cpu"
    )
    assert run.energy_rmse == pytest.approx(1e3 * found.errors["energy_per_atom"].rmse)
    assert run.forces_rmse == pytest.approx(1e3 * found.errors["forces"].rmse)
    assert run.seconds_per_training_step > 0 and run.milliseconds_per_evaluation > 0
    assert run.charge_correlation is None  # this data has no charges


def test_a_result_outlives_a_setting_that_came_later(asked, write_yaml):
    config = load_ablation(write_yaml(asked | {"seeds": [0]}))
    assert run_ablation(config, ["no head"]) is None
    path = config.folder("no head", 0) / "result.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["config"]["data"]["partial"], content["config"]["loss"]["auxiliary"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert len(results_of(config)) == 1


def test_a_result_of_other_settings_is_not_passed_off(asked, write_yaml):
    config = load_ablation(write_yaml(asked | {"seeds": [0]}))
    assert run_ablation(config, ["no head"]) is None
    asked["base"]["batch_size"] = 2
    changed = load_ablation(write_yaml(asked | {"seeds": [0]}))
    with pytest.raises(ConfigError, match=r"row 'no head', seed 0: .* made with other settings"):
        run_ablation(changed)
    reasons: list[str] = []
    assert results_of(changed, reasons.append) == []
    assert len(reasons) == 1 and "other settings" in reasons[0]
    # the other row is not held up by it
    done = CliRunner().invoke(app, ["ablate", str(write_yaml(asked)), "--rows", "Φ"])
    assert done.exit_code == 0 and "left out: row 'no head', seed 0" in done.output


def test_a_run_does_not_go_on_with_other_settings(asked, write_yaml, interrupt):
    """Half with one learning rate, half with another would enter the table as the second."""
    interrupt(2)
    assert run_ablation(load_ablation(write_yaml(asked)), ["no head"]) == "SIGINT"
    asked["base"]["batch_size"] = 2
    with pytest.raises(ConfigError, match=r"seed 0: .*last.pt was made with other settings"):
        run_ablation(load_ablation(write_yaml(asked)))


def test_a_result_of_other_data_is_not_passed_off(asked, write_yaml, tmp_path):
    """Same name, other structures: of a finished run, and of one that is to go on."""
    config = load_ablation(write_yaml(asked | {"seeds": [0]}))
    path = config.run("no head", 0).data.train
    assert run_ablation(config, ["no head"]) is None
    assert len(results_of(config)) == 1
    frames = read(path, ":", format="extxyz")
    write(path, frames[::-1], format="extxyz")
    with pytest.raises(ConfigError, match=r"result.json was made with other data"):
        run_ablation(config)
    (config.folder("no head", 0) / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"last.pt was made with other data"):
        run_ablation(config)


def test_absent_data_is_noticed_before_anything_runs(asked, write_yaml):
    asked["rows"]["Φ"]["data"] = {"train": "nowhere.xyz", "valid": "nowhere.xyz"}
    config = load_ablation(write_yaml(asked))
    with pytest.raises(DataError, match=r"row 'Φ', seed 0: expected data in .*nowhere.xyz"):
        run_ablation(config)
    assert not config.folder("no head", 0).exists()


def test_the_table_has_means_and_sample_deviations(asked, write_yaml):
    config = load_ablation(write_yaml(asked))
    assert run_ablation(config, ["no head"]) is None
    results = results_of(config)
    headings, line = cells(config, results)
    values = [run.forces_rmse for run in results]
    column = headings.index("F RMSE meV/Å")
    mean, spread = (float(part) for part in line[column].split(" ± "))
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-2)
    assert spread == pytest.approx(np.std(values, ddof=1), rel=0.1, abs=1.0)
    assert line[0] == "no head" and line[-1] == "2"
    assert not any("charges" in name for name in headings)
    markdown, saved = write_tables(config, results)
    assert "(2 of 4 runs done)" in markdown.read_text(encoding="utf-8")
    assert len(json.loads(saved.read_text(encoding="utf-8"))["runs"]) == 2
    assert statistic([2.0]).shown(2) == "2.0"


def test_charges_correlate_within_elements_only_if_they_do(clusters):
    """Charges that are right by element and noise besides: the second number says so."""
    frames = [molecule("H2O"), molecule("NH3"), molecule("CH3OH")]
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    noise = np.random.default_rng(0).normal(0, 0.05, (2, len(numbers)))
    by_element = np.where(numbers == 1, 0.3, -0.6)
    overall, within = correlations(by_element + noise[0], by_element + noise[1], frames)
    assert overall is not None and overall > 0.95
    assert within is not None and abs(within) < 0.7
    assert correlations(noise[0], np.zeros(len(numbers)), frames) == (None, None)


def test_charges_are_measured_where_the_data_has_them(asked, write_yaml, tmp_path):
    """Trained on or not, a charge head's charges are compared with the labels."""
    frames = []
    for seed in range(4):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        charges = np.array([-0.4, 0.2, 0.2]) + 0.01 * seed * np.array([0, 1, -1])
        atoms.calc = SinglePointCalculator(
            atoms, energy=-10.0 + 0.1 * seed, forces=0.1 * np.ones((3, 3)), charges=charges
        )
        frames.append(atoms)
    path = tmp_path / "water.xyz"
    write(path, frames, format="extxyz")
    heads = {"model": {"heads": [{"kind": "local"}]}}
    asked["base"]["data"] = {"train": str(path), "valid": str(path)}
    asked["rows"] = {"local": heads, "trained": {**heads, "loss": {"weights": {"charges": 1.0}}}}
    config = load_ablation(write_yaml(asked | {"seeds": [0]}))
    assert run_ablation(config) is None
    free, trained = results_of(config)
    assert not free.supervised and free.charge_correlation is not None
    assert trained.supervised and 0 < trained.charge_mae < 500
    headings, *lines = cells(config, [free, trained])
    correlation, error = headings.index("charges r"), headings.index("charges MAE me")
    assert lines[0][error] == "–" and lines[1][correlation] == "–"
    assert lines[0][correlation] != "–" and lines[1][error] != "–"


def test_the_command(asked, write_yaml, monkeypatch):
    path = str(write_yaml(asked | {"seeds": [0]}))
    run = CliRunner().invoke
    assert "no run is done yet" in run(app, ["ablate", path, "--table"]).output
    unknown = run(app, ["ablate", path, "--rows", "none"])
    assert unknown.exit_code == 2
    first = run(app, ["ablate", path, "--rows", "no head"])
    assert first.exit_code == 0 and "[1/1] no head, seed 0: training" in first.output
    assert "(1 of 2 runs done)" in first.output and "table.md" in first.output
    assert run(app, ["ablate", path, "--rows", "no head", "--rows", "Φ", "--table"]).exit_code == 0
    monkeypatch.setattr(
        study, "train", lambda *a, **o: dataclasses.replace(train(*a, **o), stopped_by="SIGINT")
    )
    stopped = run(app, ["ablate", path])
    assert stopped.exit_code == 130 and "stopped at step 4" in stopped.output
    assert "(1 of 2 runs done)" in stopped.output  # the table so far
    monkeypatch.undo()
    everything = run(app, ["ablate", path])
    assert "2 runs, 1 done before" in everything.output
