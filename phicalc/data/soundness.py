"""Structures and labels that can't be meant as they stand, one at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms

from phicalc.checks.structure import MINIMUM_DISTANCE, check_separation, check_structure
from phicalc.data.neighbours import closest_overlap
from phicalc.errors import StructureError

MAXIMUM_FORCE, MAXIMUM_STRESS, MAXIMUM_CHARGE = 100.0, 1.0, 10.0
"""eV/Å, eV/Å³ (160 GPa) and e; labels beyond are in other units, or wrong."""

DEEPEST_ENERGY = 30.0
"""eV; a neutral atom's electrons are bound by no more than 20.9 Z^(7/3) eV (Thomas and Fermi,
doi:10.1016/0001-8708(77)90108-6), relativity included by the margin."""


def unsound(atoms: Atoms) -> Iterator[str]:
    """What the calculator would refuse, too: flat cells, atoms of no element or on one spot."""
    cell, pbc = atoms.cell.array, atoms.pbc
    try:
        check_structure(atoms.numbers, atoms.positions, cell, pbc)
        overlap = closest_overlap(atoms.positions, cell, pbc, MINIMUM_DISTANCE)
        if overlap is not None:
            check_separation(*overlap)
    except StructureError as error:
        yield str(error)


def absurd(name: str, value: Any, atoms: Atoms, max_force: float) -> Iterator[str]:
    """A label so large that it must be in another unit."""
    if name == "energy" and value < -DEEPEST_ENERGY * float((atoms.numbers ** (7 / 3)).sum()):
        yield (
            "absurd energy (deeper than all electrons are bound; expected eV: 1 kcal/mol is "
            "0.043364, 1 kJ/mol 0.010364)"
        )
    elif name == "forces" and np.linalg.norm(value, axis=1).max() > max_force:
        yield f"absurd forces (beyond {max_force:g} eV/Å)"
    elif name == "stress" and np.abs(value).max() > MAXIMUM_STRESS:
        yield (
            f"absurd stress (beyond {MAXIMUM_STRESS:g} eV/Å³ = 160 GPa; expected eV/Å³: divide "
            "kbar by 1602.2, GPa by 160.22)"
        )
    elif name == "charges" and np.abs(value).max() > MAXIMUM_CHARGE:
        yield f"absurd charges (beyond {MAXIMUM_CHARGE:g} e; expected nuclei minus electrons)"
