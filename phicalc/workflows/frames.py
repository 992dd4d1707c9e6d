"""Trajectory files that grow frame by frame and can be cut back to an earlier length."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import TrajectoryWriter

from phicalc.workflows.conditions import conditions_of

Mark = dict[str, int]
"""How long a file is: what it takes to cut it back."""

_ARRAYS = ("momenta", "masses", "tags", "initial_charges", "initial_magmoms")
_TRAJECTORY_ITEMS = 32  # where ASE's ulm format keeps the number of items, then the table's place


class GrowingFile(Protocol):
    """A file that is appended to, whole pieces at a time."""

    path: Path

    def mark(self) -> Mark:
        """The present length, all of it flushed to the disk."""

    def cut(self, mark: Mark) -> None:
        """Drop what was written after the mark; needs no space on the disk."""

    def close(self) -> None:
        """Let go of the file."""


class TextFile:
    """Lines of text, flushed as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None

    def append(self, text: str) -> None:
        """Write a whole piece; an OSError may leave a part of it, for `cut` to remove."""
        if self._file is None:
            self._file = io.FileIO(self.path, "a")
        remaining = memoryview(text.encode())
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def mark(self) -> Mark:
        if self._file is not None:
            os.fsync(self._file.fileno())
        return {"bytes": self.path.stat().st_size if self.path.exists() else 0}

    def cut(self, mark: Mark) -> None:
        self.close()
        if self.path.exists():
            os.truncate(self.path, mark["bytes"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ExtxyzFile(TextFile):
    """Frames in extended XYZ, eight decimals."""

    def append_frame(self, frame: Atoms) -> None:
        self.append(as_extxyz(frame))


class TrajFile:
    """Frames in ASE's binary trajectory format, exact to the last bit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def append_frame(self, frame: Atoms) -> None:
        if self._writer is None:
            self._writer = TrajectoryWriter(self.path, "a")
        self._writer.write(frame)

    def mark(self) -> Mark:
        if self._writer is None:
            return self._read_mark()
        backend = self._writer.backend
        backend.fd.flush()
        os.fsync(backend.fd.fileno())
        return {
            "bytes": os.fstat(backend.fd.fileno()).st_size,
            "items": int(backend.nitems),
            "table": int(backend.pos0),
        }

    def cut(self, mark: Mark) -> None:
        self.close()
        if not self.path.exists():
            return
        if mark["bytes"]:
            # first, so that the file is readable at any moment; the table of the frames may have
            # moved on since the mark: its old place still holds it
            with self.path.open("r+b") as file:
                file.seek(_TRAJECTORY_ITEMS)
                file.write(np.array([mark["items"], mark["table"]], dtype="<i8").tobytes())
        os.truncate(self.path, mark["bytes"])

    def close(self) -> None:
        if self._writer is not None:
            # a full disk: the unwritten rest of a frame is what `cut` removes
            with contextlib.suppress(OSError):
                self._writer.backend.fd.close()
            self._writer = None

    def _read_mark(self) -> Mark:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return {"bytes": 0, "items": 0, "table": 0}
        with self.path.open("rb") as file:
            file.seek(_TRAJECTORY_ITEMS)
            items, table = np.frombuffer(file.read(16), dtype="<i8").tolist()
        return {"bytes": self.path.stat().st_size, "items": items, "table": table}


def snapshot(atoms: Atoms, properties: tuple[str, ...] = (), **info: float) -> Atoms:
    """A frame: the structure, its momenta, and what the calculator has computed for it.

    Parameters
    ----------
    atoms
        The structure with its calculator.
    properties
        ASE properties to compute where the calculator has not done so yet.
    info
        Numbers to keep with the frame, beside the total charge and the field it was computed in.
    """
    frame = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    for name in _ARRAYS:
        if atoms.has(name):
            frame.set_array(name, atoms.get_array(name))
    # symmetry is no property of a frame, and ASE cannot read that constraint back
    frame.constraints = [c for c in atoms.constraints if not isinstance(c, FixSymmetry)]
    frame.info |= conditions_of(atoms) | info
    frame.calc = _Results(frame, **_results(atoms, properties))
    return frame


class _Results(SinglePointCalculator):
    """Results that belong to their frame without ASE's comparing it for each of them."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        return []


def as_extxyz(frame: Atoms) -> str:
    """A frame as text in extended XYZ.

    Results of one matrix per atom, Born charges, become nine columns, row after row: number
    3 i + j is [a, i, j].
    """
    results = {} if frame.calc is None else frame.calc.results
    flat = {
        name: value.reshape(len(frame), -1)
        for name, value in results.items()
        if np.ndim(value) == 3
    }
    if flat:
        written = frame.copy()
        written.calc = _Results(written, **results | flat)
        frame = written
    text = io.StringIO()
    write_extxyz(text, frame)
    return text.getvalue()


def _results(atoms: Atoms, properties: tuple[str, ...]) -> dict[str, Any]:
    """Copies of the calculator's results, by ASE's names."""
    results = {}
    for name in all_properties:
        try:
            value = atoms.calc.get_property(name, atoms, allow_calculation=name in properties)
        except PropertyNotImplementedError:
            if name in properties:
                raise
            continue
        if value is not None:
            results[name] = np.array(value) if np.ndim(value) else float(value)
    return results
