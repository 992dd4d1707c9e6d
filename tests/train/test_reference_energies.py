"""Where reference energies come from, and what is said where the data leaves them open."""

import io

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.errors import ConfigError, DataError
from phicalc.model.checkpoint import load_checkpoint
from phicalc.serving.export import export
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.initial import new_potential
from phicalc.train.trainer import train

ATOMS = {"H": -13.6, "O": -432.1}  # eV
BINDING = -9.5  # of water


def water(seed: int) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    energy = 2 * ATOMS["H"] + ATOMS["O"] + BINDING + 0.01 * seed
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((3, 3)))
    return atoms


def isolated(symbol: str) -> Atoms:
    """As files for MACE and GAP have it: in a box."""
    atoms = Atoms(symbol, cell=[20.0] * 3, pbc=True, info={"config_type": "IsolatedAtom"})
    atoms.calc = SinglePointCalculator(atoms, energy=ATOMS[symbol], forces=np.zeros((1, 3)))
    return atoms


@pytest.fixture
def config(tmp_path):
    """From frames and what stands under reference_energies to a configuration."""

    def made(frames, given=None):
        ase.io.write(tmp_path / "train.xyz", frames, format="extxyz")
        ase.io.write(tmp_path / "valid.xyz", [water(9)], format="extxyz")
        data = {"train": str(tmp_path / "train.xyz"), "valid": str(tmp_path / "valid.xyz")}
        return parse_config(
            {
                "output": str(tmp_path / "run"),
                "data": data | ({} if given is None else {"reference_energies": given}),
                "model": {"backbone": {"kind": "painn", "features": 8, "layers": 1}},
                "epochs": 1,
                "threads": 1,
                "tensorboard": False,
            }
        )

    return made


def start(config):
    """Reference energies by symbol of a potential about to be trained, and its error on water."""
    data = load_training_data(config)
    potential = new_potential(config.model, data)
    found = dict(zip(("H", "O"), potential.reference_energies.tolist(), strict=True))
    from phicalc import fields
    from phicalc.data.graph import collate, graph_dict

    graph = graph_dict(collate([data.valid[0]]))
    return found, float((potential(graph)[fields.ENERGY] - graph[fields.ENERGY]).detach()) / 3


WATERS = [water(seed) for seed in range(4)]
PAIR = [isolated("H"), isolated("O")]


def test_isolated_atoms_among_the_structures_are_taken(config):
    """They stay what they are: binding goes into the readout's constant, not into E0."""
    found, off = start(config([*WATERS, *PAIR]))
    assert found == pytest.approx(ATOMS, abs=1e-9)
    assert abs(off) < 0.7 * abs(BINDING) / 3


def test_isolated_atoms_of_some_elements_alone_are_not(config):
    found, _ = start(config([*WATERS, isolated("H")]))
    assert found["H"] != pytest.approx(ATOMS["H"], abs=1e-3)
    with pytest.raises(DataError, match=r"reference_energies: isolated: .* got none for O"):
        load_training_data(config([*WATERS, isolated("H")], "isolated"))


def test_least_squares_can_be_asked_for(config):
    data = load_training_data(config([*WATERS, *PAIR], "fit"))
    assert data.reference.source == "least squares"
    assert data.reference.fit.energies[1] != pytest.approx(ATOMS["H"], abs=1e-3)


def test_energies_can_be_given(config):
    """All of them, or some, and the others follow."""
    found, off = start(config(WATERS, ATOMS))
    assert found == ATOMS
    assert abs(off) < 0.1
    found, _ = start(config(WATERS, {"H": -13.6, "Au": 1.0}))
    assert found["H"] == -13.6
    assert found["O"] == pytest.approx(ATOMS["O"] + BINDING, abs=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"Xx": 1.0}, r"^config: data\.reference_energies: expected chemical symbols, got 'Xx'"),
        ({"H": "low"}, r"expected the energy of H in eV, got 'low'"),
        ({"H": float("nan")}, r"expected the energy of H in eV, got nan"),
        ("isolate", r"expected fit, isolated, or energies in eV by chemical symbol, got 'isolate'"),
    ],
)
def test_what_is_no_energy_is_named(config, wrong, message):
    with pytest.raises(ConfigError, match=message):
        config(WATERS, wrong)


def test_open_reference_energies_are_said(config, tmp_path):
    """Water alone fixes one sum of two energies: in the log, in the file, in info."""
    console = Console(record=True, width=400, file=io.StringIO())
    best = train(config(WATERS), console=console).best
    said = "compositions leave the reference energies of H, O open (of 2 combinations 1 fixed)"
    assert said in console.export_text()
    reference = export(best, tmp_path / "model.pt").provenance.reference
    assert reference.open == ["H", "O"]
    stored = load_checkpoint(best).potential.reference_energies.tolist()
    assert list(reference.energies.values()) == stored
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "model.pt")]).output
    assert "reference energies of H, O: the compositions" in " ".join(shown.split())
    assert "least squares" in shown


def test_fixed_ones_are_not_said_to_be_open(config, tmp_path):
    console = Console(record=True, width=400, file=io.StringIO())
    best = train(config([*WATERS, *PAIR]), console=console).best
    said = console.export_text()
    assert "open" not in said
    assert "reference energies (isolated atoms) leave" in said
    reference = export(best, tmp_path / "model.pt").provenance.reference
    assert (reference.open, reference.source) == ([], "isolated atoms")
    assert reference.energies == pytest.approx(ATOMS, abs=1e-9)


def test_a_run_is_not_resumed_with_other_reference_energies(config, quiet):
    train(config(WATERS), console=quiet)
    with pytest.raises(ConfigError, match=r"data\.reference_energies: is not that of"):
        train(config(WATERS, ATOMS), resume=True, console=quiet)
