"""The space group of a structure, and keeping it."""

from ase import Atoms
from ase.constraints import FixSymmetry
from ase.spacegroup.symmetrize import check_symmetry

from phicalc.errors import StructureError


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
    if not atoms.pbc.all():
        return None
    try:
        dataset = check_symmetry(atoms, tolerance)
    except Exception:
        # spglib is missing, or gives up with a class of error that depends on its version
        return None
    return f"{dataset.international} ({dataset.number})"


def keep_symmetry(atoms: Atoms, tolerance: float) -> None:
    """Move the atoms to their symmetric places and add the constraint that keeps them there.

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
    atoms.set_constraint([*atoms.constraints, FixSymmetry(atoms, symprec=tolerance)])
