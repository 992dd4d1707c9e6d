"""Rigid bonds against ASE's own, and what rigid water keeps."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixBondLengths
from ase.io import read, write

from phicalc.data.boxes import water_box
from phicalc.errors import ConfigError, SimulationError
from phicalc.workflows.constraints.merging import apply_constraints
from phicalc.workflows.constraints.rigid_bonds import FixedBonds, rigid_water


def rattled(atoms: Atoms, size: float, seed: int = 1) -> np.ndarray:
    return atoms.positions + np.random.default_rng(seed).normal(scale=size, size=(len(atoms), 3))


PAIRS = [(0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (5, 6)]


@pytest.fixture
def mixture() -> Atoms:
    """Ammonia and water across the faces of a small cell."""
    atoms = molecule("NH3") + Atoms(molecule("H2O"), positions=molecule("H2O").positions + 3.0)
    atoms.set_cell([6.0, 7.0, 8.0])
    atoms.pbc = True
    atoms.wrap()
    return atoms


def test_positions_and_momenta_as_ase_corrects_them(mixture):
    ours, theirs = FixedBonds(mixture, PAIRS), FixBondLengths(PAIRS, tolerance=1e-14)
    lengths = ours.bondlengths.copy()
    new = rattled(mixture, 0.03)
    expected = new.copy()
    ours.adjust_positions(mixture, new)
    theirs.adjust_positions(mixture, expected)
    np.testing.assert_allclose(new, expected, atol=1e-11)
    momenta = np.random.default_rng(2).normal(size=new.shape)
    expected = momenta.copy()
    ours.adjust_momenta(mixture, momenta)
    theirs.adjust_momenta(mixture, expected)
    np.testing.assert_allclose(momenta, expected, atol=1e-11)
    mixture.positions = new
    np.testing.assert_allclose(
        [mixture.get_distance(i, j, mic=True) for i, j in PAIRS], lengths, rtol=1e-10
    )


def test_linear_and_angular_momentum_survive(mixture):
    mixture.pbc = False
    mixture.positions[:4] = molecule("NH3").positions
    constraint = FixedBonds(mixture, PAIRS[:3])
    momenta = np.random.default_rng(0).normal(size=(7, 3))
    total, angular = momenta.sum(axis=0), np.cross(mixture.positions, momenta).sum(axis=0)
    constraint.adjust_momenta(mixture, momenta)
    np.testing.assert_allclose(momenta.sum(axis=0), total, atol=1e-12)
    np.testing.assert_allclose(
        np.cross(mixture.positions, momenta).sum(axis=0), angular, atol=1e-12
    )


def test_water_is_found_and_made_rigid_fast():
    atoms = water_box(64, seed=1)
    constraint = rigid_water(atoms)
    assert len(constraint.pairs) == 3 * 64
    assert atoms.get_number_of_degrees_of_freedom() == 9 * 64
    atoms.set_constraint(constraint)
    assert atoms.get_number_of_degrees_of_freedom() == 6 * 64
    before = atoms.get_all_distances(mic=True)[tuple(constraint.pairs.T)]
    new = rattled(atoms, 0.02)
    started = time.perf_counter()
    atoms.set_positions(new)
    assert time.perf_counter() - started < 0.1
    after = atoms.get_all_distances(mic=True)[tuple(constraint.pairs.T)]
    np.testing.assert_allclose(after, before, rtol=1e-10)


def test_hydroxyl_and_hydronium_are_no_water():
    with pytest.raises(ConfigError, match="water molecules, got none"):
        rigid_water(molecule("CH3CH2OH"))
    water = molecule("H2O")
    water.translate(10.0)
    assert len(rigid_water(molecule("CH3CH2OH") + water).pairs) == 3


def test_what_cannot_be_satisfied_is_an_error(mixture):
    constraint = FixedBonds(mixture, PAIRS)
    far = rattled(mixture, 40.0)
    with pytest.raises(SimulationError, match="smaller time step"):
        constraint.adjust_positions(mixture, far)


def test_files_hold_a_plain_constraint(mixture, tmp_path):
    mixture.set_constraint(FixedBonds(mixture, PAIRS))
    write(tmp_path / "a.traj", mixture)
    (constraint,) = read(tmp_path / "a.traj").constraints
    assert type(constraint) is FixBondLengths
    assert constraint.pairs.tolist() == [list(pair) for pair in PAIRS]


def test_settings_add_constraints(mixture):
    apply_constraints(mixture, (0, 3, 3), True)
    assert mixture.get_number_of_degrees_of_freedom() == 21 - 6 - 3
    with pytest.raises(ConfigError, match="expected 0 to 6, got 7"):
        apply_constraints(mixture, (7,), False)
