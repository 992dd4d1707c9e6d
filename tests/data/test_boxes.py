"""Boxes of water and salt water: what is in them, how far apart, and how it is turned."""

import numpy as np
import pytest
from ase.calculators.tip3p import TIP3P
from ase.geometry import get_distances
from ase.units import kg, m

from phicalc.data.boxes import salt_water, water_box
from phicalc.errors import ConfigError


def distances(atoms, first, second):
    return get_distances(
        atoms.positions[first], atoms.positions[second], cell=atoms.cell, pbc=True
    )[1]


@pytest.mark.parametrize("count", [1, 2, 8, 33, 50, 64, 65])
def test_water_box(count):
    atoms = water_box(count)
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] * count
    assert atoms.pbc.all()
    density = atoms.get_masses().sum() / atoms.cell.volume / (kg / m**3)
    assert density == pytest.approx(1000, rel=1e-4)
    oxygen, hydrogen = np.arange(0, 3 * count, 3), np.arange(1, 3 * count, 3)
    for h in (hydrogen, hydrogen + 1):
        np.testing.assert_allclose(np.diag(distances(atoms, oxygen, h)), 0.9572, atol=1e-10)
    np.testing.assert_allclose(np.diag(distances(atoms, hydrogen, hydrogen + 1)), 1.5139, atol=1e-4)


@pytest.mark.parametrize(("n_water", "n_pairs"), [(33, 0), (48, 8), (64, 0), (100, 3)])
def test_nothing_overlaps(n_water, n_pairs):
    atoms = salt_water(n_water, n_pairs, seed=3)
    molecule = np.concatenate([np.repeat(np.arange(n_water), 3), n_water + np.arange(2 * n_pairs)])
    every = np.arange(len(atoms))
    between = distances(atoms, every, every)[molecule[:, None] != molecule]
    assert between.min() > 1.3
    heavy = np.flatnonzero(atoms.numbers > 1)
    apart = distances(atoms, heavy, heavy)[~np.eye(len(heavy), dtype=bool)]
    assert apart.min() > 2.4


def test_molecules_point_the_right_way():
    """In the shell of an ion dipoles point away from Na⁺ and towards Cl⁻."""
    atoms = salt_water(60, 2, seed=1)
    water = atoms.positions[:180].reshape(60, 3, 3)
    dipoles = water[:, 1:].mean(axis=1) - water[:, 0]
    dipoles /= np.linalg.norm(dipoles, axis=1, keepdims=True)
    cosines = {"Na": [], "Cl": []}
    for ion in atoms[180:]:
        vectors, lengths = get_distances(ion.position, water[:, 0], cell=atoms.cell, pbc=True)
        shell = lengths[0] < 3.5
        along = (vectors[0] * dipoles).sum(axis=1) / lengths[0]
        cosines[ion.symbol].extend(along[shell])
    assert np.mean(cosines["Na"]) > 0.5
    assert np.mean(cosines["Cl"]) < -0.4


def test_molecules_are_hydrogen_bonded():
    """By the TIP3P potential each has a good part of the 0.43 eV that binds it in the liquid."""
    atoms = water_box(64)
    atoms.calc = TIP3P(rc=5.5)
    assert atoms.get_potential_energy() / 64 < -0.25


def test_salt_takes_the_room_of_water():
    salt, water = salt_water(60, 2), water_box(64)
    np.testing.assert_allclose(salt.cell, water.cell, rtol=1e-12)
    assert salt.symbols.formula.count() == {"O": 60, "H": 120, "Na": 2, "Cl": 2}


def test_the_seed_decides():
    assert salt_water(20, 2, seed=5) == salt_water(20, 2, seed=5)
    assert salt_water(20, 2, seed=5) != salt_water(20, 2, seed=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "expected n_water ≥ 1, got 0"),
        ((3, -1), "expected n_pairs ≥ 0, got -1"),
        ((3, 1, 0.0), r"expected a density in g/cm³ in \(0, 1.2\], got 0.0"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        salt_water(*arguments)
