"""The virial of the pressure, which MD engines want where ASE has a stress."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

Array = NDArray[np.float64]


def virial(atoms: Atoms, forces: Array, stress: Array | None = None, **_: Any) -> Array:
    """Σ r_i F_i (3, 3) in eV with all periodic images: −V·stress, compression positive.

    Parameters
    ----------
    atoms
        The structure, whose results the others are; those of ASE's names may all be given.
    forces
        (N, 3) in eV/Å.
    stress
        (6,) in eV/Å³, ASE's order and sign, of cells periodic in three directions.

    Returns
    -------
    array
        Symmetric. NaN where there is a periodic direction and no stress: an engine that asks for
        the pressure of a slab must not read 0.
    """
    if stress is not None:
        return np.asarray(-voigt_6_to_full_3x3_stress(stress) * float(atoms.cell.volume))
    if atoms.pbc.any():
        return np.full((3, 3), np.nan)
    tensor = atoms.positions.T @ forces
    return np.asarray((tensor + tensor.T) / 2)
