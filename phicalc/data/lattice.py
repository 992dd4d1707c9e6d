"""Cell vectors where all directions are periodic, some or none, and how they deform."""

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_SKEWED = 2.0  # product of the cell vectors' lengths over the volume; reduced ones have at most √2


def periodic_frame(cell: Array, pbc: BoolArray) -> Array:
    """Cell vectors, with unit normals in place of the non-periodic ones.

    Parameters
    ----------
    cell
        (3, 3) in Å; rows of non-periodic directions are ignored.
    pbc
        (3,) periodic directions.

    Returns
    -------
    (3, 3) in Å, non-singular: non-periodic rows are orthonormal and normal to the periodic ones.
    """
    frame = cell.copy()
    periodic = np.flatnonzero(pbc)
    if len(periodic) == 0:
        return np.eye(3)
    if len(periodic) == 1:
        row = int(periodic[0])
        axis = np.eye(3)[int(np.abs(cell[row]).argmin())]
        first = np.cross(cell[row], axis)
        frame[(row + 1) % 3] = first / np.linalg.norm(first)
        second = np.cross(cell[row], first)
        frame[(row + 2) % 3] = second / np.linalg.norm(second)
    elif len(periodic) == 2:
        row = int(np.flatnonzero(~pbc)[0])
        normal = np.cross(cell[(row + 1) % 3], cell[(row + 2) % 3])
        frame[row] = normal / np.linalg.norm(normal)
    return frame


def periodic_cell(cell: Array, pbc: BoolArray) -> Array:
    """Cell vectors (3, 3) in Å of the lattice as given, zero where it is not periodic.

    Where they are very long for their volume, others of the same lattice take their place: sums
    over its points depend on no choice of vectors, but what they cost does.
    """
    operation = reduction(cell, pbc) if pbc.all() else None
    return np.where(pbc[:, None], cell if operation is None else operation @ cell, 0.0)


def reduction(cell: Array, pbc: BoolArray) -> IntArray | None:
    """Integers (3, 3) that make short cell vectors of very skewed ones; None where they are not."""
    vectors = cell[pbc]
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    volume = np.sqrt(max(0.0, float(np.linalg.det(vectors @ vectors.T))))
    if float(lengths.prod()) <= _SKEWED * volume:
        return None
    operation: IntArray = minkowski_reduce(cell, pbc)[1]
    return operation


def deformation(
    start: Array, cell: Array, pbc: BoolArray, r_build: float
) -> tuple[Array | None, float]:
    """How a cell has deformed since a list was built.

    Returns
    -------
    F (3, 3), with which positions go over as x F, None where nothing has changed; and what the
    deformation takes of the skin | Å: r_build·max(0, 1−σ_min(F)).
    """
    if not pbc.any() or np.array_equal(cell, start):
        return None, 0.0
    gradient: Array = np.asarray(
        np.linalg.solve(periodic_frame(start, pbc), periodic_frame(cell, pbc)), dtype=np.float64
    )
    smallest = float(np.linalg.svd(gradient, compute_uv=False)[-1])
    return gradient, r_build * max(0.0, 1.0 - smallest)
