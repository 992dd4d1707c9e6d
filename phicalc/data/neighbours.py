"""Neighbours within the cutoff, kept between steps by a Verlet skin.

The result is a function of the current geometry alone: a reused list gives, bit for bit and in
the same order, what a fresh one would. Each edge has its reverse, exactly: half of the pairs
are computed and the other half is their negative.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from matscipy.neighbours import neighbour_list
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from phicalc.checks.structure import check_cell, check_density, check_positions
from phicalc.data.lattice import deformation, periodic_frame, reduction
from phicalc.errors import ConfigError

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SEARCH_MARGIN = 1e-6  # Å; the search may round, our own comparison at the cutoff decides
_SEARCH_BINS, _BINS_PER_ATOM = 1_000_000, 8  # a huge vacuum must not fill memory with empty bins


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Directed edges with r < cutoff, sorted by receiver (then sender, then shift).

    Attributes
    ----------
    edge_index
        (2, E) int64; row 0 sender j, row 1 receiver i.
    edge_vectors
        (E, 3) float64 in Å: r_j + S·cell − r_i.
    closest_distance
        Å; length of the shortest edge, infinity without edges.
    closest_pair
        The two atoms of the shortest edge, (-1, -1) without edges.
    """

    edge_index: Tensor
    edge_vectors: Tensor
    closest_distance: float
    closest_pair: tuple[int, int]
    _pair_shifts: IntArray = field(repr=False)
    _picked: IntArray = field(repr=False)

    @cached_property
    def edge_shifts(self) -> Tensor:
        """(E, 3) float64: integer cell translations S, relative to the positions as given."""
        pairs = len(self._pair_shifts)
        reverse = self._picked >= pairs
        shifts = self._pair_shifts[self._picked - pairs * reverse].astype(np.float64)
        shifts[reverse] *= -1.0
        shifts += 0.0  # no negative zeros
        edge_shifts: Tensor = torch.from_numpy(shifts)
        return edge_shifts


class Skin:
    """What every list with a Verlet skin is told and counts; see `NeighbourList`."""

    def __init__(self, cutoff: float, skin: float = 1.0) -> None:
        if not (np.isfinite(cutoff) and cutoff > 0):
            raise ConfigError(f"expected a positive cutoff in Å, got {cutoff}")
        if not (np.isfinite(skin) and skin >= 0):
            raise ConfigError(f"expected a skin of 0 Å or more, got {skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.topology = 0
        self.rebuilds = 0
        self.updates = 0


class NeighbourList(Skin):
    """Neighbour list with a Verlet skin.

    Rebuilt when 2·max|u| + r_build·max(0, 1−σ_min(F)) > r_build − r_c, where r_build is the
    cutoff plus the skin, F the cell's deformation gradient since the build and u = r − F r_build
    what an atom moved beyond it. An atom that was wrapped across a periodic face has not moved.

    Parameters
    ----------
    cutoff
        r_c in Å.
    skin
        Å added to the cutoff when the list is built; 0 rebuilds at every move.

    Attributes
    ----------
    topology
        Number of the current list; unchanged as long as its candidate edges are.
    rebuilds, updates
        How often the list was built and asked for.
    """

    _list: "_Candidates | None" = None

    def update(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> Neighbours:
        """Edges of the current geometry.

        Parameters
        ----------
        positions
            (N, 3) in Å, wrapped or not.
        cell
            (3, 3) in Å; rows of non-periodic directions are ignored and may be zero.
        pbc
            (3,) periodic directions.

        Raises
        ------
        StructureError
            No atoms, NaN or infinite positions, or a periodic cell without volume.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        cell = np.asarray(cell, dtype=np.float64)
        pbc = np.asarray(pbc, dtype=bool)
        check_positions(positions)
        if self._list is None or not self._list.follow(positions, cell, pbc, self.skin):
            # a list that could not be built leaves the last good one in place
            self._list = _Candidates(positions, cell, pbc, self.cutoff + self.skin)
            self.rebuilds += 1
            self.topology += 1
        self.updates += 1
        return self._list.within(self.cutoff, positions)

    def forget(self) -> None:
        """Drop the list, so that the next update builds one."""
        self._list = None


def build_neighbours(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float
) -> Neighbours:
    """Edges of one geometry, without a skin; arguments and errors as `NeighbourList.update`."""
    return NeighbourList(cutoff, skin=0.0).update(positions, cell, pbc)


def closest_overlap(
    positions: Array, cell: Array, pbc: BoolArray, distance: float
) -> tuple[float, tuple[int, int]] | None:
    """The closest two atoms, periodic images included, if they are closer than a small distance.

    Costs a fraction of a neighbour list; an atom's own images are left to `check_cell`.

    Parameters
    ----------
    positions, cell, pbc
        As for `NeighbourList.update`, finite and with a periodic cell of some volume.
    distance
        Å, much smaller than the cell.

    Returns
    -------
    Their distance in Å and the two atoms, or None.
    """
    frame = periodic_frame(cell, pbc)
    inverse = np.linalg.inv(frame)
    scaled = positions @ inverse
    scaled -= np.floor(scaled) * pbc
    scaled[:, pbc] %= 1.0  # floor of a tiny negative number leaves 1.0
    # along each axis atoms so close differ by no more than this
    reach = distance * float(np.linalg.norm(inverse, axis=0).max()) * np.sqrt(3.0)
    pairs = cKDTree(scaled, boxsize=np.where(pbc, 1.0, 0.0)).query_pairs(
        reach, output_type="ndarray"
    )
    apart = scaled[pairs[:, 0]] - scaled[pairs[:, 1]]
    apart -= np.rint(apart) * pbc
    lengths = np.linalg.norm(apart @ frame, axis=1)
    if not len(lengths) or lengths.min() >= distance:
        return None
    first, second = pairs[lengths.argmin()].tolist()
    return float(lengths.min()), (first, second)


class _Candidates:
    """Pairs within r_build of one geometry, and how they follow the atoms from there.

    Each pair p is stored once, as the edge `sender[p]` → `receiver[p]`. `order` maps the sorted
    directed edges to pairs: p is pair p itself and P + p its reverse.
    """

    def __init__(self, positions: Array, cell: Array, pbc: BoolArray, r_build: float) -> None:
        check_cell(cell, pbc)
        check_density(len(positions), cell, pbc)
        self.r_build = r_build
        self.pbc = pbc.copy()
        self.start = positions.copy()
        self.start_cell = cell.copy()
        self.receiver, self.sender, self.shifts = _half_pairs(positions, cell, pbc, r_build)
        self._sort()
        self._adopt_cell(cell)

    def _sort(self) -> None:
        """Order all directed edges by receiver, sender and shift."""
        atoms, pairs = len(self.start), len(self.sender)
        receiver = np.concatenate([self.receiver, self.sender])
        sender = np.concatenate([self.sender, self.receiver])
        columns = np.ascontiguousarray(self.shifts.T)
        span = 2 * np.abs(columns).max(axis=1, initial=0) + 1
        if float(atoms) ** 2 * float(np.prod(span.astype(float))) < 2.0**62:
            image = (columns[0] * span[1] + columns[1]) * span[2] + columns[2]
            key = receiver * atoms
            key += sender
            key *= span.prod()
            key[:pairs] += image
            key[pairs:] -= image
            self.order = _ascending(key)
        else:  # one integer can't hold it: atoms far outside of their cell
            shifts = np.concatenate([self.shifts, -self.shifts])
            self.order = np.lexsort((*shifts.T[::-1], sender, receiver))
        self.edge_index = np.empty((2, 2 * pairs), dtype=np.int64)
        sender.take(self.order, out=self.edge_index[0], mode="clip")
        receiver.take(self.order, out=self.edge_index[1], mode="clip")
        self._vectors = np.empty((2 * pairs, 3))

    def _adopt_cell(self, cell: Array) -> None:
        """Go over to a deformed cell: expected positions F·start and what is left of the skin."""
        self.cell = cell.copy()
        gradient, self.shrinkage = deformation(self.start_cell, cell, self.pbc, self.r_build)
        self.expected = self.start if gradient is None else self.start @ gradient
        self._translate()

    def _translate(self) -> None:
        """Translations S·cell of all pairs; None where no pair crosses a face."""
        self.translations: Array | None = None
        if self.shifts.any():
            # term by term: a matrix product may round S·cell and −S·cell differently
            a, b, c = np.ascontiguousarray(self.shifts.T, dtype=np.float64)[:, None, :]
            columns = a * self.cell[0][:, None]
            columns += b * self.cell[1][:, None]
            columns += c * self.cell[2][:, None]
            self.translations = np.ascontiguousarray(columns.T)

    def follow(self, positions: Array, cell: Array, pbc: BoolArray, skin: float) -> bool:
        """Whether the pairs still hold every neighbour; goes over to a new cell or image."""
        if positions.shape != self.start.shape or not np.array_equal(pbc, self.pbc):
            return False
        if not np.array_equal(cell, self.cell):
            check_cell(cell, pbc)
            self._adopt_cell(cell)
        room = skin - self.shrinkage
        moved = positions - self.expected
        square = moved * moved
        distance = np.sqrt(square[:, 0] + square[:, 1] + square[:, 2])
        if 2.0 * float(distance.max()) <= room:
            return True
        return room >= 0.0 and self._unwrap(moved, 2.0 * distance > room, room)

    def _unwrap(self, moved: Array, far: BoolArray, room: float) -> bool:
        """Take out whole cell vectors; False if an atom has really moved too far."""
        if not self.pbc.any():
            return False
        images = np.zeros_like(moved)
        frame = periodic_frame(self.cell, self.pbc)
        images[far] = np.rint(moved[far] @ np.linalg.inv(frame)) * self.pbc
        moved = moved - images @ frame
        if 2.0 * float(np.sqrt((moved * moved).sum(axis=1)).max()) > room:
            return False
        # all images of a pair shift alike, so the order of the edges stays as it is
        self.start = self.start + images @ periodic_frame(self.start_cell, self.pbc)
        whole = images.astype(np.int64)
        self.shifts = self.shifts + whole[self.receiver] - whole[self.sender]
        self._adopt_cell(self.cell)
        return True

    def within(self, cutoff: float, positions: Array) -> Neighbours:
        """The directed edges shorter than the cutoff."""
        pairs = len(self.sender)
        forward, backward = self._vectors[:pairs], self._vectors[pairs:]
        positions.take(self.sender, 0, out=forward, mode="clip")
        forward -= positions.take(self.receiver, 0)
        if self.translations is not None:
            forward += self.translations
        np.negative(forward, out=backward)
        square = forward[:, 0] * forward[:, 0]
        square += forward[:, 1] * forward[:, 1]
        square += forward[:, 2] * forward[:, 2]
        near = square < cutoff * cutoff
        kept = np.flatnonzero(np.concatenate([near, near]).take(self.order))
        picked = self.order.take(kept)
        closest = int(square.argmin()) if pairs else -1
        any_edge = bool(pairs and near[closest])
        return Neighbours(
            edge_index=torch.from_numpy(self.edge_index.take(kept, 1)),
            edge_vectors=torch.from_numpy(self._vectors.take(picked, 0)),
            closest_distance=float(np.sqrt(square[closest])) if any_edge else float("inf"),
            closest_pair=(int(self.sender[closest]), int(self.receiver[closest]))
            if any_edge
            else (-1, -1),
            _pair_shifts=self.shifts,
            _picked=picked,
        )


def _ascending(keys: IntArray) -> IntArray:
    """The order that sorts different integers.

    Where there is room for both in one integer, each takes its number along: that sorts more than
    twice as fast as numbers that follow from comparing what they stand for.
    """
    bits = len(keys).bit_length()
    if not len(keys) or max(int(keys.max()), -int(keys.min())) >= 1 << (62 - bits):
        return np.argsort(keys)
    numbered = (keys << bits) + np.arange(len(keys))
    numbered.sort()
    numbered &= (1 << bits) - 1
    return numbered


def _half_pairs(
    positions: Array, cell: Array, pbc: BoolArray, r_build: float
) -> tuple[IntArray, IntArray, IntArray]:
    """Receivers, senders (P,) and shifts (P, 3) of the pairs within r_build, each pair once."""
    operation = reduction(cell, pbc)
    frame = periodic_frame(cell if operation is None else operation @ cell, pbc)
    inverse = np.linalg.inv(frame)
    images = np.floor(positions @ inverse) * pbc
    wrapped = positions - images @ frame
    box, origin, radius = _search_box(wrapped @ inverse, frame, pbc, r_build)
    i, j, shift = neighbour_list(
        "ijS", positions=wrapped - origin, cell=box, pbc=pbc, cutoff=radius + SEARCH_MARGIN
    )
    # the first non-zero component decides between an atom's image at S and the one at −S
    own = np.flatnonzero(i == j)
    forward = i < j
    forward[own] = shift[own] @ np.array([1 << 40, 1 << 20, 1], dtype=np.int64) > 0
    half = np.flatnonzero(forward)
    receiver, sender = i.take(half).astype(np.int64), j.take(half).astype(np.int64)
    shift = shift.take(half, 0)
    shifts = shift.astype(np.int64)
    if images.any():
        whole = images.astype(np.int64)
        shifts += whole.take(receiver, 0)
        shifts -= whole.take(sender, 0)
    if operation is not None:
        shifts = shifts @ operation
    if radius > r_build:
        vectors = wrapped[sender] - wrapped[receiver] + shift @ box
        close = (vectors * vectors).sum(axis=1) <= (r_build + SEARCH_MARGIN) ** 2
        return receiver[close], sender[close], shifts[close]
    return receiver, sender, shifts


def _search_box(
    scaled: Array, frame: Array, pbc: BoolArray, r_build: float
) -> tuple[Array, Array, float]:
    """Box, its origin and radius for the search: as many bins as it has use for, no more.

    Atoms beyond a non-periodic face of the box belong to its outermost bins, so the box may be
    smaller than the structure; along periodic directions only a larger radius saves bins.
    """
    lower, upper = scaled.min(axis=0), scaled.max(axis=0)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frame), axis=0)
    lengths = np.where(pbc, heights, upper - lower + r_build)
    bins = np.maximum(lengths / r_build, 1.0)
    most = _SEARCH_BINS + _BINS_PER_ATOM * len(scaled)
    longest = float(bins.max())
    while float(np.prod(np.minimum(bins, longest))) > most:
        longest /= 1.5
    radius = max(r_build, float((lengths[pbc] / longest).max(initial=0.0)))
    clipped = np.minimum(lengths, longest * r_build)
    middle = np.clip(np.median(scaled, axis=0), lower + clipped / 2, upper - clipped / 2)
    start = np.where(clipped < lengths, middle - clipped / 2, lower - r_build / 2)
    box = np.where(pbc[:, None], frame, frame * clipped[:, None])
    return box, np.where(pbc, 0.0, start) @ frame, radius
