"""Structures and their labels from files."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype
from numpy.typing import NDArray

from phicalc.checks.conditions import external_field, name_spins, total_charge
from phicalc.checks.structure import list_frames
from phicalc.data.entries import entry_problems, is_unit_of, refuse, unit_problem
from phicalc.data.extxyz import read_extxyz
from phicalc.data.formats import complete
from phicalc.data.names import similar
from phicalc.data.soundness import MAXIMUM_FORCE, absurd, unsound
from phicalc.data.symbols import unknown_symbol
from phicalc.errors import DataError, StructureError
from phicalc.fields import LABELS, PROPERTY

Array = NDArray[np.float64]


class Labels:
    """What is known about one structure; None where the data does not say.

    Parameters
    ----------
    total_charge
        e.
    values
        By the names of :data:`phicalc.fields.LABELS`, shapes and units as there: energy the raw
        total, stress (3, 3) of ASE's sign (tension positive).
    ignored
        Names of labels that are there and mean nothing for the structure's periodicity.
    """

    def __init__(
        self, *, total_charge: float = 0.0, ignored: Collection[str] = (), **values: Any
    ) -> None:
        assert set(values) <= set(LABELS), set(values) - set(LABELS)
        self.total_charge, self.ignored = total_charge, tuple(ignored)
        self._values = {name: value for name, value in values.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name in LABELS:
            return self._values.get(name)
        raise AttributeError(name)

    @property
    def present(self) -> frozenset[str]:
        """Names of the labels that are not None."""
        return frozenset(self._values)

    def only(self, names: Collection[str]) -> "Labels":
        """The same with all other labels left out (the total charge stays)."""
        kept = {name: value for name, value in self._values.items() if name in names}
        return Labels(total_charge=self.total_charge, ignored=self.ignored, **kept)

    def filled(self, names: Collection[str], number: int) -> "Labels":
        """The same with NaN for those of ``names`` that a structure of ``number`` atoms lacks."""
        absent = {name: np.full(PROPERTY[name].shape_of(number), np.nan) for name in names}
        everything = {**absent, **self._values}
        return Labels(total_charge=self.total_charge, ignored=self.ignored, **everything)


def read_structures(path: str | Path) -> list[Atoms]:
    """All structures of a file: extxyz, gzipped or not, or any other format that ASE reads.

    Every command reads its structures here, so that nothing that a file says about cell,
    periodicity, sites, charge, frames or units is dropped unsaid.

    Raises
    ------
    DataError
        No such file, a format ASE doesn't know, a damaged file or one without structures; or one
        that says what would be left out, with the frames (from 0) and how to mend it.
    """
    path = Path(path)
    require_file(path)
    try:
        form = filetype(str(path))
        if form == "extxyz":
            frames, problems = read_extxyz(path)
        else:
            # "@" in a name is no choice of frames
            read = ase.io.read(path, index=":", format=form, do_not_split_by_at_sign=True)
            frames, problems = (read if isinstance(read, list) else [read]), {}
        if frames:
            lost = list(complete(path, form, frames))
            problems.update({problem: list(range(len(frames))) for problem in lost})
    except UnknownFileTypeError as error:
        raise DataError(
            f"expected a format that ASE reads, got {path} ({error}); convert it to extxyz"
        ) from error
    except Exception as error:  # ASE's readers raise whatever their parsing trips over
        if (names := unknown_symbol(error)) is not None:
            raise DataError(f"{path}: {names}") from error
        raise DataError(
            f"expected a sound file of structures, got {path}, which ASE can't read "
            f"({type(error).__name__}: {error}); check that it is complete"
        ) from error
    if not frames:
        raise DataError(f"expected at least one structure, got none in {path}")
    for number, atoms in enumerate(frames):
        for problem in entry_problems(atoms):
            problems.setdefault(problem, []).append(number)
    refuse(path, problems, len(frames))
    return frames


def require_file(path: Path) -> None:
    """Raise DataError where there is no such file of structures."""
    if not path.is_file():
        raise DataError(f"expected a file of structures, got {path}, which does not exist")


def labels_of(atoms: Atoms, names: Collection[str] = LABELS) -> Labels:
    """Labels of a structure, from its calculator's stored results, arrays and info.

    Stored results win over `info` and `arrays`. Charges are the column `charges` or `charge`, or
    initial charges that aren't all zero; the total charge is `info["charge"]`, else 0. No
    calculation is ever started. The energy is `energy`, or `free_energy` if only that is there.

    Parameters
    ----------
    names
        Labels to look at; others are None, whatever the structure has there.

    Raises
    ------
    DataError
        A label of the wrong shape or not a number, or results that belong to another geometry.
    """
    results = _stored_results(atoms)
    found = {name: _label(atoms, results, name) for name in names}
    return Labels(**found, total_charge=total_charge_of(atoms))


def labels_in_some(frames: Sequence[Atoms], names: Collection[str] = LABELS) -> list[str]:
    """Those of the labels that at least one structure has and that are defined for it.

    What has another shape than a label in each of them (|μ| as dipole, dipoles per atom) is
    something else by that name, and no label.

    Raises
    ------
    DataError
        Results that belong to another geometry.
    """
    missing = set(names)
    for atoms in frames:
        if not missing:  # no need to look at all of them
            break
        results = _stored_results(atoms)
        missing -= {n for n in missing if is_defined(n, atoms) and _is_label(atoms, results, n)}
    return [name for name in LABELS if name in set(names) - missing]


def has_label(atoms: Atoms, name: str) -> bool:
    """Whether a structure has something under the name of a label, whatever its shape.

    Raises
    ------
    DataError
        Results that belong to another geometry.
    """
    return _stored(atoms, _stored_results(atoms), name) is not None


def is_defined(name: str, atoms: Atoms) -> bool:
    """Whether a label means anything: stress of bulk only, dipole of molecules only."""
    return PROPERTY[name].is_defined(int(atoms.pbc.sum()))


def total_charge_of(atoms: Atoms) -> float:
    """Total charge in e: `info["charge"]`, 0 where it is not given.

    Raises
    ------
    DataError
        Not a number, or given under another name; see `phicalc.checks.conditions`.
    """
    try:
        return total_charge(atoms)
    except StructureError as error:
        raise DataError(str(error)) from None


def check_labels(
    frames: Sequence[Atoms],
    needed: Collection[str],
    max_force: float = MAXIMUM_FORCE,
    partial: Collection[str] = (),
) -> list[Labels]:
    """Labels of a training set that has every needed one, finite and not absurd.

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

    Returns
    -------
    list of Labels
        Of each frame the needed ones that are defined for it, and which are ignored.

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
    first: dict[str, str] = {}
    found: list[Labels] = []
    for number, atoms in enumerate(frames):
        for problem in _problems(atoms, needed, max_force, found):
            # of one kind, whatever the numbers that a frame has there
            kind = first.setdefault(problem.partition(", got ")[0], problem)
            problems.setdefault(kind, []).append(number)
    for name in partial:
        if len(problems.get(f"no {name}", frames)) < len(frames):
            del problems[f"no {name}"]
    if problems:
        hints = ""
        for name in needed:
            lacking = problems.get(f"no {name}")
            if lacking:
                hint = similar(frames[lacking[0]], name)
                hints += hint
                problems[f"no {name}{hint}"] = problems.pop(f"no {name}")
        lines = [_sentence(problem, bad, len(frames)) for problem, bad in problems.items()]
        where = "in some of" if set(needed) <= set(partial) else "in each of"
        raise DataError(
            f"expected {_and(needed)} {where} {len(frames)} frames (numbered from 0), got\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nmend or remove these frames, "
            + ("name the column (data.keys, or eval --key), " if hints else "")
            + "or train without that label"
        )
    name_spins(frames, [labels.total_charge for labels in found], labelled=True)
    return found


def _problems(
    atoms: Atoms, needed: Collection[str], max_force: float, found: list[Labels]
) -> Iterator[str]:
    """What is wrong with one frame; its labels are added to those found, if they can be read."""
    if len(atoms) == 0:
        yield "no atoms"
        return
    if not np.isfinite(atoms.positions).all():
        yield "NaN or infinite positions"
    else:
        yield from unsound(atoms)
    try:
        if external_field(atoms).any():
            yield (
                'an electric field (info["external_field"]), in which no model is trained or '
                "judged,"
            )
        results, total = _stored_results(atoms), total_charge_of(atoms)
        there = [n for n in LABELS if n in needed and _stored(atoms, results, n) is not None]
        ignored = [name for name in there if not is_defined(name, atoms)]
        values = {n: _label(atoms, results, n) for n in there if n not in ignored}
    except (DataError, StructureError) as error:
        yield str(error)
        return
    found.append(Labels(total_charge=total, ignored=ignored, **values))
    yield from (f"no {name}" for name in LABELS if name in needed and name not in there)
    for name, value in values.items():
        if not np.isfinite(value).all():
            yield f"NaN or infinite {name}"
        else:
            yield from absurd(name, value, atoms, max_force)
    for key, value in atoms.info.items():
        if is_unit_of(key, needed):
            yield from (f"{what} ({mend})" for what, mend in unit_problem(str(key), value))


def _sentence(problem: str, bad: Sequence[int], total: int) -> str:
    """A problem with its frames, before what is said of how to mend it."""
    what, mark, mend = problem.partition("; ") if ", got " in problem else (problem, "", "")
    if len(bad) == total and (total > 1 or not mark):
        where = "any frame" if problem.startswith("no ") else "all frames"
    elif mark and len(bad) > 1:
        where = f"frame {bad[0]} (alike in {list_frames(bad[1:])})"
    else:
        where = list_frames(bad)
    return f"{what} in {where}{mark}{mend}"


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


def _label(atoms: Atoms, results: dict[str, Any], name: str) -> Any:
    """A label in its own shape; None where there is none."""
    value = _stored(atoms, results, name)
    if value is None:
        return None
    if name == "stress":
        return _stress(value)
    array = _array(name, value, PROPERTY[name].shape_of(len(atoms)))
    return float(array) if name == "energy" else array


def _is_label(atoms: Atoms, results: dict[str, Any], name: str) -> bool:
    """Whether what has the name of a label has its shape, too."""
    try:
        return _label(atoms, results, name) is not None
    except DataError:
        return False


def _stored(atoms: Atoms, results: dict[str, Any], name: str) -> Any:
    """What a structure has under the name of a label; None: nothing."""
    if name == "charges":
        found = _first(results.get("charges"), atoms.arrays, "charges", "charge")
        initial = atoms.arrays.get("initial_charges")
        return initial if found is None and initial is not None and initial.any() else found
    if name == "energy":
        found = results.get("energy", results.get("free_energy"))
        return _first(found, atoms.info, "energy")
    per_atom = PROPERTY[name].per == "atom"
    return _first(results.get(name), atoms.arrays if per_atom else atoms.info, name)


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
