"""Coulomb interaction of Gaussian charges: the matrix A of the energy ½ qᵀAq.

A_ij = k_e Σ_images erf(r/γ_ij)/r, γ_ij = √(2(σ_i² + σ_j²)), and A_ii holds the self-energy
k_e/(√π σ_i) of a Gaussian besides its own images. Molecules are summed directly. Cells that are
periodic in three directions are summed by Ewald's method (doi:10.1002/andp.19213690304) under
tin-foil boundary conditions; a net charge is neutralised by a uniform background, such that the
mean potential of the cell is zero. That keeps A positive semidefinite for any charge. Slabs and
wires are refused.

Every atom's long-range part is a Gaussian of width s_i = max(σ_i, η); the rest,
erf(r/γ_ij) − erf(r/√(2(s_i² + s_j²))), is short-ranged and summed over images in real space. Where
atoms are few in a large cell, η grows with it, such that the cost follows their number, as N^1.5,
and not the emptiness between them (J. W. Perram et al., doi:10.1080/00268978800101471).

The sums are plain torch: differentiable in positions, cell and widths to any order, scriptable.
Why not the Ewald sum of torch-pme here (it is the oracle in the tests): a charge equilibration
needs A itself, with a width per atom, and all k-vectors once, ±k together and inside a sphere,
which is a quarter of what torch-pme's box of k-vectors holds.
"""

import math
from typing import Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.lattice import (
    image_pairs,
    lattice_points,
    pair_vectors,
    require_room,
)
from phicalc.electrostatics.on_cpu import pbc_on_cpu
from phicalc.electrostatics.padding import row_slots, to_rows
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT

SPLIT_WIDTH: float = 1.0
"""η | Å: width at which Ewald's method splits. It moves work between the sums, not the result."""

DILUTE: float = 500.0
"""V/√N | Å³ beyond which η is chosen by the cost of the sums; all condensed matter is below."""

NEAR_RANGE: float = 5.05
"""Real-space terms are dropped beyond r = NEAR_RANGE·√(2(s_i² + s_j²)): erfc(5.05) = 9e-13."""

WAVE_RANGE: float = 5.26
"""Reciprocal terms are dropped beyond k = WAVE_RANGE/η: exp(−5.26²) = 1e-12."""


def coulomb_matrices(
    graph: Dict[str, Tensor],
    widths: Tensor,
    constant: float = COULOMB_CONSTANT,
    near_range: float = NEAR_RANGE,
    wave_range: float = WAVE_RANGE,
) -> Tensor:
    """A of every structure of a batch, padded with zeros.

    Parameters
    ----------
    graph
        needs POSITIONS, CELL, PBC and BATCH, which is ascending
    widths
        (N,) | Å | σ > 0 of the Gaussian charges
    near_range, wave_range
        where the sums of crystals end: see `ewald_terms`

    Returns
    -------
    (B, M, M) | eV/e², of the dtype of the widths, symmetric; M atoms in the largest structure. By
    default terms of relative size 1e-12 are left out of the periodic sums.

    Raises
    ------
    UnsupportedError
        A structure is periodic in one or two directions, or too large.
    """
    cell, pbc, batch = graph[fields.CELL], pbc_on_cpu(graph), graph[fields.BATCH]
    refuse_partial_pbc(pbc)
    num_structures = cell.shape[0]
    slots, size = row_slots(batch, num_structures)
    require_room(8.0 * num_structures * size**2, "a matrix of all pairs", size)
    rows = to_rows(graph[fields.POSITIONS], slots, num_structures, size)
    spread = to_rows(widths, slots, num_structures, size)
    if not bool(pbc.any()):
        return constant * direct_matrix(rows, spread)
    counts = torch.bincount(batch, minlength=num_structures)
    matrices: List[Tensor] = []
    for b in range(num_structures):
        n = int(counts[b])
        if bool(pbc[b].all()):
            matrix = ewald_matrix(rows[b, :n], cell[b], spread[b, :n], 0.0, near_range, wave_range)
        else:
            matrix = direct_matrix(rows[b : b + 1, :n], spread[b : b + 1, :n])[0]
        matrices.append(torch.nn.functional.pad(matrix, [0, size - n, 0, size - n]))
    return constant * torch.stack(matrices)


def direct_matrix(positions: Tensor, widths: Tensor) -> Tensor:
    """Interaction of the charges of molecules, in units of k_e.

    Parameters
    ----------
    positions, widths
        (B, M, 3), (B, M) | Å; padded atoms have width 0

    Returns
    -------
    (B, M, M) | 1/Å, zero in rows and columns of padded atoms
    """
    size = positions.shape[1]
    real = widths > 0
    same = torch.eye(size, dtype=torch.bool, device=positions.device)
    both = real[:, :, None] & real[:, None, :]
    pair = both & ~same
    vectors = positions[:, :, None] - positions[:, None, :]
    square = torch.where(pair, (vectors * vectors).sum(3), 1.0)
    variance = torch.where(pair, widths[:, :, None] ** 2 + widths[:, None, :] ** 2, 1.0)
    distances = square.sqrt()
    interaction = torch.erf(distances * (2.0 * variance).rsqrt()) / distances
    own = torch.where(real, 1.0 / (math.sqrt(math.pi) * torch.where(real, widths, 1.0)), 0.0)
    return torch.where(pair, interaction, 0.0) + torch.diag_embed(own)


def ewald_matrix(
    positions: Tensor,
    cell: Tensor,
    widths: Tensor,
    split_width: float = 0.0,
    near_range: float = NEAR_RANGE,
    wave_range: float = WAVE_RANGE,
) -> Tensor:
    """Interaction of the charges of one crystal with each other and all images, in units of k_e.

    Parameters
    ----------
    positions, cell, widths
        (N, 3), (3, 3), (N,) | Å
    split_width
        η | Å; 0: the best one, see `best_split`
    near_range, wave_range
        see `ewald_terms`

    Returns
    -------
    (N, N) | 1/Å
    """
    num_atoms = positions.shape[0]
    if split_width == 0.0:
        split_width = best_split(cell.detach(), num_atoms, float(widths.detach().max()))
    terms = ewald_terms(positions, cell, widths, split_width, near_range, wave_range)
    pairs = torch.zeros(num_atoms * num_atoms, dtype=widths.dtype, device=widths.device)
    pairs = pairs.index_add(0, terms.first * num_atoms + terms.second, terms.near)
    pairs = pairs.view(num_atoms, num_atoms)
    background = terms.background[:, None] + terms.background[None, :]
    far = torch.mm(terms.waves.t(), terms.waves)
    return far + pairs + pairs.t() + torch.diag(terms.own) - background


class CoulombTerms(NamedTuple):
    """A = wavesᵀ·waves + pairs + diag(own) − (b_i + b_j), without forming it; K waves, P pairs."""

    waves: Tensor  # (2K, N) | long-ranged part, in reciprocal space
    first: Tensor  # (P,) int64 | pairs of atoms and images, each once: i
    second: Tensor  # (P,) int64 | j
    near: Tensor  # (P,) | their short-ranged interaction
    own: Tensor  # (N,) | self-energy
    background: Tensor  # (N,) | b, the k = 0 term of the short-ranged part


def ewald_terms(
    positions: Tensor,
    cell: Tensor,
    widths: Tensor,
    split_width: float,
    near_range: float = NEAR_RANGE,
    wave_range: float = WAVE_RANGE,
) -> CoulombTerms:
    """Ewald's sums of one crystal, in units of k_e.

    Parameters
    ----------
    positions, cell, widths
        (N, 3), (3, 3), (N,) | Å
    split_width, near_range, wave_range
        η | Å, and where the two sums end in units of √(2(s_i² + s_j²)) and 1/η
    """
    volume = torch.linalg.det(cell).abs()
    smooth = widths.clamp(min=split_width)
    waves = structure_factors(positions, cell, smooth, wave_range / split_width)
    first, second, near, own, background = short_ranged_terms(
        positions, cell, widths, smooth, near_range
    )
    waves = waves * (8.0 * math.pi / volume).sqrt()
    return CoulombTerms(waves, first, second, near, own, background)


def short_ranged_terms(
    positions: Tensor, cell: Tensor, widths: Tensor, smooth: Tensor, near_range: float = NEAR_RANGE
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `CoulombTerms` holds besides the waves, of charges σ less those of widths s (N,) | Å."""
    volume = torch.linalg.det(cell).abs()
    reach = 2.0 * (near_range * smooth.detach()) ** 2  # r² < reach_i + reach_j
    pairs = image_pairs(positions, cell, reach)
    i, j = pairs.first, pairs.second
    distances = torch.linalg.vector_norm(pair_vectors(pairs, positions, cell), dim=1)
    narrow, wide = 2.0 * widths**2, 2.0 * smooth**2
    narrow = (narrow.index_select(0, i) + narrow.index_select(0, j)).rsqrt()
    wide = (wide.index_select(0, i) + wide.index_select(0, j)).rsqrt()
    near = (torch.erf(distances * narrow) - torch.erf(distances * wide)) / distances
    own = (1.0 / widths - 1.0 / smooth) / math.sqrt(math.pi)
    # A charge is seen together with its background, in the short-ranged part too.
    background = (smooth**2 - widths**2) * (2.0 * math.pi / volume)
    return i, j, near, own, background


def best_split(
    cell: Tensor,
    num_atoms: int,
    largest_width: float,
    split_width: float = SPLIT_WIDTH,
    dilute: float = DILUTE,
) -> float:
    """η | Å: SPLIT_WIDTH for matter of ordinary density, and the cheapest for what is dilute.

    Parameters
    ----------
    cell
        (3, 3) | Å, without gradient
    largest_width
        σ | Å of the widest of the N charges
    """
    volume = float(torch.linalg.det(cell).abs())
    if volume <= dilute * num_atoms**0.5:
        return split_width
    lengths = torch.linalg.vector_norm(cell, dim=1)
    heights = 1.0 / torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0)
    sides = [float(lengths[0]), float(lengths[1]), float(lengths[2])]
    planes = [float(heights[0]), float(heights[1]), float(heights[2])]
    least = sum_cost(sides, planes, volume, num_atoms, largest_width, split_width)
    wider = math.sqrt(2.0) * split_width
    cost = sum_cost(sides, planes, volume, num_atoms, largest_width, wider)
    while cost < least:
        split_width, least = wider, cost
        wider = math.sqrt(2.0) * split_width
        cost = sum_cost(sides, planes, volume, num_atoms, largest_width, wider)
    return split_width


def sum_cost(
    lengths: List[float],
    heights: List[float],
    volume: float,
    num_atoms: int,
    largest_width: float,
    split_width: float,
    near_range: float = NEAR_RANGE,
    wave_range: float = WAVE_RANGE,
) -> float:
    """About how many terms `ewald_terms` has; to look at an image costs a tenth of a term.

    Parameters
    ----------
    lengths, heights
        of the cell vectors, and distances of the planes that they lead to | Å
    """
    reach = near_range * 2.0 * max(largest_width, split_width)
    images, waves = 1.0, 1.0
    for axis in range(3):
        images *= 2.0 * math.floor(reach / heights[axis] + 0.5) + 1.0
        waves *= 2.0 * math.floor(lengths[axis] * wave_range / (split_width * 2.0 * math.pi)) + 1.0
    within = 4.0 / 3.0 * math.pi * reach**3 / volume
    return 0.5 * num_atoms * (num_atoms + 1) * (within + 0.1 * images) + num_atoms * waves


def refuse_partial_pbc(pbc: Tensor) -> None:
    """Raise UnsupportedError for slabs and wires, pbc (B, 3)."""
    if bool((pbc.any(1) & ~pbc.all(1)).any()):
        raise UnsupportedError(
            "expected pbc in all three directions or in none, got a slab or a wire: its Coulomb "
            "sum is not implemented; use pbc=True with vacuum, or pbc=False for a cluster"
        )


def structure_factors(positions: Tensor, cell: Tensor, widths: Tensor, wave_range: float) -> Tensor:
    """Waves e^(−k²σ_i²/2)/k · (cos k·r_i, sin k·r_i) of all k up to ``wave_range``, one of ±k each.

    Returns
    -------
    (2K, N) | Å
    """
    waves = long_waves(cell, wave_range, positions.shape[0])
    square = (waves * waves).sum(1)[:, None]
    variance = (widths * widths)[None, :]
    if bool((widths == widths[0]).all()):
        variance = variance[:, :1]  # one column for all atoms, which is the most common case
    amplitude = torch.exp(-0.5 * square * variance) * square.rsqrt()
    phase = torch.mm(waves, positions.t())
    return torch.cat([amplitude * torch.cos(phase), amplitude * torch.sin(phase)])


def long_waves(cell: Tensor, wave_range: float, num_atoms: int) -> Tensor:
    """All k (K, 3) | 1/Å of a cell up to a length | 1/Å, one of ±k each."""
    reach = torch.linalg.vector_norm(cell.detach(), dim=1) * (wave_range / (2.0 * math.pi))
    orders = lattice_points(reach.floor(), cell)
    orders = orders[orders.shape[0] // 2 + 1 :]  # in the order of counting, −k mirrors k
    waves = torch.mm(orders, 2.0 * math.pi * torch.linalg.inv(cell).t())
    inside = (waves.detach() ** 2).sum(1) < wave_range**2
    waves = waves[inside]
    require_room(16.0 * waves.shape[0] * num_atoms, "the waves of its cell", num_atoms)
    return waves
