"""Born charges and the electronic dielectric tensor, for the splitting of LO and TO phonons."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.typing import NDArray

from phicalc.errors import ConfigError, PhicalcError, UnsupportedError

if TYPE_CHECKING:
    from phonopy import Phonopy

PROPERTIES = ("born_effective_charges", "dielectric_tensor")


@dataclass(frozen=True)
class BornCharges:
    """What the non-analytical term correction needs, acoustic sum rule enforced.

    Attributes
    ----------
    charges
        (atoms, 3, 3) in e: [a, i, j] is the change of polarisation times volume along i per
        displacement of atom a along j; of the primitive cell, in phonopy's order. Their sum over
        the atoms is zero.
    dielectric
        (3, 3) electronic dielectric tensor ε∞.
    violation
        Largest element of the sum of the charges over the atoms as they were given, in e, before
        it was shared out among them.
    source
        "model", or the file's name.
    """

    charges: NDArray[np.float64]
    dielectric: NDArray[np.float64]
    violation: float
    source: str


def from_calculator(atoms: Atoms, phonopy: "Phonopy") -> BornCharges:
    """Born charges of the unit cell by its calculator.

    Parameters
    ----------
    atoms
        The unit cell of `phonopy`, with a calculator that has ASE's properties
        `born_effective_charges` (N, 3, 3; e) and `dielectric_tensor` (3, 3).
    phonopy
        Tells which atoms are the primitive cell's.

    Raises
    ------
    UnsupportedError
        The calculator does not have them, with its reason.
    """
    try:
        charges, dielectric = (_property(atoms, name) for name in PROPERTIES)
    except (PropertyNotImplementedError, PhicalcError) as error:
        raise UnsupportedError(
            f"this calculator gives no Born charges and dielectric tensor ({error}); give a BORN "
            "file, or switch the correction off"
        ) from error
    in_supercell = phonopy.primitive.p2s_map
    in_unit_cell = phonopy.supercell.s2u_map[in_supercell]
    first = [phonopy.supercell.u2u_map[index] for index in in_unit_cell]
    # the sum rule holds for the unit cell that was computed
    return _enforced(charges.reshape(-1, 3, 3), np.array(first), dielectric, "model")


def from_file(path: Path, phonopy: "Phonopy") -> BornCharges:
    """Born charges from a BORN file, in phonopy's format, of the primitive cell.

    Raises
    ------
    ConfigError
        The file is missing or damaged, or does not fit the structure.
    """
    from phonopy.file_IO import parse_BORN

    try:
        read: Any = parse_BORN(phonopy.primitive, filename=path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"expected a BORN file in phonopy's format for this crystal, got {path}: {error}"
        ) from error
    everything = np.arange(len(read["born"]))
    return _enforced(read["born"], everything, read["dielectric"], path.name)


def _property(atoms: Atoms, name: str) -> NDArray[np.float64]:
    return np.asarray(atoms.calc.get_property(name, atoms), dtype=np.float64)


def _enforced(
    charges: NDArray[np.float64],
    chosen: NDArray[np.int64],
    dielectric: NDArray[np.float64],
    source: str,
) -> BornCharges:
    """Share what the charges' sum lacks of zero equally among all atoms; then choose some."""
    excess = charges.sum(axis=0)
    corrected = (charges - excess / len(charges))[chosen]
    tensor = np.asarray(dielectric, dtype=np.float64).reshape(3, 3)
    if not (np.isfinite(corrected).all() and np.linalg.eigvalsh(tensor + tensor.T).min() > 0.0):
        raise ConfigError(
            f"expected finite Born charges and a positive dielectric tensor from {source}, got "
            f"{tensor.tolist()}"
        )
    return BornCharges(corrected, tensor, float(np.abs(excess).max()), source)
