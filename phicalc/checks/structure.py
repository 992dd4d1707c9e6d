"""Input validation in one voice: "expected …, got …", then how to mend it.

Every function takes plain numpy arrays, costs microseconds and raises a typed error from
`phicalc.errors`, so that the calculator can call it at every step of a simulation.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from phicalc.errors import StructureError, UnsupportedError

Array = NDArray[np.float64]

MINIMUM_DISTANCE = 0.01
"""Atoms closer than this (Å) sit on one spot: no force there means anything."""

MINIMUM_CELL_VECTOR = 0.1
"""Å; a shorter periodic cell vector puts an atom on its own image."""

MINIMUM_CELL_HEIGHT = 1e-3
"""Å; smallest singular value of the periodic cell vectors, below which they are dependent."""

MAXIMUM_DENSITY = 10.0
"""Atoms per Å³, some sixty times diamond: more have too many neighbours to be listed."""

MAXIMUM_COORDINATE = 1e10
"""Å; beyond it float64 resolves no distances between atoms."""

_LISTED, _LISTED_FRAMES = 5, 10


def check_positions(positions: NDArray[np.float64]) -> None:
    """Positions of at least one atom, all finite.

    Parameters
    ----------
    positions
        (N, 3) in Å.

    Raises
    ------
    StructureError
        Wrong shape, no atoms, NaN, infinity or beyond `MAXIMUM_COORDINATE`.
    """
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise StructureError(f"expected positions of shape (N, 3), got {positions.shape}")
    if len(positions) == 0:
        raise StructureError("expected at least one atom, got an empty structure; add atoms first")
    # NaN fails the comparison too, so one pass finds all that is wrong
    if not np.abs(positions).max() <= MAXIMUM_COORDINATE:
        bad = np.flatnonzero(~(np.abs(positions) <= MAXIMUM_COORDINATE).all(axis=1))
        raise StructureError(
            f"expected finite positions, got NaN, infinity or more than {MAXIMUM_COORDINATE:g} Å "
            f"for {_atoms(bad)}; a simulation that blew up needs a smaller time step or a "
            "relaxed start"
        )


def check_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> None:
    """Cell vectors that are finite and, along periodic directions, linearly independent.

    Parameters
    ----------
    cell
        (3, 3) in Å, rows are cell vectors; rows of non-periodic directions may be zero.
    pbc
        (3,) periodic directions.

    Raises
    ------
    StructureError
        Wrong shape, NaN or infinity, or a periodic cell without volume.
    """
    if cell.shape != (3, 3):
        raise StructureError(f"expected a cell of shape (3, 3), got {cell.shape}")
    if not np.isfinite(cell).all():
        raise StructureError("expected finite cell vectors, got NaN or infinity; set them anew")
    if not pbc.any():
        return
    vectors = cell[pbc]
    shortest = np.sqrt((vectors * vectors).sum(axis=1).min())
    height = np.linalg.svd(vectors, compute_uv=False)[-1]
    if shortest < MINIMUM_CELL_VECTOR or height < MINIMUM_CELL_HEIGHT:
        raise StructureError(
            "expected linearly independent cell vectors along the periodic directions, "
            f"got a cell of zero volume (pbc {pbc.tolist()}, cell {cell.tolist()}); "
            "set the cell, or pbc=False along directions that are not periodic"
        )


def check_density(number: int, cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> None:
    """A cell that has not collapsed onto its atoms.

    Parameters
    ----------
    number
        N atoms in the cell.
    cell, pbc
        (3, 3) in Å and (3,); only cells periodic in three directions have a density.

    Raises
    ------
    StructureError
        More than `MAXIMUM_DENSITY`.
    """
    if not pbc.all():
        return
    volume = abs(float(np.linalg.det(cell)))
    if number > MAXIMUM_DENSITY * volume:
        raise StructureError(
            f"expected at most {MAXIMUM_DENSITY:g} atoms per Å³, got {number} in a cell of "
            f"{volume:.2g} Å³; correct the cell, or its unit, which is Å"
        )


def check_species(species: NDArray[np.int64], elements: Collection[int]) -> None:
    """Atomic numbers that the model knows.

    Parameters
    ----------
    species
        (N,) atomic numbers.
    elements
        Atomic numbers that the model was trained on.

    Raises
    ------
    UnsupportedError
        An element outside of `elements`.
    """
    unknown = sorted(set(np.asarray(species).tolist()) - set(elements))
    if unknown:
        raise UnsupportedError(
            f"expected only elements that the model knows ({_symbols(sorted(elements))}), "
            f"got {_symbols(unknown)}; use a model trained on these elements"
        )


def check_pbc(pbc: NDArray[np.bool_], purpose: str) -> None:
    """No or all three directions periodic, for what is not defined in between.

    Parameters
    ----------
    pbc
        (3,) periodic directions.
    purpose
        What needs it, as the message names it: "stress", "this model's Ewald sum" …

    Raises
    ------
    UnsupportedError
        One or two periodic directions.
    """
    if 0 < np.count_nonzero(pbc) < 3:
        raise UnsupportedError(
            f"expected no or three periodic directions for {purpose}, got pbc "
            f"{np.asarray(pbc).tolist()}; add vacuum and set pbc=True, or set pbc=False"
        )


def check_separation(distance: float, pair: tuple[int, int]) -> None:
    """The closest pair of atoms (images included) is not on one spot.

    Parameters
    ----------
    distance
        Smallest distance in Å, infinity where there are no neighbours.
    pair
        The two atoms it belongs to; the same atom twice means its own periodic image.

    Raises
    ------
    StructureError
        Closer than `MINIMUM_DISTANCE`.
    """
    if distance < MINIMUM_DISTANCE:
        first, second = pair
        other = "its own periodic image" if first == second else f"atom {second}"
        raise StructureError(
            f"expected atoms at least {MINIMUM_DISTANCE} Å apart, got {distance:.2g} Å between "
            f"atom {first} and {other}; remove duplicate atoms or move them apart"
        )


def check_total_charge(charge: object) -> float:
    """The total charge as a finite number, in e.

    Raises
    ------
    StructureError
        Not one finite number.
    """
    try:
        value = float(np.asarray(charge, dtype=np.float64).item())
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise StructureError(
            f"expected the total charge as one finite number in e, got {charge!r}; "
            'set atoms.info["charge"] or charge= to a number'
        )
    return value


def total_charge(
    info: Mapping[str, Any], default: float | None, species: NDArray[np.int64]
) -> float:
    """Total charge in e of a structure: `info["charge"]`, else the default, else 0.

    Raises
    ------
    StructureError
        Not one finite number, or more than the charge of all nuclei.
    """
    charge = info.get("charge")
    if charge is None:
        charge = default
    value = 0.0 if charge is None else check_total_charge(charge)
    nuclei = int(species.sum())
    if abs(value) > nuclei:
        raise StructureError(
            f"expected a total charge of no more than all electrons, {nuclei} e, got {value:g} e; "
            'correct atoms.info["charge"] or charge='
        )
    return value


def external_field(info: Mapping[str, Any], default: NDArray[np.float64] | None) -> Array:
    """Electric field (3,) in V/Å: `info["external_field"]`, else the default, else 0.

    Raises
    ------
    StructureError
        Not three finite numbers.
    """
    field = info.get("external_field")
    if field is None:
        field = default
    return np.zeros(3) if field is None else check_field(field)


def check_field(field: object) -> NDArray[np.float64]:
    """A uniform electric field as three finite numbers, in V/Å.

    Raises
    ------
    StructureError
        Not three finite numbers.
    """
    try:
        value = np.array(field, dtype=np.float64)
    except (TypeError, ValueError):
        value = np.array(np.nan)
    if value.shape != (3,) or not np.isfinite(value).all():
        raise StructureError(
            f"expected an electric field as three finite numbers in V/Å, got {field!r}; "
            'set atoms.info["external_field"] or field= to (x, y, z)'
        )
    return value


def check_finite(results: Mapping[str, ArrayLike]) -> None:
    """A NaN is an error where it arises, not a hundred steps later.

    Raises
    ------
    StructureError
        A result holds NaN or infinity.
    """
    bad = [name for name, value in results.items() if not np.isfinite(value).all()]
    if not bad:
        return
    rows = np.flatnonzero(~np.isfinite(np.asarray(results["forces"])).all(axis=1))
    where = f" (forces on {len(rows)} atoms, first {rows[0]})" if len(rows) else ""
    raise StructureError(
        f"expected finite results, got NaN or infinity in {', '.join(bad)}{where}; the structure "
        "is far from all that the model was trained on: look for atoms too close to each other"
    )


def check_structure(
    species: ArrayLike,
    positions: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    elements: Collection[int] | None = None,
) -> None:
    """All that can be said about a structure without its neighbours.

    Parameters
    ----------
    species, positions, cell, pbc
        (N,), (N, 3) in Å, (3, 3) in Å and (3,), as in the functions above.
    elements
        Atomic numbers that the model knows; None: any element.

    Raises
    ------
    StructureError, UnsupportedError
        See `check_positions`, `check_cell` and `check_species`.
    """
    position_array = np.asarray(positions, dtype=np.float64)
    species_array = np.asarray(species, dtype=np.int64)
    check_positions(position_array)
    if species_array.shape != (len(position_array),):
        raise StructureError(
            f"expected one atomic number per atom, ({len(position_array)},), "
            f"got {species_array.shape}"
        )
    check_cell(np.asarray(cell, dtype=np.float64), np.asarray(pbc, dtype=bool))
    if elements is not None:
        check_species(species_array, elements)
    elif species_array.min() < 1:
        bad = np.flatnonzero(species_array < 1)
        raise StructureError(
            f"expected chemical elements, got X (no element) for {_atoms(bad)}; name their "
            "elements, or remove these atoms"
        )


def frames_of(numbers: Sequence[int]) -> str:
    """Structures that follow one another, as messages name them: "frame 3", "frames 3 to 10"."""
    return f"frame {numbers[0]}" if len(numbers) == 1 else f"frames {numbers[0]} to {numbers[-1]}"


def list_frames(numbers: Sequence[int]) -> str:
    """Any structures, as messages name them: "frame 3", "frames 3, 7, 8 and 12 more"."""
    shown = ", ".join(str(number) for number in numbers[:_LISTED_FRAMES])
    more = len(numbers) - _LISTED_FRAMES
    return f"frame{'s' if len(numbers) > 1 else ''} {shown}{f' and {more} more' * (more > 0)}"


def _atoms(indices: NDArray[np.int64]) -> str:
    """Atom numbers as in "atom 3" or "atoms 3, 4, 5 and 9 more"."""
    shown = ", ".join(str(i) for i in indices[:_LISTED])
    more = f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else ""
    return f"atom{'s' if len(indices) > 1 else ''} {shown}{more}"


def _symbols(numbers: Collection[int]) -> str:
    known = range(len(chemical_symbols))
    return ", ".join(chemical_symbols[z] if z in known else f"Z={z}" for z in numbers)
