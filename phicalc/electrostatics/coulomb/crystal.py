"""Ewald's sum of one crystal, applied to charges; derivatives of any order cost what it costs.

The matrix is that of ``ewald.py``, and so are the terms. What takes the time of a training step is
to differentiate, twice, through the table of all waves at all atoms,

    W = e^(−k²v_i/2) · (cos k·r_i, sin k·r_i),   v = s²

Its derivatives in r, k and v are W again, times small factors:

    ∂/∂r (cos, sin) = k (−sin, cos),   ∂/∂k = r (−sin, cos) − k v (cos, sin),   ∂/∂v = −k²/2

so that every derivative of the sums W q and Wᵀg, of any order, is a product of W with a few
columns. W is computed once and held constant.
"""

import math
from collections.abc import Callable
from typing import Any, List, NamedTuple, Tuple

import torch
from torch import Tensor

from phicalc.electrostatics.coulomb.ewald import (
    WAVE_RANGE,
    best_split,
    long_waves,
    short_ranged_terms,
)
from phicalc.units import COULOMB_CONSTANT


class WaveTable(NamedTuple):
    """The waves of one crystal, K of them, at its N atoms."""

    table: Tensor  # (2K, N) | W, cosines above sines; constant
    positions: Tensor  # (N, 3) | Å
    waves: Tensor  # (K, 3) | 1/Å | k, one of ±k
    variances: Tensor  # (N,) | Å² | v


class Attached(torch.autograd.Function):
    """Zeros with a given gradient in one variable, which is a function of the output's gradient."""

    @staticmethod
    def forward(
        ctx: Any, variable: Tensor, shape: torch.Size, gradient_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.gradient_of = gradient_of
        return variable.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None, None]:
        return ctx.gradient_of(gradient), None, None


def attach(value: Tensor, variable: Tensor, gradient_of: Callable[[Tensor], Tensor]) -> Tensor:
    """A value without gradient in the variable, and the one it lacks.

    Each variable is a node of its own, so that a backward pass to the parameters of a model does
    not work out second derivatives in positions and cell, which nobody asks for.
    """
    if not (variable.requires_grad and torch.is_grad_enabled()):
        return value
    zeros: Tensor = Attached.apply(variable, value.shape, gradient_of)
    return value + zeros


def spread(at: WaveTable, columns: Tensor) -> Tensor:
    """W Q (2K, C) of columns Q (N, C), differentiable to any order."""
    product = attach(torch.mm(at.table, columns.detach()), columns, lambda g: gather(at, g))
    product = attach(product, at.positions, lambda g: of_positions(at, columns, g))
    product = attach(product, at.waves, lambda g: of_waves(at, columns, g))
    return attach(product, at.variances, lambda g: of_variances(at, columns, g))


def gather(at: WaveTable, columns: Tensor) -> Tensor:
    """Wᵀ G (N, C) of columns G (2K, C), differentiable to any order."""
    product = attach(torch.mm(at.table.t(), columns.detach()), columns, lambda q: spread(at, q))
    product = attach(product, at.positions, lambda q: of_positions(at, q, columns))
    product = attach(product, at.waves, lambda q: of_waves(at, q, columns))
    return attach(product, at.variances, lambda q: of_variances(at, q, columns))


def of_positions(at: WaveTable, atoms: Tensor, waves: Tensor) -> Tensor:
    """Gradient (N, 3) of Σ_c G_cᵀ W Q_c in r, of columns Q (N, C) and G (2K, C)."""
    cosine, sine = waves.chunk(2)
    turned = torch.cat([sine, -cosine])
    along = torch.cat([at.waves, at.waves])
    felt = gather(at, (along[:, :, None] * turned[:, None]).flatten(1))
    gradient: Tensor = (felt.unflatten(1, (3, -1)) * atoms[:, None]).sum(2)
    return gradient


def of_waves(at: WaveTable, atoms: Tensor, waves: Tensor) -> Tensor:
    """The same in k: (K, 3)."""
    cosine, sine = waves.chunk(2)
    factors = torch.cat([at.positions, at.variances[:, None]], 1)
    sums = spread(at, (factors[:, :, None] * atoms[:, None]).flatten(1))
    even, odd = sums.unflatten(1, (4, -1)).chunk(2)
    turned = (sine[:, None] * even[:, :3] - cosine[:, None] * odd[:, :3]).sum(2)
    damped = (cosine * even[:, 3] + sine * odd[:, 3]).sum(1, keepdim=True)
    gradient: Tensor = turned - at.waves * damped
    return gradient


def of_variances(at: WaveTable, atoms: Tensor, waves: Tensor) -> Tensor:
    """The same in v: (N,)."""
    square = (at.waves * at.waves).sum(1, keepdim=True)
    return -0.5 * (gather(at, torch.cat([square, square]) * waves) * atoms).sum(1)


class CrystalSum(NamedTuple):
    """A of one crystal in units of k_e, as what it takes to apply it. P pairs."""

    at: WaveTable
    strengths: Tensor  # (2K,) | 1/Å | of the waves
    first: Tensor  # (P,) int64
    second: Tensor  # (P,) int64
    near: Tensor  # (P,) | 1/Å | short-ranged interaction
    own: Tensor  # (N,) | 1/Å
    background: Tensor  # (N,) | 1/Å


def crystal_sum(positions: Tensor, cell: Tensor, widths: Tensor) -> CrystalSum:
    """A of charges of widths (N,) at positions (N, 3) in a cell (3, 3) | Å."""
    split_width = best_split(cell.detach(), positions.shape[0], float(widths.detach().max()))
    smooth = widths.clamp(min=split_width)
    waves = long_waves(cell, WAVE_RANGE / split_width, positions.shape[0])
    variances = smooth * smooth
    with torch.no_grad():
        square = (waves * waves).sum(1)
        phase = torch.mm(waves, positions.t())
        amplitude = torch.exp(-0.5 * square[:, None] * variances[None, :])
        table = torch.cat([amplitude * torch.cos(phase), amplitude * torch.sin(phase)])
    strength = (8.0 * math.pi / torch.linalg.det(cell).abs()) / (waves * waves).sum(1)
    return CrystalSum(
        WaveTable(table, positions, waves, variances),
        torch.cat([strength, strength]),
        *short_ranged_terms(positions, cell, widths, smooth),
    )


def apply_crystal(crystal: CrystalSum, charges: Tensor) -> Tensor:
    """A q (N,) | e/Å of charges (N,) | e, differentiable to any order."""
    amounts = spread(crystal.at, charges[:, None])
    potential = gather(crystal.at, crystal.strengths[:, None] * amounts).squeeze(1)
    first, second, near = crystal.first, crystal.second, crystal.near
    potential = potential.index_add(0, first, near * charges.index_select(0, second))
    potential = potential.index_add(0, second, near * charges.index_select(0, first))
    potential = potential + crystal.own * charges
    return potential - crystal.background * charges.sum() - (crystal.background * charges).sum()


def apply_crystals(
    crystals: List[CrystalSum], charges: Tensor, constant: float = COULOMB_CONSTANT
) -> Tensor:
    """A q (N,) | V of charges (N,) | e of a batch, differentiable in all that A depends on."""
    parts = charges.split([crystal.own.shape[0] for crystal in crystals])
    pairs = zip(crystals, parts, strict=True)
    return constant * torch.cat([apply_crystal(crystal, part) for crystal, part in pairs])


def crystal_matrix(crystal: CrystalSum) -> Tensor:
    """A (N, N) | 1/Å, without gradient."""
    num_atoms = crystal.own.shape[0]
    own, near, background = crystal.own.detach(), crystal.near.detach(), crystal.background.detach()
    pairs = torch.zeros(num_atoms * num_atoms, dtype=near.dtype, device=near.device)
    pairs = pairs.index_add(0, crystal.first * num_atoms + crystal.second, near)
    pairs = pairs.view(num_atoms, num_atoms)
    table = crystal.at.table
    far = torch.mm(table.t(), table * crystal.strengths.detach()[:, None])
    matrix = far + pairs + pairs.t() + torch.diag(own) - background[:, None] - background
    return 0.5 * (matrix + matrix.t())
