"""The neighbour list of :mod:`phicalc.data.neighbours` on a device: one look from the CPU per step.

What the CPU has to know of a step, whether the list still holds and how many edges there are, it
reads at once, in one transfer. Everything else, the search for pairs included, stays on the
device. Cells are 3×3 and stay on the CPU. Edges are those of `NeighbourList`, to the bit.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phicalc.checks.structure import check_cell, check_density
from phicalc.data.cell_list import half_pairs
from phicalc.data.lattice import Array, BoolArray, deformation, periodic_frame, reduction
from phicalc.data.neighbours import SEARCH_MARGIN, Skin


@dataclass(frozen=True, eq=False)
class DeviceNeighbours:
    """Directed edges with r < cutoff, sorted by receiver (then sender, then shift).

    Attributes
    ----------
    edge_index, edge_vectors
        (2, E) int64 and (E, 3) float64 in Å, as of `Neighbours`, on the device.
    counts
        (N,) int64 on the CPU: how many neighbours the atoms have, ascending.
    closest_distance, closest_pair
        As of `Neighbours`.
    """

    edge_index: Tensor
    edge_vectors: Tensor
    counts: Tensor
    closest_distance: float
    closest_pair: tuple[int, int]


class DeviceNeighbourList(Skin):
    """Neighbour list with a Verlet skin, where the positions are.

    Parameters and attributes as of `NeighbourList`.
    """

    _list: "_Candidates | None" = None

    def update(self, positions: Tensor, cell: Array, pbc: BoolArray) -> DeviceNeighbours:
        """Edges of the current geometry.

        Parameters
        ----------
        positions
            (N, 3) float64 in Å on the device, wrapped or not, N ≥ 1 and finite.
        cell, pbc
            (3, 3) in Å and (3,), on the CPU, as for `NeighbourList.update`.

        Raises
        ------
        StructureError
            A periodic cell without volume, or one that has collapsed.
        """
        listed, found = self._list, None
        if listed is not None:
            found = listed.follow(positions, cell, pbc, self.cutoff, self.skin)
        if listed is None or found is None:
            listed = self._list = _Candidates(positions, cell, pbc, self.cutoff + self.skin)
            self.rebuilds += 1
            self.topology += 1
            found = listed.look(self.cutoff, positions)
        self.updates += 1
        return listed.within(found)

    def forget(self) -> None:
        """Drop the list, so that the next update builds one."""
        self._list = None


@dataclass(frozen=True)
class _Look:
    """A geometry seen through a list: what the CPU read of it, and what stays on the device."""

    moved: float
    edges: int
    closest: tuple[float, int, int]
    counts: Tensor
    vectors: Tensor
    kept_before: Tensor


class _Candidates:
    """Directed edges within r_build of one geometry, sorted, and how they follow the atoms."""

    def __init__(self, positions: Tensor, cell: Array, pbc: BoolArray, r_build: float) -> None:
        check_cell(cell, pbc)
        check_density(len(positions), cell, pbc)
        self.r_build = r_build
        self.pbc = pbc.copy()
        self.start = positions.clone()
        self.start_cell = cell.copy()
        operation = reduction(cell, pbc)
        frame = periodic_frame(cell if operation is None else operation @ cell, pbc)
        i, j, shift = half_pairs(positions, frame, pbc, r_build + SEARCH_MARGIN)
        if operation is not None:
            turn = torch.from_numpy(operation.astype(np.float64)).to(positions.device)
            shift = (shift.to(turn.dtype) @ turn).round().long()
        receiver, sender = torch.cat([i, j]), torch.cat([j, i])
        shifts = torch.cat([shift, -shift])
        order = _sorted(receiver, sender, shifts)
        self.edge_index = torch.stack([sender[order], receiver[order]])
        self.shifts = shifts[order]
        self.crosses = bool((shifts != 0).any())
        atoms = torch.arange(len(positions) + 1, device=positions.device)
        self.row_starts = torch.searchsorted(self.edge_index[1], atoms)
        self._adopt_cell(cell)

    def _adopt_cell(self, cell: Array) -> None:
        """Go over to a deformed cell; see `deformation`."""
        self.cell = cell.copy()
        gradient, self.shrinkage = deformation(self.start_cell, cell, self.pbc, self.r_build)
        self.expected = self.start
        if gradient is not None:
            self.expected = self.start @ torch.from_numpy(gradient).to(self.start.device)
        self.translations: Tensor | None = None
        if self.crosses:
            # term by term: a matrix product may round S·cell and −S·cell differently
            a, b, c = self.shifts.to(self.start.dtype).unbind(1)
            columns = [a * x + b * y + c * z for x, y, z in cell.T.tolist()]
            self.translations = torch.stack(columns, 1)

    def follow(
        self, positions: Tensor, cell: Array, pbc: BoolArray, cutoff: float, skin: float
    ) -> _Look | None:
        """The geometry, if the edges still hold every neighbour; else None."""
        if positions.shape != self.start.shape or not np.array_equal(pbc, self.pbc):
            return None
        if not np.array_equal(cell, self.cell):
            check_cell(cell, pbc)
            self._adopt_cell(cell)
        room = skin - self.shrinkage
        if room < 0.0:
            return None
        seen = self.look(cutoff, positions)
        if 2.0 * seen.moved <= room:
            return seen
        return self.look(cutoff, positions) if self._unwrap(positions, room) else None

    def _unwrap(self, positions: Tensor, room: float) -> bool:
        """Take out whole cell vectors; False if an atom has really moved too far."""
        if not self.pbc.any():
            return False
        device = positions.device
        moved = positions - self.expected
        far = 4.0 * (moved * moved).sum(1, keepdim=True) > room * room
        frame = periodic_frame(self.cell, self.pbc)
        inverse = torch.from_numpy(np.linalg.inv(frame) * self.pbc).to(device)
        images = torch.round(moved @ inverse) * far
        moved = moved - images @ torch.from_numpy(frame).to(device)
        if 2.0 * float((moved * moved).sum(1).max().sqrt()) > room:
            return False
        # all images of a pair shift alike, so the order of the edges stays as it is
        start_frame = torch.from_numpy(periodic_frame(self.start_cell, self.pbc)).to(device)
        self.start = self.start + images @ start_frame
        whole = images.long()
        self.shifts = self.shifts + whole[self.edge_index[1]] - whole[self.edge_index[0]]
        self.crosses = bool((self.shifts != 0).any())
        self._adopt_cell(self.cell)
        return True

    def look(self, cutoff: float, positions: Tensor) -> _Look:
        """How far the atoms moved and which edges are shorter than the cutoff: one transfer."""
        moved = positions - self.expected
        farthest = _square(moved).max()
        vectors = positions.index_select(0, self.edge_index[0])
        vectors -= positions.index_select(0, self.edge_index[1])
        if self.translations is not None:
            vectors += self.translations
        square = _square(vectors)
        before = torch.nn.functional.pad((square < cutoff * cutoff).cumsum(0), [1, 0])
        row_ends = before.index_select(0, self.row_starts)
        counts = torch.sort(row_ends[1:] - row_ends[:-1])[0]
        parts = [farthest[None], counts.to(square.dtype)]
        if len(square):
            closest, edge = square.min(0)
            ends = self.edge_index.index_select(1, edge[None])[:, 0]
            parts = [farthest[None], closest[None], ends.to(square.dtype), parts[1]]
        numbers = torch.cat(parts).cpu()
        distance, pair = float("inf"), (-1, -1)
        if len(square):
            nearest = float(numbers[1])
            if nearest < cutoff * cutoff:
                distance, pair = math.sqrt(nearest), (int(numbers[2]), int(numbers[3]))
        host_counts = numbers[-len(positions) :].long()
        moved_by = math.sqrt(float(numbers[0]))
        return _Look(
            moved_by, int(host_counts.sum()), (distance, *pair), host_counts, vectors, before
        )

    def within(self, seen: _Look) -> DeviceNeighbours:
        """The directed edges shorter than the cutoff of a geometry looked at."""
        numbers = torch.arange(1, seen.edges + 1, device=seen.vectors.device)
        kept = torch.searchsorted(seen.kept_before[1:], numbers)
        distance, first, second = seen.closest
        return DeviceNeighbours(
            edge_index=self.edge_index.index_select(1, kept),
            edge_vectors=seen.vectors.index_select(0, kept),
            counts=seen.counts,
            closest_distance=distance,
            closest_pair=(first, second),
        )


def _square(vectors: Tensor) -> Tensor:
    """Squared lengths, rounded as `NeighbourList` rounds them."""
    x, y, z = (vectors * vectors).unbind(1)
    return x + y + z


def _sorted(receiver: Tensor, sender: Tensor, shifts: Tensor) -> Tensor:
    """The order by receiver, sender and shift."""
    order = torch.arange(len(receiver), device=receiver.device)
    for column in (*shifts.flip(1).unbind(1), sender, receiver):
        order = order[torch.sort(column[order], stable=True)[1]]
    return order
