"""Structures and their labels from files."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray

from phicalc.errors import DataError

Array = NDArray[np.float64]

LABELS = ("energy", "forces", "stress", "charges", "dipole")
"""Names a training set may be asked for, as in `phicalc.fields`."""

_LISTED = 10


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known about one structure; None where the data does not say.

    Attributes
    ----------
    energy
        eV, the raw total.
    forces
        (N, 3) in eV/Å.
    stress
        (3, 3) in eV/Å³, ASE sign: tension positive.
    charges
        (N,) in e.
    dipole
        (3,) in e·Å.
    total_charge
        e.
    """

    energy: float | None = None
    forces: Array | None = None
    stress: Array | None = None
    charges: Array | None = None
    dipole: Array | None = None
    total_charge: float = 0.0

    @property
    def present(self) -> frozenset[str]:
        """Names of the labels that are not None."""
        return frozenset(name for name in LABELS if getattr(self, name) is not None)

    def only(self, names: Collection[str]) -> "Labels":
        """The same with all other labels left out (the total charge stays)."""
        dropped: dict[str, Any] = {name: None for name in LABELS if name not in names}
        return replace(self, **dropped)

    def filled(self, names: Collection[str], number: int) -> "Labels":
        """The same with NaN for those of ``names`` that a structure of ``number`` atoms lacks."""
        shapes = {
            "energy": (),
            "forces": (number, 3),
            "stress": (3, 3),
            "charges": (number,),
            "dipole": (3,),
        }
        absent: dict[str, Any] = {
            name: np.full(shapes[name], np.nan) for name in names if name not in self.present
        }
        return replace(self, **absent)


def read_structures(path: str | Path) -> list[Atoms]:
    """All structures of a file: extxyz, gzipped or not, or any other format that ASE reads.

    Raises
    ------
    DataError
        No such file, a format ASE doesn't know, a damaged file or one without structures.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"expected a file of structures, got {path}, which does not exist")
    try:
        frames = ase.io.read(path, index=":")
    except UnknownFileTypeError as error:
        raise DataError(
            f"expected a format that ASE reads, got {path} ({error}); convert it to extxyz"
        ) from error
    except Exception as error:  # ASE's readers raise whatever their parsing trips over
        raise DataError(
            f"expected a sound file of structures, got {path}, which ASE can't read "
            f"({type(error).__name__}: {error}); check that it is complete"
        ) from error
    frames = frames if isinstance(frames, list) else [frames]
    if not frames:
        raise DataError(f"expected at least one structure, got none in {path}")
    return frames


def labels_of(atoms: Atoms) -> Labels:
    """Labels of a structure, from its calculator's stored results, arrays and info.

    Stored results win over `info` and `arrays`. Charges are the column `charges` or `charge`, or
    initial charges that aren't all zero; the total charge is `info["charge"]`, else 0. No
    calculation is ever started. The energy is `energy`, or `free_energy` if only that is there.

    Raises
    ------
    DataError
        A label of the wrong shape or not a number, or results that belong to another geometry.
    """
    results = _stored_results(atoms)
    charges = _first(results.get("charges"), atoms.arrays, "charges", "charge")
    if charges is None and np.any(atoms.arrays.get("initial_charges", 0.0)):
        charges = atoms.arrays["initial_charges"]
    energy = _first(results.get("energy", results.get("free_energy")), atoms.info, "energy")
    forces = _first(results.get("forces"), atoms.arrays, "forces")
    stress = _first(results.get("stress"), atoms.info, "stress")
    dipole = _first(results.get("dipole"), atoms.info, "dipole")
    number = len(atoms)
    return Labels(
        energy=None if energy is None else float(_array("energy", energy, ())),
        forces=None if forces is None else _array("forces", forces, (number, 3)),
        stress=None if stress is None else _stress(stress),
        charges=None if charges is None else _array("charges", charges, (number,)),
        dipole=None if dipole is None else _array("dipole", dipole, (3,)),
        total_charge=total_charge_of(atoms),
    )


def is_defined(name: str, atoms: Atoms) -> bool:
    """Whether a label means anything: stress of bulk only, dipole of molecules only."""
    if name == "stress":
        return bool(atoms.pbc.all())
    return name != "dipole" or not atoms.pbc.any()


def total_charge_of(atoms: Atoms) -> float:
    """Total charge in e: `info["charge"]`, 0 where it is not given.

    Raises
    ------
    DataError
        Not a number.
    """
    charge = atoms.info.get("charge")
    return 0.0 if charge is None else float(_array('total charge (info["charge"])', charge, ()))


def check_labels(
    frames: Sequence[Atoms],
    needed: Collection[str],
    max_force: float = 100.0,
    partial: Collection[str] = (),
) -> None:
    """A training set that has every needed label, finite and not absurd.

    In every frame, but for those that ``partial`` names. What is not defined for a frame's
    periodicity (:func:`is_defined`) is not looked at.

    Parameters
    ----------
    frames
        Structures, numbered from 0 in messages (as `ase.io.read` counts them).
    needed
        Some of `LABELS`.
    max_force
        eV/Å; longer force vectors are reported as absurd.
    partial
        Those of the needed labels that some frames, but not all, may lack.

    Raises
    ------
    DataError
        All problems at once, each with its frame numbers.
    """
    unknown = sorted(set(needed) - set(LABELS))
    if unknown:
        raise DataError(f"expected labels out of {', '.join(LABELS)}, got {', '.join(unknown)}")
    if not frames:
        raise DataError("expected at least one structure, got none")
    problems: dict[str, list[int]] = {}
    for number, atoms in enumerate(frames):
        for problem in _problems(atoms, needed, max_force):
            problems.setdefault(problem, []).append(number)
    for name in partial:
        if len(problems.get(f"no {name}", frames)) < len(frames):
            del problems[f"no {name}"]
    if problems:
        for name in needed:
            if len(problems.get(f"no {name}", ())) == len(frames):
                problems[f"no {name}{_similar(frames[0], name)}"] = problems.pop(f"no {name}")
        lines = [_sentence(problem, bad, len(frames)) for problem, bad in problems.items()]
        where = "in some of" if set(needed) <= set(partial) else "in each of"
        raise DataError(
            f"expected {_and(needed)} {where} {len(frames)} frames (numbered from 0), got\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nmend or remove these frames, or train without that label"
        )


def _problems(atoms: Atoms, needed: Collection[str], max_force: float) -> Iterator[str]:
    """What is wrong with one frame."""
    if len(atoms) == 0:
        yield "no atoms"
        return
    if not np.isfinite(atoms.positions).all():
        yield "NaN or infinite positions"
    try:
        labels = labels_of(atoms)
    except DataError as error:
        yield str(error)
        return
    for name in LABELS:
        if name not in needed:
            continue
        value = getattr(labels, name)
        if value is None:
            yield f"no {name}"
        elif not is_defined(name, atoms):
            continue
        elif not np.isfinite(value).all():
            yield f"NaN or infinite {name}"
        elif name == "forces" and np.linalg.norm(value, axis=1).max() > max_force:
            yield f"absurd forces (beyond {max_force:g} eV/Å)"
    if np.any(atoms.info.get("external_field", 0.0)):
        yield 'an electric field (info["external_field"]), in which no model is trained or judged,'
    if not np.isfinite(labels.total_charge):
        yield "NaN or infinite total charge"


def _sentence(problem: str, bad: Sequence[int], total: int) -> str:
    if len(bad) == total:
        return f"{problem} in {'any frame' if problem.startswith('no ') else 'all frames'}"
    shown = ", ".join(str(number) for number in bad[:_LISTED])
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return f"{problem} in frame{'s' if len(bad) > 1 else ''} {shown}{more}"


def _similar(atoms: Atoms, name: str) -> str:
    """Keys of the frame that look like the missing label under another name."""
    keys = [key for key in (*atoms.info, *atoms.arrays) if name.rstrip("s") in key.lower()]
    return f" (but {', '.join(keys)}: rename it to {name})" if keys else ""


def _and(names: Collection[str]) -> str:
    return " and ".join(name for name in LABELS if name in names) or "finite positions"


def _stored_results(atoms: Atoms) -> dict[str, Any]:
    """Results that a calculator already holds for this very geometry."""
    calculator = atoms.calc
    results = getattr(calculator, "results", None)
    if not results:
        return {}
    if {"positions", "numbers", "cell", "pbc"} & set(calculator.check_state(atoms)):
        raise DataError(
            "expected labels of the structure itself, got results of another geometry; "
            "calculate it again or store each frame with its own SinglePointCalculator"
        )
    return dict(results)


def _first(found: Any, stored: dict[str, Any], *names: str) -> Any:
    for name in names:
        if found is None:
            found = stored.get(name)
    return found


def _array(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected {name} as numbers, got {value!r}") from error
    if array.size != int(np.prod(shape)) or (len(shape) > 1 and array.shape != shape):
        raise DataError(f"expected {name} of shape {shape}, got {array.shape}")
    return array.reshape(shape)


def _stress(value: Any) -> Array:
    """(3, 3) from Voigt-6 (xx, yy, zz, yz, xz, xy), nine numbers or a matrix."""
    if np.size(value) == 6:
        return _array("stress", value, (6,))[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    return _array("stress", np.reshape(value, (3, 3)) if np.size(value) == 9 else value, (3, 3))


assert set(LABELS) | {"total_charge"} == {entry.name for entry in fields(Labels)}
