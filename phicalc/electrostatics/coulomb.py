"""Coulomb interaction of Gaussian charges: the matrix A of the energy ½ qᵀAq.

A_ij = k_e Σ_images erf(r/γ_ij)/r, γ_ij = √(2(σ_i² + σ_j²)), and A_ii holds the self-energy
k_e/(√π σ_i) of a Gaussian besides its own images. Molecules are summed directly. Cells that are
periodic in three directions are summed by Ewald's method (doi:10.1002/andp.19213690304) under
tin-foil boundary conditions; a net charge is neutralised by a uniform background, such that the
mean potential of the cell is zero. That keeps A positive semidefinite for any charge. Slabs and
wires are refused.

Every atom's long-range part is a Gaussian of width s_i = max(σ_i, η); the rest,
erf(r/γ_ij) − erf(r/√(2(s_i² + s_j²))), is short-ranged and summed over images in real space.

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
from phicalc.electrostatics.padding import row_slots, to_rows
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT

SPLIT_WIDTH: float = 1.0
"""η | Å: width at which Ewald's method splits. It moves work between the sums, not the result."""

NEAR_RANGE: float = 5.05
"""Real-space terms are dropped beyond r = NEAR_RANGE·√(2(s_i² + s_j²)): erfc(5.05) = 9e-13."""

WAVE_RANGE: float = 5.26
"""Reciprocal terms are dropped beyond k = WAVE_RANGE/η: exp(−5.26²) = 1e-12."""


def coulomb_matrices(
    graph: Dict[str, Tensor], widths: Tensor, constant: float = COULOMB_CONSTANT
) -> Tensor:
    """A of every structure of a batch, padded with zeros.

    Parameters
    ----------
    graph
        needs POSITIONS, CELL, PBC and BATCH, which is ascending
    widths
        (N,) | Å | σ > 0 of the Gaussian charges

    Returns
    -------
    (B, M, M) | eV/e², float64, symmetric; M atoms in the largest structure. Terms of relative
    size 1e-12 are left out of the periodic sums.

    Raises
    ------
    UnsupportedError
        A structure is periodic in one or two directions.
    """
    cell, pbc, batch = graph[fields.CELL], graph[fields.PBC], graph[fields.BATCH]
    refuse_partial_pbc(pbc)
    num_structures = cell.shape[0]
    slots, size = row_slots(batch, num_structures)
    rows = to_rows(graph[fields.POSITIONS], slots, num_structures, size)
    spread = to_rows(widths, slots, num_structures, size)
    if not bool(pbc.any()):
        return constant * direct_matrix(rows, spread)
    counts = torch.bincount(batch, minlength=num_structures)
    matrices: List[Tensor] = []
    for b in range(num_structures):
        n = int(counts[b])
        if bool(pbc[b].all()):
            matrix = ewald_matrix(rows[b, :n], cell[b], spread[b, :n])
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
    positions: Tensor, cell: Tensor, widths: Tensor, split_width: float = SPLIT_WIDTH
) -> Tensor:
    """Interaction of the charges of one crystal with each other and all images, in units of k_e.

    Parameters
    ----------
    positions, cell, widths
        (N, 3), (3, 3), (N,) | Å
    split_width
        η | Å

    Returns
    -------
    (N, N) | 1/Å
    """
    terms = ewald_terms(positions, cell, widths, split_width)
    num_atoms = positions.shape[0]
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
    split_width: float = SPLIT_WIDTH,
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
    i, j, distances = image_pairs(positions, cell, near_range * 2.0 * float(smooth.detach().max()))
    narrow = (2.0 * (widths[i] ** 2 + widths[j] ** 2)).rsqrt()
    wide = (2.0 * (smooth[i] ** 2 + smooth[j] ** 2)).rsqrt()
    near = (torch.erf(distances * narrow) - torch.erf(distances * wide)) / distances
    own = (1.0 / widths - 1.0 / smooth) / math.sqrt(math.pi)
    # A charge is seen together with its background, in the short-ranged part too.
    background = (smooth**2 - widths**2) * (2.0 * math.pi / volume)
    return CoulombTerms(waves * (8.0 * math.pi / volume).sqrt(), i, j, near, own, background)


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
    reach = torch.linalg.vector_norm(cell.detach(), dim=1) * (wave_range / (2.0 * math.pi))
    orders = lattice_points(reach.floor(), positions)
    orders = orders[orders.shape[0] // 2 + 1 :]  # in the order of counting, −k mirrors k
    waves = torch.mm(orders, 2.0 * math.pi * torch.linalg.inv(cell).t())
    inside = (waves.detach() ** 2).sum(1) < wave_range**2
    waves = waves[inside]
    square = (waves * waves).sum(1)[:, None]
    variance = (widths * widths)[None, :]
    if bool((widths == widths[0]).all()):
        variance = variance[:, :1]  # one column for all atoms, which is the most common case
    amplitude = torch.exp(-0.5 * square * variance) * square.rsqrt()
    phase = torch.mm(waves, positions.t())
    return torch.cat([amplitude * torch.cos(phase), amplitude * torch.sin(phase)])


def image_pairs(positions: Tensor, cell: Tensor, cutoff: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Every pair of atoms and images closer than the cutoff, once; an atom pairs with its images.

    Returns
    -------
    i (P,), j (P,), and distances (P,) | Å, differentiable in positions and cell
    """
    num_atoms = positions.shape[0]
    inverse = torch.linalg.inv(cell.detach())
    fractional = torch.mm(positions.detach(), inverse)
    indices = torch.triu_indices(num_atoms, num_atoms, device=positions.device)
    i, j = indices[0], indices[1]
    between = fractional[j] - fractional[i]
    nearest = -between.round()
    start = torch.mm(between + nearest, cell.detach())
    # Planes of the lattice are 1/|b| apart; the nearest image is at most half a cell away.
    heights = 1.0 / torch.linalg.vector_norm(inverse, dim=0)
    images = lattice_points((cutoff / heights + 0.5).floor(), positions)
    steps = torch.mm(images, cell.detach())
    # |start + step|² < cutoff², with few passes over what is the largest array of the sum
    rest = cutoff**2 - (start * start).sum(1)
    square = torch.addmm((steps * steps).sum(1)[None, :], start, steps.t(), alpha=2.0)
    found = torch.nonzero(square < rest[:, None])
    pair, image = found[:, 0], found[:, 1]
    once = (i != j)[pair] | (image > images.shape[0] // 2)
    pair, image = pair[once], image[once]
    i, j = i[pair], j[pair]
    vectors = positions[j] - positions[i] + torch.mm(nearest[pair] + images[image], cell)
    return i, j, torch.linalg.vector_norm(vectors, dim=1)


def lattice_points(reach: Tensor, like: Tensor) -> Tensor:
    """All integer triples from −reach to reach (3,), the origin in the middle: (K, 3)."""
    axes: List[Tensor] = []
    for axis in range(3):
        n = int(reach[axis])
        axes.append(torch.arange(-n, n + 1, device=like.device))
    return torch.cartesian_prod(axes[0], axes[1], axes[2]).to(like.dtype)
