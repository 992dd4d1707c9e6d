"""Labels under other people's names, brought under ours as soon as a file was read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from phicalc.errors import DataError

NAMES = ("energy", "forces", "stress", "virial", "charges", "dipole", "total_charge")
"""What another column may stand for."""

_STORED_AS = {
    "energy": ("energy", "free_energy"),
    "forces": ("forces",),
    "stress": ("stress",),
    "virial": ("stress",),
    "charges": ("charges", "charge", "initial_charges"),
    "dipole": ("dipole",),
    "total_charge": ("charge",),
}
"""Where ASE and this package look for each, in results, info and arrays."""

_PER_ATOM = ("forces", "charges")
_LISTED = 12


def take_names(frames: Sequence[Atoms], keys: Mapping[str, str], all_columns: bool = True) -> None:
    """Bring labels from other columns under their own names, in place.

    What a frame had under our name is replaced, also by nothing where the column is missing: an
    energy of another level of theory is no substitute. A virial is −stress·V in eV, positive under
    compression, as in the files of MACE (``REF_virials``), GAP and NEP (``virial``).

    Parameters
    ----------
    frames
        Structures as they were read.
    keys
        By our name, one of :data:`NAMES`, the name of the column in ``info``, ``arrays`` or stored
        results.
    all_columns
        Whether each column must be there in at least one frame.

    Raises
    ------
    DataError
        An unknown name, stress and virial both, a column that no frame has though it must, or a
        virial that is not nine numbers.
    """
    unknown = sorted(set(keys) - set(NAMES))
    if unknown:
        raise DataError(f"keys: expected names out of {', '.join(NAMES)}, got {unknown[0]}")
    if "stress" in keys and "virial" in keys:
        raise DataError("keys: expected stress or virial, which is stress times volume, got both")
    values = [{name: _column(atoms, key) for name, key in keys.items()} for atoms in frames]
    for name, key in keys.items():
        if all_columns and all(found[name] is None for found in values):
            raise DataError(
                f"keys: expected a column {key} to read {name} from, found it in no frame; the "
                f"first has {', '.join(_columns(frames[0])[:_LISTED])}"
            )
    for number, (atoms, found) in enumerate(zip(frames, values, strict=True)):
        for name in found:
            _forget(atoms, name)
        for name, value in found.items():
            if value is not None:
                try:
                    _store(atoms, name, value)
                except ValueError as error:
                    raise DataError(f"frame {number}, {keys[name]}: {error}") from None


def _column(atoms: Atoms, key: str) -> Any:
    results = getattr(atoms.calc, "results", None) or {}
    for place in (results, atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    return None


def _columns(atoms: Atoms) -> list[str]:
    """Names of all that a frame bears besides the structure itself."""
    results = getattr(atoms.calc, "results", None) or {}
    arrays = [key for key in atoms.arrays if key not in ("numbers", "positions")]
    return [*results, *atoms.info, *arrays] or ["none"]


def _forget(atoms: Atoms, name: str) -> None:
    """Remove what stands under our name."""
    results = getattr(atoms.calc, "results", None)
    for key in _STORED_AS[name]:
        if name != "total_charge":  # an array called charge holds charges of atoms
            atoms.arrays.pop(key, None)
            if results:
                results.pop(key, None)
        if name != "charges":
            atoms.info.pop(key, None)


def _store(atoms: Atoms, name: str, value: Any) -> None:
    if name == "virial":
        stress = _stress_of_virial(atoms, value)
        if stress is not None:
            atoms.info["stress"] = stress
    elif name in _PER_ATOM:
        array = np.asarray(value)
        if array.shape[:1] != (len(atoms),):
            raise ValueError(f"expected one row per atom, {len(atoms)}, got shape {array.shape}")
        atoms.arrays[name] = array
    else:
        atoms.info["charge" if name == "total_charge" else name] = value


def _stress_of_virial(atoms: Atoms, virial: Any) -> Any:
    """Stress (3, 3) in eV/Å³; None without a volume."""
    if np.size(virial) != 9:
        raise ValueError(
            f"expected a virial of nine numbers, got {np.size(virial)}: of six, programs differ "
            "in the order; write the matrix"
        )
    if not atoms.pbc.all():
        return None
    return -np.asarray(virial, dtype=np.float64).reshape(3, 3) / atoms.get_volume()
