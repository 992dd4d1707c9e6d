"""Pairs of atoms and images within a radius, by a cell list of torch operations on any device.

The space is divided into bins no thinner than the radius, and each atom is paired with those in
half of the bins around its own, so that every pair comes once. Bins are found by their number in
a sorted list: empty ones cost nothing, however large the vacuum.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BLOCK = 1 << 22
"""Candidate pairs that are looked at together, as far as one offset alone has no more."""

MOST_BINS = 1 << 20
"""Along each axis, so that the number of a bin fits into an integer."""


def half_pairs(
    positions: Tensor, frame: Array, pbc: BoolArray, radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of atoms and images no farther apart than the radius, once.

    Parameters
    ----------
    positions
        (N, 3) float64 in Å, wrapped or not.
    frame
        (3, 3) in Å: cell vectors, and unit normals of the others in place of those that are not
        periodic (`phicalc.data.lattice.periodic_frame`).
    pbc
        (3,) periodic directions.
    radius
        Å.

    Returns
    -------
    Receivers i, senders j (P,) and shifts S (P, 3), all int64, with i < j, or i = j and the first
    component of S that is not 0 above it: |r_j + S·frame − r_i| ≤ radius.
    """
    device, atoms = positions.device, len(positions)
    periodic = torch.from_numpy(pbc.copy()).to(device)
    axes, inverse = (torch.from_numpy(m).to(device) for m in (frame, np.linalg.inv(frame)))
    images = torch.floor(positions @ inverse) * periodic
    wrapped = positions - images @ axes
    bins, sizes, reach = _bins(wrapped @ inverse, frame, pbc, radius)
    strides = [sizes[1] * sizes[2], sizes[2], 1]
    numbers, by_bin = torch.sort(_number(bins, strides))

    found: list[tuple[Tensor, Tensor, Tensor]] = []
    counts = torch.unique_consecutive(numbers, return_counts=True)[1]
    group = max(1, BLOCK // int((counts * counts).sum()))
    for offsets in _half_offsets(reach).split(group):
        around = bins[None] + offsets.to(device)[:, None]
        size = torch.tensor(sizes).to(device)
        shifts = torch.div(around, size, rounding_mode="floor")
        number = _number(around - shifts * size, strides)
        first = torch.searchsorted(numbers, number)
        count = torch.searchsorted(numbers, number, right=True) - first
        count *= (periodic | (shifts == 0)).all(2)
        first, count, shifts = first.view(-1), count.view(-1), shifts.view(-1, 3)
        row = torch.repeat_interleave(torch.arange(len(count), device=device), count)
        place = torch.arange(len(row), device=device) - (count.cumsum(0) - count)[row]
        i, j = row % atoms, by_bin[first[row] + place]
        shift = shifts[row]
        apart = wrapped[j] - wrapped[i] + shift.to(axes.dtype) @ axes
        near = (apart * apart).sum(1) <= radius * radius
        near &= (offsets.to(device) != 0).any(1)[row // atoms] | (i < j)
        found.append((i[near], j[near], shift[near]))
    i, j, shift = (torch.cat(parts) for parts in zip(*found, strict=True))
    turned = (i > j) | ((i == j) & (_number(shift, [1 << 40, 1 << 20, 1]) < 0))
    whole = images.long()
    shift = torch.where(turned[:, None], -shift, shift)
    i, j = torch.where(turned, j, i), torch.where(turned, i, j)
    return i, j, shift + whole[i] - whole[j]


def _bins(
    scaled: Tensor, frame: Array, pbc: BoolArray, radius: float
) -> tuple[Tensor, list[int], list[int]]:
    """Bin (N, 3) of each atom, bins along each axis, and how many of them the radius spans."""
    lower, upper = (edge.cpu().numpy() for edge in (scaled.amin(0), scaled.amax(0)))
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frame), axis=0)
    lengths = np.where(pbc, heights, upper - lower)
    wide = radius * (1.0 + 1e-9)  # rounding must not put an atom into a bin too far
    sizes = np.clip(np.floor(lengths / wide), 1, MOST_BINS).astype(np.int64)
    reach = np.where(pbc, np.ceil(wide * sizes / heights), 1).astype(np.int64)
    start = torch.from_numpy(np.where(pbc, 0.0, lower)).to(scaled.device)
    extent = np.where(pbc, 1.0, np.maximum(upper - lower, 1e-300))
    factor = torch.from_numpy(sizes / extent).to(scaled.device)
    last = torch.from_numpy(sizes - 1).to(scaled.device)
    bins = torch.floor((scaled - start) * factor).long()
    bins = torch.minimum(bins.clamp(min=0), last)
    return bins, sizes.tolist(), reach.tolist()


def _half_offsets(reach: list[int]) -> Tensor:
    """Steps (K, 3) to a bin's own and half of those around it: of each ±step the positive one."""
    ranges = [torch.arange(-n, n + 1) for n in reach]
    offsets = torch.cartesian_prod(*ranges)
    return offsets[len(offsets) // 2 :]  # in the order of counting, −o mirrors o


def _number(triples: Tensor, strides: list[int]) -> Tensor:
    """One integer for each triple (…, 3)."""
    number = triples[..., 0] * strides[0]
    number += triples[..., 1] * strides[1]
    number += triples[..., 2] * strides[2]
    return number
