"""Extended XYZ, read by ASE and checked for what ASE's reader passes over.

ASE drops frames after an empty line and columns that `Properties` does not name, takes any text
for `pbc` as true, and puts atoms without a `pos` column at the origin.
"""

import re
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict
from ase.io.formats import open_with_compression

from phicalc.data.entries import Problem, Problems

_QUOTED = re.compile(r'"[^"]*"|\'[^\']*\'|\{[^}]*\}|\[[^\]]*\]')
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WORDED_CELL = re.compile(
    rf"(?i)[\w#%]*(?:lattice|cell|box|pbc|cryst1)[^\s=]*\s*[:=]?\s*(?:{_NUMBER}[\s,]+){{2}}{_NUMBER}"
)
"""A cell in the words of a plain comment: "CELL(abcABC): 10 10 10 90 90 90", "%PBC 3 3 3"."""


def read_extxyz(path: Path) -> tuple[list[Atoms], Problems]:
    """All frames of a file, gzipped or not, and what would be lost of it.

    Raises
    ------
    Exception
        Whatever ASE's reader trips over.
    """
    with open_with_compression(str(path), "r") as file:
        text = file.read()
    problems: Problems = {}
    headers: list[str] = []

    def parse(header: str) -> dict[str, Any]:
        # ASE parses one header after the other, so their number is that of the frame
        parsed: dict[str, Any] = key_val_str_to_dict(header)
        for problem in _header_problems(header, parsed):
            problems.setdefault(problem, []).append(len(headers))
        headers.append(header)
        return parsed

    # from memory: ASE goes back and forth in the file, which takes minutes in a gzipped one
    frames = ase.io.read(StringIO(text), index=":", format="extxyz", properties_parser=parse)
    assert isinstance(frames, list)
    for number, problem in _row_problems(text.splitlines()):
        problems.setdefault(problem, []).append(number)
    return frames, problems


def _header_problems(header: str, parsed: dict[str, Any]) -> Iterator[Problem]:
    """What a comment line says that ASE would not understand as it is meant."""
    bare = _QUOTED.sub("", header)
    keys = re.findall(r"([^\s=]+)\s*=", bare)
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield Problem(f"{key} twice in one header", "leave one")
    if "pbc" in parsed and not _is_pbc(parsed["pbc"]):
        yield Problem(f"pbc={parsed['pbc']!r}", 'write three of T and F, as in pbc="T T F"')
    if "Lattice" not in parsed:
        found = _WORDED_CELL.search(bare)
        if found:
            yield Problem(
                f'a cell in words ("{found.group().split()[0]} …")',
                'write it as Lattice="ax ay az bx by bz cx cy cz", in Å',
            )
    if "Properties" in parsed:
        columns = parsed["Properties"].split(":")[::3]
        if "pos" not in columns or not {"species", "Z"} & set(columns):
            yield Problem(
                f"Properties={parsed['Properties']}", "name the columns species (or Z) and pos"
            )


def _is_pbc(value: Any) -> bool:
    """Whether it is one or three truth values, or three of 0 and 1."""
    array = np.asarray(value)
    return bool(array.size in (1, 3) and array.dtype.kind in "bi" and np.isin(array, (0, 1)).all())


def _row_problems(lines: Sequence[str]) -> Iterator[tuple[int, Problem]]:
    """What the rows below the headers hold beyond what is read, with the number of the frame."""
    start, number = 0, 0
    while start < len(lines) and lines[start].strip():
        atoms, header = int(lines[start]), lines[start + 1] if start + 1 < len(lines) else ""
        rows = lines[start + 2 : start + 2 + atoms]
        named = re.search(r'Properties="?([^\s"]+)', header)
        if named:
            columns = sum(int(width) for width in named.group(1).split(":")[2::3])
            most = max((len(row.split()) for row in rows), default=0)
            if most > columns:
                yield (
                    number,
                    Problem(
                        f"{most} columns where Properties names {columns}",
                        "name each column in Properties, or remove it",
                    ),
                )
        start += 2 + atoms
        vectors = 0
        while start < len(lines) and lines[start].lstrip().startswith("VEC"):
            start, vectors = start + 1, vectors + 1
        if vectors and "=" in header:
            yield number, Problem("VEC lines below a header of keys", "write the cell as Lattice")
        number += 1
    for position, line in enumerate(lines[start:], start=start + 1):
        if line.strip():
            yield (
                number - 1,
                Problem(
                    f"an empty line {start + 1} and more in line {position}, after the last frame "
                    "that would be read,",
                    "remove empty lines between frames",
                ),
            )
            return
