"""What the entries of a structure that was read say about its cell, periodicity, sites and units.

A file may say it under a name that its reader does not know (`lattice`, `PBC`, `energy_unit` …).
Such an entry is harmless where it says what the structure is anyway; everything else is refused,
as the result would be that of another system. (Total charge, field and spin:
:mod:`phicalc.checks.conditions`.)
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from phicalc.checks.conditions import kind_of, numbers_of, plain
from phicalc.checks.structure import list_frames
from phicalc.errors import DataError

Array = NDArray[np.float64]

LENGTHS = ("", "length", "position", "pos", "distance", "coord", "coordinate", "cell", "lattice")
"""What a name ending in "unit" or "units" may begin with to mean the unit of all lengths."""

_OWN_UNIT = re.compile("ase|metal|ev|(ev|e)?(/|per)?(angs?|angstr(o|ö)ms?|a|å)[23]?|e")


class Problem(NamedTuple):
    """Something in a file that would be lost."""

    what: str
    mend: str


Problems = dict[Problem, list[int]]
"""Problems and the frames that have them."""


def refuse(path: object, problems: Problems, total: int) -> None:
    """Raise a DataError that names all problems with their frames, if there are any."""
    if not problems:
        return
    lines = [
        f"{problem.what} in {'all frames' if len(bad) == total > 1 else list_frames(bad)}: "
        f"{problem.mend}"
        for problem, bad in problems.items()
    ]
    if len(lines) == 1:
        raise DataError(f"{path}: expected no entry that would be left out, got {lines[0]}")
    raise DataError(
        f"{path}: expected no entries that would be left out, got\n"
        + "\n".join(f"  - {line}" for line in lines)
    )


def entry_problems(atoms: Atoms) -> Iterator[Problem]:
    """Entries of `info` and `arrays` that contradict the structure or its units."""
    for key, value in atoms.info.items():
        kind = kind_of(key)
        if kind == "cell":
            yield from _cell(str(key), value, atoms)
        elif kind == "pbc":
            yield from _pbc(str(key), value, atoms)
        elif kind == "columns" and isinstance(value, str) and ":" in value:
            yield Problem(f"{key}= in place of Properties=", "write it as Properties")
        elif is_unit_of(key, LENGTHS):
            yield from unit_problem(str(key), value)
        elif kind == "occupancy":
            yield from _site_occupancies(value)
    for key, column in atoms.arrays.items():
        if kind_of(key) == "occupancy" and column.dtype.kind in "fi":
            partly = int(np.count_nonzero(np.abs(column - 1) > 1e-3))
            if partly:
                yield Problem(f"{partly} atoms of an occupancy other than 1", _ORDERED)


def is_unit_of(key: object, names: Collection[str]) -> bool:
    """Whether a key such as "energy_units" gives the unit of one of these quantities."""
    if kind_of(key) != "unit":
        return False
    quantity = plain(key).removesuffix("s").removesuffix("unit")
    return bool({quantity, quantity.removesuffix("s"), f"{quantity}s"} & set(names))


def unit_problem(key: str, value: Any) -> Iterator[Problem]:
    """A unit that is not made of eV, Å and e."""
    said = re.sub(r"[\s^*·,]|\band\b", "", value.lower()) if isinstance(value, str) else ""
    if said and not _OWN_UNIT.fullmatch(said):
        yield Problem(f"{key}={value}", "convert to eV, Å and e, and leave the key out")


def check_columns(atoms: Atoms, *wanted: str) -> None:
    """What a simulation uses of a structure stands where it finds it.

    Parameters
    ----------
    wanted
        Some of masses, momenta and move_mask.

    Raises
    ------
    DataError
        It stands only under a name that nothing reads.
    """
    for key, column in atoms.arrays.items():
        kind = kind_of(key)
        if kind not in wanted or column.dtype.kind not in "fib":
            continue
        if kind == "masses":
            lost = column.ndim == 1 and not np.allclose(column, atoms.get_masses(), atol=0.02)
        elif kind == "momenta":
            lost = column.shape == (len(atoms), 3) and not atoms.has("momenta")
        else:
            lost = not atoms.constraints and bool(np.ptp(column.astype(float)))
        if lost:
            raise DataError(
                f"expected no column that would be left out, got {key}; make it {kind} "
                f"({_OWN_COLUMNS[str(kind)]}), or remove it"
            )


_OWN_COLUMNS = {
    "masses": "in u",
    "momenta": "mass times velocity in ASE's units",
    "move_mask": "T or F",
}
_ORDERED = "choose an ordered structure, each site with one atom"


def _cell(key: str, value: Any, atoms: Atoms) -> Iterator[Problem]:
    """A cell under another name that is not the structure's own."""
    stated = numbers_of(value.replace(",", " ").split() if isinstance(value, str) else value)
    if stated is None or stated.size not in (1, 3, 6, 9) or not stated.any():
        return
    own = atoms.cell
    stated = stated.ravel()
    if own.any():
        if stated.size == 1:  # such as the lattice constant behind a primitive cell
            return
        known: list[Array] = {
            3: [own.lengths()],
            6: [own.cellpar()],
            9: [own.array.ravel(), own.array.T.ravel()],
        }[stated.size]
        if any(np.allclose(stated, one, rtol=1e-4, atol=1e-3) for one in known):
            return
        yield Problem(f"a second cell as {key}=", "leave the one that is meant")
    else:
        yield Problem(
            f"a cell as {key}=",
            'write it as Lattice="ax ay az bx by bz cx cy cz", in Å',
        )


def _pbc(key: str, value: Any, atoms: Atoms) -> Iterator[Problem]:
    """Periodic directions under another name that are not the structure's own."""
    stated = _directions(value)
    if stated is None and plain(key) != "pbc":
        return
    if stated is None or stated != atoms.pbc.tolist():
        yield Problem(
            f"periodic directions as {key}={value!r}", 'write them as pbc="T T F", or remove them'
        )


def _directions(value: Any) -> list[bool] | None:
    """Three truth values from T, true, 1, p, … in any form; None where they are none."""
    words = value.replace(",", " ").split() if isinstance(value, str) else np.ravel(value).tolist()
    if len(words) == 1 and isinstance(words[0], str) and len(words[0]) == 3:
        words = list(words[0])
    meaning = {"t": True, "true": True, "1": True, "p": True, "pp": True, "yes": True}
    meaning |= {"f": False, "false": False, "0": False, "no": False, "none": False}
    found = [meaning.get(str(word).lower()) for word in words]
    if len(found) not in (1, 3) or None in found:
        return None
    return [bool(one) for one in (found * 3)[:3]]


def _site_occupancies(value: Any) -> Iterator[Problem]:
    """Sites of a CIF that are shared or partly empty: ASE keeps their largest part."""
    if not isinstance(value, dict):
        return
    sites: Sequence[Any] = [site for site in value.values() if isinstance(site, dict)]
    known = [{symbol: _share(share) for symbol, share in site.items()} for site in sites]
    partly = [site for site in known if len(site) > 1 or abs(sum(site.values()) - 1) > 1e-3]
    if partly:
        shown = " ".join(f"{symbol} {share:g}" for symbol, share in partly[0].items())
        yield Problem(f"disordered sites, such as {shown},", _ORDERED)


def _share(stated: Any) -> float:
    """An occupancy; "." and "?" of a CIF, not said, mean its default of 1."""
    return 1.0 if stated in (".", "?") else float(stated)
