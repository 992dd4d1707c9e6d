"""What a structure brings along that changes a calculation, in sentences."""

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses

from phicalc.workflows.conditions import field_of
from phicalc.workflows.constraints.freedom import removed_by_constraints

_LISTED = 10


def on_constraints(atoms: Atoms, *, kept: bool) -> list[str]:
    """That a structure comes with constraints, as files with a `move_mask` do."""
    if not atoms.constraints:
        return []
    names = sorted({type(constraint).__name__ for constraint in atoms.constraints})
    held = sorted(
        {
            int(index)
            for constraint in atoms.constraints
            if hasattr(constraint, "get_indices")
            for index in np.ravel(constraint.get_indices())
        }
    )
    on = f" on {_counted(held)}" if held else ""
    what = (
        "they hold; take them out of the file if they are not meant"
        if kept
        else "they are taken off here"
    )
    return [f"the structure comes with constraints, {' and '.join(names)}{on}: {what}"]


def on_field(atoms: Atoms) -> list[str]:
    """What an electric field means to a crystal whose cell or symmetry counts."""
    field = field_of(atoms)
    if not field.any():
        return []
    return [
        f"the crystal is in an electric field of {' '.join(f'{f:g}' for f in field)} V/Å: energy "
        "and stress are those of the positions as given, moving an ion to another image changes "
        "them; symmetries that the field breaks are not used"
    ]


def on_momenta(atoms: Atoms) -> list[str]:
    """That a run begins with the structure's own velocities."""
    if not atoms.get_momenta().any():
        return []
    free = max(3 * len(atoms) - removed_by_constraints(atoms), 1)
    temperature = 2.0 * atoms.get_kinetic_energy() / (free * units.kB)
    return [
        f"the structure comes with velocities, {temperature:.4g} K: the run begins with them "
        "instead of drawing its own"
    ]


def on_masses(atoms: Atoms) -> list[str]:
    """That atoms have masses other than their element's."""
    usual = atomic_masses[atoms.numbers]
    other = np.flatnonzero(np.abs(atoms.get_masses() - usual) > 0.01 * usual)
    if not len(other):
        return []
    first = other[0]
    return [
        f"the structure comes with masses of its own for {_counted(other.tolist())}, such as "
        f"{atoms.get_masses()[first]:.6g} u for {atoms.symbols[first]}: they are used"
    ]


def _counted(indices: list[int]) -> str:
    """As "3 atoms (0, 1, 2)"."""
    shown = ", ".join(str(index) for index in indices[:_LISTED])
    more = ", …" if len(indices) > _LISTED else ""
    return f"{len(indices)} atom{'s' if len(indices) > 1 else ''} ({shown}{more})"
