"""What a structure brings along that changes a calculation is said before it begins."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian
from ase.io import read, write
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.workflows.crystal.elasticity import ElasticConstants, ElasticSettings
from phicalc.workflows.crystal.equation_of_state import EquationOfState, EquationOfStateSettings
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings

SIMULATIONS = {
    "md": lambda atoms: MolecularDynamics(atoms, MDSettings(steps=1, temperature=1.0)),
    "relax": lambda atoms: Relaxation(atoms, RelaxSettings()),
    "eos": lambda atoms: EquationOfState(atoms, EquationOfStateSettings()),
    "elastic": lambda atoms: ElasticConstants(atoms, ElasticSettings()),
    "phonons": lambda atoms: Phonons(atoms, PhononSettings()),
}


def with_mask(tmp_path, constraints):
    """Copper from a file whose column move_mask ASE takes for constraints."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(constraints)
    write(tmp_path / "held.extxyz", atoms)
    assert "move_mask" in (tmp_path / "held.extxyz").read_text()
    held = read(tmp_path / "held.extxyz")
    held.calc = EMT()
    return held


@pytest.mark.parametrize("name", SIMULATIONS)
def test_constraints_of_the_file(tmp_path, name):
    for constraints, words in (
        (FixAtoms([0, 2]), r"FixAtoms on 2 atoms \(0, 2\)"),
        (FixCartesian([1], mask=(True, False, False)), "FixCartesian"),
    ):
        (remark,) = SIMULATIONS[name](with_mask(tmp_path, constraints)).remarks
        assert remark.startswith("the structure comes with constraints")
        assert words.replace("\\", "") in remark
        assert ("they hold" in remark) == (name in ("md", "relax"))
        assert ("taken off" in remark) == (name not in ("md", "relax"))


@pytest.mark.parametrize("name", SIMULATIONS)
def test_nothing_is_said_of_an_ordinary_structure(name):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.set_tags([1, 2, 3, 4])
    assert SIMULATIONS[name](atoms).remarks == []


def test_masses_and_velocities():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.set_masses([63.546, 63.546, 65.0, 63.546])
    # 0.05 eV of one atom: T = 2 E / 12 k_B = 96.7 K
    momentum = np.sqrt(2.0 * 65.0 * 0.05)
    atoms.set_momenta([[0, 0, 0], [0, 0, 0], [momentum, 0, 0], [0, 0, 0]])
    masses, velocities = SIMULATIONS["md"](atoms).remarks
    assert "masses of its own for 1 atom (2), such as 65 u for Cu" in masses
    assert "velocities, 96.7 K" in velocities
    assert SIMULATIONS["relax"](atoms).remarks == [masses]


def test_commands_say_it(tmp_path, monkeypatch):
    monkeypatch.setattr("phicalc.cli.evaluation.Structure.open", lambda *a: held)
    held = with_mask(tmp_path, FixAtoms([0, 2]))
    command = ["relax", "m.pt", "s.xyz", "-o", str(tmp_path / "r")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert result.stdout.startswith("note: the structure comes with constraints, FixAtoms on 2")
    held = molecule("CH4")
    held.calc = EMT()
    result = CliRunner().invoke(app, ["relax", "m.pt", "s.xyz", "-o", str(tmp_path / "m")])
    assert "note:" not in result.stdout
