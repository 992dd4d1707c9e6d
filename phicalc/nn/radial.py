"""Radial functions of the distance between two atoms: cutoff envelopes and basis sets.

Every function works on distances of any shape, in their own dtype, and can be differentiated
twice. The modules only remember the constants; none of them has parameters.
"""

import math

import torch
from torch import Tensor, nn

from phicalc.envelope import polynomial_envelope


def cosine_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """Cutoff function ½ (cos(π r/r_c) + 1), 0 from r_c on; only C¹ there.

    Parameters
    ----------
    distances
        (...) | Å | distances r ≥ 0.
    cutoff
        r_c in Å.

    Returns
    -------
    Tensor
        (...) | - | in [0, 1].

    Source: doi 10.1063/1.3553717.
    """
    return 0.5 * (torch.cos((math.pi / cutoff) * distances.clamp(max=cutoff)) + 1.0)


def bessel_basis(distances: Tensor, count: int, cutoff: float) -> Tensor:
    """Radial Bessel functions √(2/r_c) sin(nπ r/r_c)/r, n = 1 … count.

    Orthonormal on [0, r_c] with weight r² and 0 at r_c; they are not cut off beyond it.

    Parameters
    ----------
    distances
        (...) | Å | distances r > 0.
    count
        Number of functions.
    cutoff
        r_c in Å.

    Returns
    -------
    Tensor
        (..., count) | Å^(−3/2) | values of the functions.

    Source: arXiv 2003.03123, eq. 7.
    """
    order = torch.arange(1, count + 1, dtype=distances.dtype, device=distances.device)
    r = distances.unsqueeze(-1)
    return math.sqrt(2.0 / cutoff) * torch.sin(order * (math.pi / cutoff) * r) / r


def gaussian_basis(distances: Tensor, count: int, cutoff: float) -> Tensor:
    """Gaussians exp(−(r − r_n)²/(2d²)) at `count` centres from 0 to r_c, d apart and d wide.

    Parameters
    ----------
    distances
        (...) | Å | distances r ≥ 0.
    count
        Number of functions, at least 2.
    cutoff
        r_c in Å, the last centre.

    Returns
    -------
    Tensor
        (..., count) | - | values of the functions.

    Source: arXiv 1706.08566, with the width of torch_geometric's GaussianSmearing.
    """
    order = torch.arange(count, dtype=distances.dtype, device=distances.device)
    spacing = cutoff / (count - 1)
    return torch.exp(-0.5 * (distances.unsqueeze(-1) / spacing - order).square())


class PolynomialEnvelope(nn.Module):
    """The C² cutoff function 1 − 10x³ + 15x⁴ − 6x⁵, x = r/r_c: (...) | Å → (...) | -."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)

    def forward(self, distances: Tensor) -> Tensor:
        return polynomial_envelope(distances / self.cutoff)


class CosineEnvelope(nn.Module):
    """The C¹ cutoff function `cosine_envelope`: (...) | Å → (...) | -."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)

    def forward(self, distances: Tensor) -> Tensor:
        return cosine_envelope(distances, self.cutoff)


class BesselBasis(nn.Module):
    """The radial Bessel functions `bessel_basis`: (...) | Å → (..., count) | Å^(−3/2)."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.count = int(count)
        self.cutoff = float(cutoff)

    def forward(self, distances: Tensor) -> Tensor:
        return bessel_basis(distances, self.count, self.cutoff)


class GaussianBasis(nn.Module):
    """The Gaussians `gaussian_basis`: (...) | Å → (..., count) | -."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.count = int(count)
        self.cutoff = float(cutoff)

    def forward(self, distances: Tensor) -> Tensor:
        return gaussian_basis(distances, self.count, self.cutoff)


def starting_scale(basis: BesselBasis, average_neighbours: float) -> float:
    """Standard deviation of filters at whose start a sum over spread neighbours has variance 1.

    Neighbours fill the cutoff evenly. What they have in common, the sum of the radial functions,
    counts besides what differs.
    """
    x = (torch.arange(200) + 0.5) / 200
    shell = 3.0 * x**2 / 200 * max(average_neighbours, 1.0)
    values = basis(x * basis.cutoff) * polynomial_envelope(x)[:, None]
    coherent = (shell[:, None] * values).sum(0).square().sum()
    random = (shell[:, None] * values.square()).sum()
    return float((coherent + random).rsqrt())
