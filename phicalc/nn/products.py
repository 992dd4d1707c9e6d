"""Products of the densities around an atom: scalars, vectors and traceless symmetric tensors.

Tensors of rank 2 have five components t_m in an orthonormal basis B_m of the symmetric traceless
3 × 3 matrices, tr(B_m B_n) = δ_mn, so that lengths are sums of squares; products are taken of the
matrices T = Σ_m t_m B_m.
"""

import math
from typing import Final, Tuple

import torch
from torch import Tensor, nn

from phicalc.nn.saturation import saturate

INVARIANTS: int = 10
"""Scalars that :class:`Products` makes of each channel."""

EQUIVARIANTS: int = 3
"""Vectors that it makes of each channel."""


def matrices(tensors: Tensor) -> Tensor:
    """Σ_m t_m B_m of components (N, 5, C): (N, 3, 3, C)."""
    xy, xz, yz, d, q = tensors.unbind(1)
    half = math.sqrt(0.5)
    xy, xz, yz, d, q = half * xy, half * xz, half * yz, half * d, math.sqrt(1.0 / 6.0) * q
    rows = [d - q, xy, xz, xy, -d - q, yz, xz, yz, 2.0 * q]
    return torch.stack(rows, 1).view(-1, 3, 3, tensors.shape[2])


def components(products: Tensor) -> Tensor:
    """tr(B_m M) of matrices (N, 3, 3, C), all that they have of rank 2: (N, 5, C)."""
    m, half = products, math.sqrt(0.5)
    parts = [
        half * (m[:, 0, 1] + m[:, 1, 0]),
        half * (m[:, 0, 2] + m[:, 2, 0]),
        half * (m[:, 1, 2] + m[:, 2, 1]),
        half * (m[:, 0, 0] - m[:, 1, 1]),
        math.sqrt(1.0 / 6.0) * (2.0 * m[:, 2, 2] - m[:, 0, 0] - m[:, 1, 1]),
    ]
    return torch.stack(parts, 1)


def quadrupoles(directions: Tensor) -> Tensor:
    """r̂r̂ᵀ − 1/3 in that basis, (P, 5) of unit vectors (P, 3), times √(3/2) so that its length is 1.

    These are the real spherical harmonics of l = 2 but for their order and a factor.
    """
    x, y, z = directions.unbind(1)
    root = math.sqrt(3.0)
    parts = [
        root * x * y,
        root * x * z,
        root * y * z,
        (0.5 * root) * (x * x - y * y),
        z * z - 0.5 * (x * x + y * y),
    ]
    return torch.stack(parts, 1)


def compressed(features: Tensor) -> Tensor:
    """Features over √(1 + their mean square over channels): below 1 in the mean, and smooth.

    Of scalars (N, C), or of vectors or tensors (N, D, C), whose lengths count.
    """
    square = features * features
    if features.dim() == 3:
        square = square.sum(1, keepdim=True)
    return features * torch.rsqrt(1.0 + square.mean(-1, keepdim=True))


class Products(nn.Module):
    """An atom's features from the densities around it: their products, up to body order 5.

    Channels of the densities are mixed, compressed kind by kind, into s₁, s₂; v₁, v₂, v₃ and
    T₁, T₂, T₃. Channel by channel these make invariants, which are linear in up to four of them,

        h, s₁;  s₁s₂, v₁·v₂, T₁:T₂;  v₂·T₁v₁, tr T₁T₂T₃;  |T₁v₁|², v₃·T₃T₁v₁, |T₁T₂|²

    of which all that the atom's features h change by is a linear function, with a weight of its own
    for each element and product; and vectors v₁, T₁v₁, T₃T₁v₁, each times such a function, which
    the next step's senders carry. Sums over many neighbours taken to the fourth power would be
    large: what enters is bounded.

    The products are those of the atomic cluster expansion (10.1103/PhysRevB.99.014104) between
    channels of equal number, as in MACE (arXiv 2206.07697), in Cartesian form (CACE, arXiv
    2402.07472; TensorNet, arXiv 2306.06482).

    Parameters
    ----------
    features, num_species
        width F, number of elements
    last
        of the last step nobody asks for vectors
    """

    last: Final[bool]

    def __init__(self, features: int, num_species: int, last: bool) -> None:
        super().__init__()
        self.features = features
        self.last = last
        self.mix_scalars = nn.Linear(features, 2 * features, bias=False)
        self.mix_vectors = nn.Linear(features, 3 * features, bias=False)
        self.mix_tensors = nn.Linear(features, 3 * features, bias=False)
        self.by_species = nn.Embedding(num_species, INVARIANTS * features)
        nn.init.ones_(self.by_species.weight)
        outputs = 1 if last else 1 + EQUIVARIANTS
        self.update = nn.Linear(INVARIANTS * features, outputs * features)
        if not last:
            self.to_vectors = nn.Linear(EQUIVARIANTS * features, features, bias=False)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        density: Tuple[Tensor, Tensor, Tensor],
        species: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        """New features (N, F) and vectors (N, 3, F); the last step leaves the vectors alone.

        Parameters
        ----------
        scalars, vectors
            (N, F), (N, 3, F) | features h of the atoms and what goes with them
        density
            (N, F), (N, 3, F), (N, 5, F) | of l = 0, 1 and 2
        species
            (N,) int64 | place of each atom's element in the model's list
        """
        f = self.features
        s1, s2 = compressed(self.mix_scalars(density[0])).split(f, 1)
        v1, v2, v3 = compressed(self.mix_vectors(density[1])).split(f, 2)
        t1, t2, t3 = matrices(compressed(self.mix_tensors(density[2]))).split(f, 3)
        tv = (t1 * v1[:, None]).sum(2)
        ttv = (t3 * tv[:, None]).sum(2)
        tt = (t1[:, :, :, None] * t2[:, None]).sum(2)
        invariants = [
            scalars,
            s1,
            s1 * s2,
            (v1 * v2).sum(1),
            (t1 * t2).sum([1, 2]),
            (v2 * tv).sum(1),
            (tt * t3).sum([1, 2]),
            (tv * tv).sum(1),
            (v3 * ttv).sum(1),
            (tt * tt).sum([1, 2]),
        ]
        changes = self.update(torch.cat(invariants, 1) * self.by_species(species))
        if self.last:
            return saturate(scalars + changes), vectors
        sizes = changes[:, None].split(f, 2)
        parts = torch.cat([v1 * sizes[1], tv * sizes[2], ttv * sizes[3]], 2)
        return saturate(scalars + sizes[0].squeeze(1)), saturate(vectors + self.to_vectors(parts))
