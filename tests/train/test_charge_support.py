"""Which total charges a model answers for follows from its training data."""

import io

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from typer.testing import CliRunner

from phicalc import PhiCalculator, fields, predict
from phicalc.checks.support import ChargeRange
from phicalc.cli import app
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import UnsupportedError
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.config import ModelConfig
from phicalc.model.potential import Potential
from phicalc.serving.export import export
from phicalc.serving.metadata import read_metadata
from phicalc.train.config import parse_config
from phicalc.train.evaluation import evaluate_structures
from phicalc.train.trainer import train


def labelled(name: str, charge: int, seed: int):
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)
    atoms.rattle(0.05, seed=seed)
    atoms.info["charge"] = charge
    forces = np.zeros((len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0 + 10.0 * charge, forces=forces)
    return atoms


IONS = [("H2O", 0), ("OH", -1), ("H2O", 1), ("H2O", 0)]
CONFIGS = {"neutral": [("H2O", 0)] * 4, "ions": IONS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By name: what a run said, its checkpoint and its model file."""
    found = {}
    for name, structures in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        frames = [labelled(*one, seed) for seed, one in enumerate(structures)]
        ase.io.write(folder / "data.xyz", frames, format="extxyz")
        config = parse_config(content(folder))
        console = Console(record=True, width=400, file=io.StringIO())
        best = train(config, console=console).best
        export(best, folder / "model.pt")
        found[name] = (console.export_text(), best, folder / "model.pt")
    return found


def content(folder) -> dict:
    return {
        "output": str(folder / "run"),
        "data": {"train": str(folder / "data.xyz"), "valid": str(folder / "data.xyz")},
        "model": {"backbone": {"kind": "painn", "features": 8, "layers": 1}, "heads": []},
        "epochs": 1,
        "threads": 1,
        "tensorboard": False,
    }


def energy(model, name: str, charge: float) -> float:
    atoms = labelled(name, 0, 1)
    del atoms.info["charge"]
    atoms.calc = PhiCalculator(model, charge=charge)
    return atoms.get_potential_energy()


@pytest.mark.parametrize("charge", [1, -1, 3])
def test_a_model_of_neutral_structures_refuses_ions(trained, charge):
    """By every door: the calculator, predict, and eval of the file and of the checkpoint."""
    said, best, model = trained["neutral"]
    assert "total charges in e (structures): 0 (4); the exported model will refuse others" in said
    assert np.isfinite(energy(model, "H2O", 0))
    sentence = rf"expected a total charge as in .* training data, 0, got {charge} e on 3 atoms"
    with pytest.raises(UnsupportedError, match=sentence):
        energy(model, "H2O", charge)
    ion = labelled("H2O", charge, 1)
    with pytest.raises(UnsupportedError, match=f"frame 0: {sentence}"):
        predict(model, [ion])
    for source in (model, best):
        with pytest.raises(UnsupportedError, match=f"frame 0: {sentence}"):
            evaluate_structures(source, [ion])


def test_a_model_of_ions_answers_for_as_much_charge_per_atom(trained):
    """−1/2 (hydroxide) to 1/3 e per atom (the water cation), on any number of atoms."""
    said, _, model = trained["ions"]
    assert "-1 (1), 0 (2), 1 (1)" in said
    assert read_metadata(model).charge_range == ChargeRange(-0.5, pytest.approx(1 / 3), True)
    for charge in (-1.5, -1, 0, 1):
        assert np.isfinite(energy(model, "H2O", charge))
    eight = labelled("H2O", 1, 1)
    for place in range(1, 8):
        other = labelled("H2O", 1, 1)
        other.positions[:, 0] += 30.0 * place
        eight += other
    eight.info["charge"] = 8
    assert predict(model, [eight])
    for charge, name in ((2, "H2O"), (-2, "OH"), (1, "OH")):
        with pytest.raises(UnsupportedError, match=r"-0.5 to 0.3333 e per atom, got"):
            energy(model, name, charge)


def test_info_says_so(trained, tmp_path):
    for name, expected in (
        ("neutral", " 0, as in training"),
        ("ions", "-0.5 to 0.3333 e per atom"),
    ):
        shown = CliRunner().invoke(app, ["info", str(trained[name][2])]).output
        line = next(line for line in shown.splitlines() if "total charge" in line)
        assert expected in line
    stored = torch.load(trained["neutral"][1], weights_only=True)
    del stored["extra"]["provenance"]["charges"], stored["config"]["charge_embedding"]
    torch.save(stored, tmp_path / "old.pt")
    export(tmp_path / "old.pt", tmp_path / "model.pt")
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "model.pt")]).output
    assert "any; those of training are not recorded" in shown
    assert np.isfinite(energy(tmp_path / "model.pt", "H2O", 3))  # as such files always did


def old_run(trained, tmp_path):
    """The run on ions as it was before atoms were told Q/N: they were told Q."""
    stored = torch.load(trained["ions"][1].with_name("last.pt"), weights_only=True)
    del stored["config"]["charge_embedding"], stored["state_dict"]["charge_scale"]
    provenance = stored["extra"]["provenance"]
    del provenance["charges"], provenance["config"]["model"]["charge_embedding"]
    del provenance["reference"], provenance["config"]["data"]["reference_energies"]
    for origin in provenance["data"].values():
        del origin["labels"], origin["periodicity"]
    (tmp_path / "run").mkdir()
    torch.save(stored, tmp_path / "run" / "last.pt")
    return tmp_path / "run" / "last.pt"


def test_an_old_checkpoint_is_told_the_whole_charge_and_goes_on_so(trained, tmp_path):
    path = old_run(trained, tmp_path)
    potential = load_checkpoint(path).potential
    assert potential.config.charge_embedding == "total"
    ion = labelled("H2O", 1, 1)
    # Q is what Q/N is in units of 1/N
    config = potential.config.model_copy(update={"charge_embedding": "per-atom"})
    told = Potential(config, potential.elements)
    told.load_state_dict(potential.state_dict() | {"charge_scale": torch.tensor(1 / 3)})
    graph = graph_dict(collate([to_graph(ion, 5.0)]))
    energies = [model.eval()(graph)[fields.ENERGY].detach() for model in (potential, told)]
    torch.testing.assert_close(*energies)
    ion.info["charge"] = 0
    neutral = potential(graph_dict(collate([to_graph(ion, 5.0)])))[fields.ENERGY].detach()
    assert abs(float(neutral - energies[0])) > 1e-4
    folder = trained["ions"][1].parent.parent
    old = content(folder) | {"output": str(tmp_path / "run"), "epochs": 2}
    result = train(parse_config(old), resume=True, console=Console(quiet=True))
    assert result.step == 2
    assert load_checkpoint(result.last).config.charge_embedding == "total"
    assert read_metadata_of(result.last, tmp_path).charge_range == ChargeRange(-1.0, 1.0, False)


def read_metadata_of(checkpoint, folder):
    return export(checkpoint, folder / "exported.pt")


def test_the_whole_charge_is_not_size_consistent_and_its_part_is():
    """What the default is for: two ions far apart against one, with the same weights."""

    def excess(embedding: str) -> float:
        torch.manual_seed(0)
        config = ModelConfig(heads=[], charge_embedding=embedding, dtype="float64")
        potential = Potential(config, [1, 8]).eval()
        ion = labelled("H2O", 1, 1)
        far = ion.copy()
        far.positions += 50.0
        both = ion + far
        both.info["charge"] = 2
        energies = [
            float(potential(graph_dict(collate([to_graph(a, 5.0)])))[fields.ENERGY].detach())
            for a in (ion, both)
        ]
        return energies[1] - 2 * energies[0]

    assert abs(excess("per-atom")) < 1e-9
    assert abs(excess("total")) > 1e-4


def test_fine_tuning_an_old_model_of_ions_keeps_how_charges_are_told(trained, tmp_path):
    path = old_run(trained, tmp_path)
    folder = trained["ions"][1].parent.parent
    config = content(folder) | {"output": str(tmp_path / "tuned"), "initial": str(path)}
    best = train(parse_config(config), console=Console(quiet=True)).best
    assert load_checkpoint(best).config.charge_embedding == "total"
    asked = config["model"] | {"charge_embedding": "per-atom"}
    console = Console(record=True, width=400, file=io.StringIO())
    result = train(parse_config(config | {"model": asked}), overwrite=True, console=console)
    assert load_checkpoint(result.best).config.charge_embedding == "per-atom"
    assert "what atoms are told of the total charge starts at random" in console.export_text()


def test_validation_charges_beyond_training_are_said(tmp_path):
    frames = [labelled("H2O", 0, seed) for seed in range(3)]
    ase.io.write(tmp_path / "data.xyz", frames, format="extxyz")
    ase.io.write(tmp_path / "valid.xyz", [labelled("H2O", 1, 5)], format="extxyz")
    config = content(tmp_path)
    config["data"]["valid"] = str(tmp_path / "valid.xyz")
    console = Console(record=True, width=400, file=io.StringIO())
    train(parse_config(config), console=console)
    assert "1 validation structures have a total charge beyond all" in console.export_text()
