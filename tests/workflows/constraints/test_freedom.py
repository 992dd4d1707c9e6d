"""Degrees of freedom against the rank of what ASE does to momenta, whatever overlaps."""

from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    Hookean,
    MirrorForce,
)
from ase.io import read, write

from phicalc.data.boxes import water_box
from phicalc.errors import UnsupportedError
from phicalc.workflows.constraints.freedom import (
    free_motions,
    quiet,
    removed_by_constraints,
    take_out,
)
from phicalc.workflows.constraints.merging import apply_constraints
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.ensemble import degrees_of_freedom
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.spectra.motion import read_motion
from tests.workflows.springs import Springs

BOTH = ("traj", "extxyz")
MODE = np.random.default_rng(5).normal(size=(12, 3))
KINDS = {
    "atoms": lambda: FixAtoms([0, 4]),
    "more atoms": lambda: FixAtoms([4, 5, 6]),
    "axes": lambda: FixCartesian([0, 7], mask=(True, False, True)),
    "one axis": lambda: FixCartesian([7, 8], mask=(False, True, False)),
    "plane": lambda: FixedPlane([7, 9], (1, 2, 3)),
    "line": lambda: FixedLine([8, 10], (1, 1, 0)),
    "scaled": lambda: FixScaled([8], mask=(True, False, False)),
    "bonds": lambda: FixBondLengths([(0, 1), (0, 2), (1, 2)]),
    "same bonds": lambda: FixBondLengths([(1, 0), (2, 1)]),
    "other bonds": lambda: FixBondLengths([(3, 4), (3, 5)]),
    "centre": lambda: FixCom(),
    "mode": lambda: FixedMode(MODE),
    "spring": lambda: Hookean(a1=9, a2=11, k=2.0, rt=1.0),
}


@pytest.fixture
def waters() -> Atoms:
    """Four molecules of water in a skewed cell."""
    atoms = water_box(4, seed=1)
    atoms.set_cell(atoms.cell @ [[1.0, 0.1, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
    return atoms


def numerical_rank(atoms: Atoms) -> int:
    """Of the momenta that are left of all unit vectors by ASE's constraints."""
    size = 3 * len(atoms)
    left = np.zeros((size, size))
    trial = atoms.copy()
    trial.set_constraint(list(atoms.constraints))
    for column in range(size):
        trial.set_momenta(np.eye(size)[column].reshape(-1, 3))
        left[:, column] = trial.get_momenta().ravel()
    return int(np.linalg.matrix_rank(left, tol=1e-6))


def constrained(atoms: Atoms, names: tuple[str, ...]) -> bool:
    """Whether these constraints can hold at once; they are set then."""
    atoms.set_constraint([KINDS[name]() for name in names])
    try:
        apply_constraints(atoms, (), water=False)
    except UnsupportedError:
        return False
    return True


@pytest.mark.parametrize("names", list(combinations_with_replacement(KINDS, 2)))
def test_two_constraints_count_what_they_leave(waters, names):
    if not constrained(waters, names):
        assert {"centre", "mode"} & set(names) or "bonds" in " ".join(names)
        return
    assert 36 - removed_by_constraints(waters) == numerical_rank(waters)
    # once more, as from a file that keeps them
    waters.set_constraint([*waters.constraints, *(KINDS[name]() for name in names)])
    apply_constraints(waters, (), water=False)
    assert 36 - removed_by_constraints(waters) == numerical_rank(waters)


@pytest.mark.parametrize("water", [False, True])
@pytest.mark.parametrize("names", list(combinations(list(KINDS)[:7], 3)))
def test_three_with_those_of_the_options(waters, names, water):
    waters.set_constraint([KINDS[name]() for name in names])
    try:
        apply_constraints(waters, (0, 1, 11), water)
    except UnsupportedError:
        assert water  # atoms held in part, and rigid
        return
    assert 36 - removed_by_constraints(waters) == numerical_rank(waters)


def test_numbers_that_can_be_counted_on_fingers(waters):
    apply_constraints(waters, (0, 3), water=True)
    # two molecules turn about their oxygen, two are free
    assert 36 - removed_by_constraints(waters) == 3 + 3 + 6 + 6
    apply_constraints(waters, (0, 1, 3), water=True)
    # the first turns about its fixed bond
    assert 36 - removed_by_constraints(waters) == 1 + 3 + 6 + 6
    apply_constraints(waters, (0, 1, 2), water=True)
    assert 36 - removed_by_constraints(waters) == 0 + 3 + 6 + 6


def test_both_hold_in_dynamics(waters):
    """A fixed oxygen stays, and its molecule rigid, where ASE alone lets the last one win."""
    apply_constraints(waters, (0,), water=True)
    before = waters.get_positions()
    lengths = waters.get_all_distances(mic=True)[:3, :3]
    rng = np.random.default_rng(0)
    for _ in range(20):
        waters.set_positions(waters.positions + rng.normal(scale=0.02, size=(12, 3)))
        waters.set_momenta(rng.normal(size=(12, 3)))
        assert not waters.get_momenta()[0].any()
    np.testing.assert_array_equal(waters.positions[0], before[0])
    np.testing.assert_allclose(
        waters.get_all_distances(mic=True)[:3, :3], lengths, rtol=1e-9, atol=1e-12
    )
    assert np.abs(waters.positions - before)[1:3].max() > 0.02


def test_linear_and_internal_constraints():
    dioxide = molecule("CO2")
    dioxide.set_constraint(FixLinearTriatomic([(1, 0, 2)]))
    assert removed_by_constraints(dioxide) == 4
    dioxide.set_constraint([FixLinearTriatomic([(1, 0, 2)]), FixBondLengths([(0, 1)])])
    assert removed_by_constraints(dioxide) == 4
    water = molecule("H2O")
    water.rattle(0.05, seed=0)
    angle = [[water.get_angle(1, 0, 2), [1, 0, 2]]]
    bond = [[water.get_distance(0, 1), [0, 1]]]
    water.set_constraint(FixInternals(bonds=bond, angles_deg=angle))
    # ASE takes shifts and turns of the whole out of the momenta as well
    assert 9 - removed_by_constraints(water) == numerical_rank(water) == 1
    with pytest.raises(UnsupportedError, match="can be counted, got MirrorForce"):
        removed_by_constraints(_with(water, MirrorForce(0, 1)))


def _with(atoms: Atoms, constraint) -> Atoms:
    atoms.set_constraint(constraint)
    return atoms


@pytest.mark.parametrize(
    "constraint, motions",
    [
        ([], 6),
        (FixBondLengths([(0, 1), (0, 2), (1, 2)]), 6),
        (FixAtoms([0]), 3),  # turns about it
        (FixAtoms([0, 1]), 1),
        (FixAtoms([0, 1, 2]), 0),
        (FixCom(), 3),
        (FixedPlane([0, 1, 2, 3, 4], (0, 0, 1)), 3),  # two shifts, one turn
    ],
)
def test_motions_of_a_molecule(constraint, motions):
    atoms = molecule("CH4")
    atoms.rattle(0.1, seed=3)
    atoms.set_constraint(constraint)
    free = free_motions(atoms)
    assert len(free) == motions
    momenta = np.random.default_rng(0).normal(size=(5, 3))
    atoms.set_momenta(momenta)
    before = atoms.get_kinetic_energy()
    take_out(atoms, free)
    assert quiet(free, atoms.get_momenta()) == motions
    assert (atoms.get_kinetic_energy() < before - 1e-9) == bool(motions)


def test_motions_in_cells_and_of_linear_molecules():
    assert len(free_motions(bulk("Cu"))) == 3
    assert len(free_motions(molecule("N2"))) == len(free_motions(molecule("CO2"))) == 5
    assert len(free_motions(Atoms("H"))) == 3


def settings(ensemble: str, **changes) -> MDSettings:
    return MDSettings(**{"steps": 1, "ensemble": ensemble, "temperature": 300.0} | changes)


@pytest.mark.parametrize(
    "constraint, langevin, rescaled",
    [([], 15, 9), (FixCom(), 12, 9), (FixAtoms([0]), 12, 9), (FixAtoms([0, 1, 2]), 6, 6)],
)
def test_conserved_momenta_are_counted_once(constraint, langevin, rescaled):
    atoms = molecule("CH4")
    atoms.set_constraint(constraint)
    atoms.calc = LennardJones(rc=20.0)
    for ensemble, expected in (("langevin", langevin), ("nose-hoover", rescaled)):
        assert degrees_of_freedom(atoms, settings(ensemble)) == expected


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover", "bussi"])
def test_the_thermostat_holds_what_the_file_and_the_option_fix(crystal, tmp_path, ensemble):
    """Half the atoms fixed by the file and again by the option: the others have 300 K."""
    calculator = crystal.calc
    crystal.set_constraint(FixAtoms(range(16)))
    write(tmp_path / "fixed.extxyz", crystal.copy())
    again = read(tmp_path / "fixed.extxyz")
    again.calc = calculator
    wanted = settings(
        ensemble,
        steps=4000,
        timestep=5.0,
        fixed_atoms=tuple(range(16)),
        log_every=5,
        trajectory_every=100,
    )
    log = MolecularDynamics(again, wanted, tmp_path / "run").run().log[100:]
    true = 2.0 * log["kinetic_eV"].mean() / (48 * units.kB)
    # 48 coordinates, some 150 independent samples: 300 K · √(2 / 48 / 150) = 5 K
    assert true == pytest.approx(300.0, abs=20.0)
    assert log["temperature_K"].mean() == pytest.approx(true, rel=1e-9)
    frames = read(tmp_path / "run" / "md.traj", ":")
    mean = np.mean([2.0 * f.get_kinetic_energy() / (48 * units.kB) for f in frames])
    assert read_motion(frames).temperature == pytest.approx(mean, rel=1e-9)


def test_rigid_water_from_a_rigid_run(tmp_path):
    atoms = water_box(16, seed=2)
    atoms.calc = Springs(atoms, {("O", "H"): 1.2}, 0.96)
    wanted = settings(
        "bussi", steps=20, rigid_water=True, trajectory_every=1, log_every=1, formats=BOTH
    )
    MolecularDynamics(atoms, wanted, tmp_path / "one").run()
    last = read(tmp_path / "one" / "md.traj")
    last.calc = atoms.calc
    log = MolecularDynamics(last, wanted, tmp_path / "two").run().log
    used = 2.0 * log["kinetic_eV"] / (units.kB * log["temperature_K"])
    np.testing.assert_allclose(used, 16 * 6 - 3, rtol=1e-9)
    for kind in BOTH:  # extended XYZ holds no rigid bonds, but how many they are
        motion = read_motion(tmp_path / "two" / f"md.{kind}")
        assert motion.temperature == pytest.approx(log["temperature_K"].mean(), rel=1e-4)
