"""A restarted run goes on with the calculator and the constraints that began it, or not at all."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.io import read

from phicalc.engines.ase import PhiCalculator
from phicalc.errors import ConfigError, ConvergenceError
from phicalc.serving.model_file import load_model, model_bytes
from phicalc.workflows.md.checkpoint import Checkpoint
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from tests.reference_models import argon_crystal, small_metadata, small_potential


class Nudged(EMT):
    """EMT, and a little more of one result."""

    def __init__(self, name: str, size: float) -> None:
        super().__init__()
        self.nudge = (name, size)

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        name, size = self.nudge
        self.results[name] = self.results[name] + size


def dynamics(atoms: Atoms, folder: Path, steps: int, restart: bool) -> None:
    settings = MDSettings(
        steps=steps, temperature=20.0, timestep=2.0, checkpoint_every=2, log_every=1
    )
    MolecularDynamics(atoms, settings, folder).run(restart=restart)


def relaxation(atoms: Atoms, folder: Path, steps: int, restart: bool) -> None:
    settings = RelaxSettings(steps=steps, max_force=1e-9, optimizer="fire")
    with suppress(ConvergenceError):
        Relaxation(atoms, settings, folder).run(restart=restart)


RUNS = [dynamics, relaxation]
OTHERS = {
    "forces": (Nudged("forces", 3e-3), "forces differ by 0.003 eV/Å"),
    "energy": (Nudged("energy", 4e-3), "energy differs by 0.001 eV per atom"),
    "stress": (Nudged("stress", 1e-4), "stress differs by 0.0001 eV/Å³"),
    "other potential": (LennardJones(sigma=2.3, rc=6.0), "differ"),
}


@pytest.mark.parametrize(
    "run, kind",
    # EMT has no stress in its results when a run at constant volume is saved
    [(run, kind) for run in RUNS for kind in OTHERS if (run, kind) != (dynamics, "stress")],
)
def test_another_calculator_is_refused_and_nothing_is_lost(copper, tmp_path, run, kind):
    copper.get_stress()
    run(copper, tmp_path, 4, restart=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calculator, message = OTHERS[kind]
    copper.calc = calculator
    with pytest.raises(ConfigError, match=f"restart: expected the calculator .*{message}"):
        run(copper, tmp_path, 8, restart=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    copper.calc = Nudged("forces", 2e-5)  # another machine's rounding
    run(copper, tmp_path, 8, restart=True)


@pytest.mark.parametrize("run", RUNS)
def test_energies_tell_models_apart_where_symmetry_makes_forces_zero(tmp_path, run):
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([0, 1, 2]))  # something to move, and no drift to take out
    atoms.calc = EMT()
    if run is dynamics:
        atoms.set_momenta(np.full((4, 3), 1e-9))
    run(atoms, tmp_path, 2, restart=False)
    atoms.calc = Nudged("energy", 4e-3)
    with pytest.raises(ConfigError, match="energy differs"):
        run(atoms, tmp_path, 4, restart=True)


@pytest.fixture(scope="module")
def models():
    """A model, the same exported once more, and another one."""
    return {
        name: load_model(model_bytes(small_potential(seed=seed), small_metadata(**changes)))
        for name, seed, changes in (
            ("first", 0, {}),
            ("again", 0, {"description": "the same numbers in another file"}),
            ("second", 1, {}),
        )
    }


def ethanol(calculator: PhiCalculator, molecule: Atoms) -> Atoms:
    atoms = molecule.copy()
    atoms.calc = calculator
    return atoms


@pytest.mark.parametrize("run", RUNS)
def test_models_committees_charges(models, molecule, tmp_path, run):
    run(ethanol(PhiCalculator(models["first"]), molecule), tmp_path, 2, restart=False)
    for other in (
        PhiCalculator(models["second"]),
        PhiCalculator([models["first"], models["second"]]),
        PhiCalculator(models["first"], charge=1),
    ):
        with pytest.raises(ConfigError, match="restore the model, committee, total charge"):
            run(ethanol(other, molecule), tmp_path, 4, restart=True)
    run(ethanol(PhiCalculator(models["again"], skin=0.3), molecule), tmp_path, 4, restart=True)


@pytest.mark.parametrize("run", RUNS)
def test_other_constraints_are_refused(copper, tmp_path, run):
    copper.set_constraint(FixAtoms([0]))
    run(copper, tmp_path, 2, restart=False)
    for constraints, shown in (([], "none"), ([FixAtoms([1])], "FixAtoms")):
        copper.set_constraint(constraints)
        with pytest.raises(ConfigError, match=rf"constraints of the run .*\(FixAtoms\).*{shown}"):
            run(copper, tmp_path, 4, restart=True)
    copper.set_constraint([FixAtoms([0]), FixAtoms([0])])  # says nothing else
    run(copper, tmp_path, 4, restart=True)


def test_a_checkpoint_of_before_is_read(copper, tmp_path):
    """Version 1 had neither results nor constraints to compare."""
    dynamics(copper, tmp_path, 2, restart=False)
    path = tmp_path / "md.checkpoint"
    with np.load(path) as archive:
        arrays = {n: archive[n] for n in archive.files if not n.startswith("results ")}
    header = json.loads(str(arrays.pop("header"))) | {"format_version": 1}
    del header["constraints"]
    with path.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
    old = Checkpoint.load(path)
    assert old.results == {} and old.constraints is None
    dynamics(copper, tmp_path, 4, restart=True)
    assert Checkpoint.load(path).results.keys() >= {"energy", "forces"}


def test_relaxed_atoms_are_at_rest(tmp_path):
    atoms = argon_crystal()
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=8.0)
    atoms.set_momenta(np.ones((len(atoms), 3)))
    Relaxation(atoms, RelaxSettings(max_force=0.01), tmp_path).run()
    assert not read(tmp_path / "relax-final.extxyz").get_momenta().any()
    assert atoms.get_momenta().any()
