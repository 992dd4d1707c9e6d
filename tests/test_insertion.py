"""Trial moves of grand-canonical and Widom sampling and of random search, by the shipped models."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.optimize import FIRE

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water

BINDING = 1.0
"""eV; a water molecule in the liquid has about half of it."""


@pytest.mark.parametrize("name", ["nacl-water", "nacl-water-phi"])
def test_water_at_random_places_in_salt_water(name):
    """No trial finds a hole: an insertion costs energy, or gains what a liquid binds with."""
    generator = np.random.default_rng(11)
    calc = PhiCalculator(f"models/{name}.pt", threads=1)
    box, water = salt_water(31, 1, seed=1), molecule("H2O")
    before, alone = calc.get_potential_energy(box), calc.get_potential_energy(water)
    costs = []
    for _ in range(30):
        new = water.copy()
        new.rotate(generator.uniform(0, 360), generator.normal(size=3))
        new.positions += generator.uniform(0, box.cell[0, 0], 3) - new.positions[0]
        costs.append(calc.get_potential_energy(box + new) - before - alone)
    assert min(costs) > -BINDING
    assert max(costs) > 100.0  # some do overlap


@pytest.mark.parametrize("name", ["nacl-water", "nacl-water-phi"])
@pytest.mark.parametrize("distance", [0.01, 0.1, 0.5, 1.0, 1.5, 2.0])
def test_two_oxygens_of_the_liquid_repel_at_any_distance(name, distance):
    """2.3 Å is the closest of the training data."""
    atoms = salt_water(31, 1, seed=1)
    calc = PhiCalculator(f"models/{name}.pt", threads=1)
    before = calc.get_potential_energy(atoms)
    axis = atoms.get_distance(0, 3, mic=True, vector=True)
    length = float(np.linalg.norm(axis))
    atoms.positions[3:6] += axis / length * (distance - length)
    assert calc.get_potential_energy(atoms) - before > 2000.0 * (1 - distance / 2.3) ** 4


@pytest.mark.parametrize("seed", range(4))
def test_ions_at_random_places(seed):
    """The start of a random search lies above the crystal."""
    calc = PhiCalculator("models/kcl-crystal.pt", threads=1)
    crystal = bulk("KCl", "rocksalt", a=6.3, cubic=True)
    places = np.random.default_rng(seed).uniform(0, 6.3, (8, 3))
    start = Atoms("KCl" * 4, places, cell=crystal.cell, pbc=True)
    assert calc.get_potential_energy(start) > calc.get_potential_energy(crystal) + 10.0


@pytest.mark.parametrize("name", ["nacl-water", "nacl-water-phi"])
def test_a_random_search_falls_into_no_abyss(name):
    """Atoms of six molecules, anywhere, relaxed: features that grew without bound gave −1e8 eV."""
    calc = PhiCalculator(f"models/{name}.pt", threads=1)
    places = np.random.default_rng(2).uniform(0, 5.6, (18, 3))
    atoms = Atoms("OHH" * 6, places, cell=[5.6] * 3, pbc=True, calculator=calc)
    FIRE(atoms, logfile=None).run(fmax=0.1, steps=120)
    assert atoms.get_potential_energy() > 6 * calc.get_potential_energy(molecule("H2O")) - 15.0
