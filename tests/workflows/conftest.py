"""Structures with potentials that cost next to nothing."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from tests.workflows.springs import Springs


@pytest.fixture
def crystal() -> Atoms:
    """32 heavy atoms on a face-centred lattice, nearest neighbours on springs, no two alike."""
    atoms = bulk("Xe", cubic=True, a=6.0) * (2, 2, 2)
    atoms.calc = Springs(atoms, cutoff=5.0, length=6.0 / np.sqrt(2), a=60.0, disorder=0.7)
    return atoms


@pytest.fixture
def copper() -> Atoms:
    """Four copper atoms in their cubic cell, off their sites, with ASE's EMT."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    atoms.calc = EMT()
    return atoms
