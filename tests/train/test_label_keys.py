"""Training and evaluation from columns of other names."""

import io
import json

import ase.io
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.errors import ConfigError, DataError
from phicalc.serving.export import export
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.evaluation import evaluate_file
from phicalc.train.trainer import train
from tests.train.conftest import argon

KEYS = {"energy": "REF_energy", "forces": "REF_forces", "virial": "REF_virials"}


@pytest.fixture
def renamed(tmp_path):
    """Crystals as MACE's users have them; under our names stands another level of theory."""
    frames = []
    for seed in range(6):
        atoms = argon(seed)
        results = dict(atoms.calc.results)
        stress = atoms.get_stress(voigt=False)
        atoms.info["REF_energy"] = results["energy"]
        atoms.arrays["REF_forces"] = results["forces"]
        atoms.info["REF_virials"] = -stress * atoms.get_volume()
        atoms.calc.results |= {"energy": 5.0, "forces": np.ones((4, 3)), "stress": np.ones(6)}
        frames.append(atoms)
    ase.io.write(tmp_path / "renamed.xyz", frames, format="extxyz")
    return tmp_path / "renamed.xyz"


@pytest.fixture
def config(content, renamed):
    content["data"] = {"train": str(renamed), "valid": str(renamed), "keys": KEYS}
    content["loss"]["weights"] = {"energy": 1, "forces": 1, "stress": 100}
    return parse_config(content)


def test_other_names_give_the_same_data(config, content, argons):
    plain = content | {"data": {"train": str(argons), "valid": str(argons)}}
    ours, theirs = (load_training_data(c).train for c in (parse_config(plain), config))
    for one, other in zip(ours, theirs, strict=True):
        for name in ("energy", "forces", "stress"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-7)


def test_a_run_notes_them_and_goes_on_with_the_same(config, tmp_path, quiet):
    best = train(config, console=quiet).best
    assert export(best, tmp_path / "model.pt").provenance.data["train"].keys == KEYS
    longer = config.model_copy(update={"epochs": 4})
    assert train(longer, resume=True, console=quiet).step == 8
    other = {"keys": config.data.keys.model_copy(update={"energy": None})}
    changed = longer.model_copy(update={"data": config.data.model_copy(update=other)})
    with pytest.raises(ConfigError, match="is not that of"):
        train(changed, resume=True, console=quiet)


def test_eval_takes_them_too(config, renamed, tmp_path, quiet):
    best = train(config, console=quiet).best
    plain = evaluate_file(best, renamed).errors["energy"].rmse
    options = [part for name, key in KEYS.items() for part in ("--key", f"{name}={key}")]
    folder = tmp_path / "report"
    ran = CliRunner().invoke(app, ["eval", str(best), str(renamed), "-o", str(folder), *options])
    assert ran.exit_code == 0, ran.output
    content = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    assert content["keys"] == KEYS
    assert content["errors"]["energy"]["rmse"] < 0.5 * plain
    assert content["labelled_structures"] == {"energy": 6, "forces": 6, "stress": 6}
    ran = CliRunner().invoke(app, ["eval", str(best), str(renamed), "--key", "energy"])
    assert ran.exit_code == 2 and "expected NAME=COLUMN" in ran.output


def test_a_column_that_is_not_there_is_named_with_the_file(content, renamed):
    content["data"] = {"train": str(renamed), "valid": str(renamed), "keys": {"energy": "E"}}
    with pytest.raises(DataError, match=r"renamed\.xyz: keys: expected a column E to read energy"):
        load_training_data(parse_config(content))


def test_wrong_keys_are_named(content):
    content["data"]["keys"] = {"mass": "m"}
    with pytest.raises(ConfigError, match=r"data\.keys\.mass: unknown key"):
        parse_config(content)
    content["data"]["keys"] = {"stress": "s", "virial": "v"}
    with pytest.raises(ConfigError, match=r"data\.keys: expected stress or virial, got both"):
        parse_config(content)


def test_total_charges_under_another_name(content, tmp_path):
    frames = ase.io.read(content["data"]["train"], ":")
    for atoms in frames[:2]:
        atoms.info["Q"] = 1
    ase.io.write(tmp_path / "ions.xyz", frames, format="extxyz")
    content["data"] |= {"train": str(tmp_path / "ions.xyz"), "keys": {"total_charge": "Q"}}
    console = Console(record=True, width=300, file=io.StringIO())
    train(parse_config(content | {"epochs": 1}), console=console)
    assert "total charges in e (structures): 0 (5), 1 (2)" in console.export_text()
