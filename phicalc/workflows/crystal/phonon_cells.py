"""Between ASE's cells and phonopy's: orientation, conditions, size, and phonopy's own errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from phicalc.errors import PhicalcError, UnsupportedError
from phicalc.workflows.conditions import conditions_of

if TYPE_CHECKING:
    from phonopy.structure.atoms import PhonopyAtoms


def as_phonopy(atoms: Atoms) -> "PhonopyAtoms":
    """A unit cell as phonopy's.

    Phonopy takes right-handed cells only. A left-handed one is given by the opposite of each of
    its vectors: the same lattice, the same atoms in the same order and places, the same axes of
    the supercell, and wave vectors −q, whose frequencies are those of q.
    """
    from phonopy.structure.atoms import PhonopyAtoms

    cell, places = atoms.cell.array, atoms.get_scaled_positions()
    if np.linalg.det(cell) < 0.0:
        cell, places = -cell, -places % 1.0
    return PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=cell,
        scaled_positions=places,
        masses=atoms.get_masses(),
    )


def isotopes(atoms: Atoms) -> bool:
    """Whether atoms of one element differ in mass, by which a lattice has fewer symmetries."""
    masses = atoms.get_masses()
    return any(np.ptp(masses[atoms.numbers == number]) > 1e-6 for number in set(atoms.numbers))


def conditions_of_supercell(atoms: Atoms, cells: int) -> dict[str, Any]:
    """Entries of `info` for this number of unit cells: each has the unit cell's total charge."""
    conditions = conditions_of(atoms)
    if "charge" in conditions:
        conditions["charge"] = float(conditions["charge"]) * cells
    return conditions


def remark_on_size(supercell: Any, calculator: Any) -> str | None:
    """What is wrong with a supercell that is too small, None where nothing is.

    Force constants between atoms farther apart than half the shortest period of the supercell are
    folded into those of nearer pairs. A model of a `cutoff` couples the forces of atoms at least
    that far apart.
    """
    cutoff = getattr(calculator, "cutoff", None)
    if cutoff is None:
        return None
    reduced, _ = minkowski_reduce(np.asarray(supercell.cell))
    half = 0.5 * float(np.linalg.norm(reduced, axis=1).min())
    if half >= cutoff:
        return None
    return (
        f"supercell too small: half its shortest period, {half:.2f} Å, is less than the model's "
        f"cutoff, {cutoff:g} Å, so that force constants between more distant atoms are folded "
        f"into those of nearer ones; a supercell_length (--length) of {2.0 * cutoff:g} Å would do"
    )


@contextmanager
def phonopy_errors() -> Iterator[None]:
    """Errors of phonopy and spglib, as one of ours.

    Raises
    ------
    UnsupportedError
        Phonopy raised something in this context.
    """
    try:
        yield
    except (PhicalcError, OSError, MemoryError):
        raise
    except Exception as error:  # of any class: it depends on phonopy's version
        raise UnsupportedError(
            f"phonons: phonopy cannot treat this crystal ({type(error).__name__}: {error}); look "
            "at its cell, at symmetry_tolerance, and at supercell, path and mesh"
        ) from error
