"""The space group of a structure, and keeping it, in an electric field as far as it is left."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.spacegroup.symmetrize import check_symmetry
from numpy.typing import NDArray

from phicalc.errors import StructureError
from phicalc.workflows.conditions import field_of

FIRST_CUBIC = 195
"""Number of the first cubic space group."""


def space_group(atoms: Atoms, tolerance: float = 1e-3) -> str | None:
    """International symbol and number of the space group, such as "Fm-3m (225)".

    Parameters
    ----------
    atoms
        The structure.
    tolerance
        Distance in Å by which atoms may miss their symmetric places.

    Returns
    -------
    str or None
        None unless the structure is periodic in three directions and spglib, which phonopy
        brings along, finds its symmetry.
    """
    dataset = _dataset(atoms, tolerance)
    return None if dataset is None else f"{dataset.international} ({dataset.number})"


def keep_symmetry(atoms: Atoms, tolerance: float) -> None:
    """Move the atoms to their symmetric places and add the constraint that keeps them there.

    In an electric field only the symmetries that leave it in place are kept.

    Parameters
    ----------
    atoms
        Changed in place.
    tolerance
        Distance in Å by which atoms may miss their symmetric places.

    Raises
    ------
    StructureError
        The structure is not a three-dimensional crystal.
    """
    if space_group(atoms, tolerance) is None:
        raise StructureError(
            "keep_symmetry: expected a crystal whose space group spglib can find, got pbc "
            f"{atoms.pbc.tolist()}"
        )
    kept = FixSymmetry(atoms, symprec=tolerance)
    left = np.flatnonzero(_leave_field(atoms, _cartesian(atoms, kept.rotations)))
    kept.rotations, kept.translations = kept.rotations[left], kept.translations[left]
    kept.symm_map = [kept.symm_map[number] for number in left]
    atoms.set_constraint([*atoms.constraints, kept])


def point_group(atoms: Atoms, tolerance: float = 1e-3) -> NDArray[np.float64]:
    """Rotations and reflections (n, 3, 3) of a crystal's point group, acting on columns.

    The identity alone where spglib finds no symmetry; in an electric field those that leave it.
    """
    dataset = _dataset(atoms, tolerance)
    if dataset is None:
        return np.eye(3)[None]
    # a conventional cell has each of them once for every lattice point in it
    rotations = _cartesian(atoms, np.unique(dataset.rotations, axis=0))
    return rotations[_leave_field(atoms, rotations)]


def _cartesian(atoms: Atoms, rotations: NDArray[np.int32]) -> NDArray[np.float64]:
    """Rotations (n, 3, 3) of scaled coordinates as those of space."""
    to_cartesian = atoms.cell.array.T
    matrices = to_cartesian @ rotations.astype(float) @ np.linalg.inv(to_cartesian)
    left, _, right = np.linalg.svd(matrices)  # orthogonal even where the cell is a little off
    return np.asarray(left @ right, dtype=np.float64)


def _leave_field(atoms: Atoms, rotations: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the rotations leave the electric field in place that the atoms are in."""
    field = field_of(atoms)
    change = np.linalg.norm(rotations @ field - field, axis=1)
    return np.asarray(change <= 1e-3 * np.linalg.norm(field))


def conventional_atoms(atoms: Atoms, tolerance: float = 1e-3) -> int | None:
    """Number of atoms in the conventional cell of a cubic crystal, None for any other."""
    dataset = _dataset(atoms, tolerance)
    if dataset is None or dataset.number < FIRST_CUBIC:
        return None
    return len(dataset.std_types)


def _dataset(atoms: Atoms, tolerance: float) -> Any:
    """What spglib says, None where it is missing or gives up."""
    if not atoms.pbc.all():
        return None
    try:
        return check_symmetry(atoms, tolerance)
    except Exception:
        # the class of error depends on spglib's version
        return None
