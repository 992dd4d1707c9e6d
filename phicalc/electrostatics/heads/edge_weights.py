"""Edge weights of Φ's Laplacian: of the distance, or random ones that mean nothing.

Random weights are a baseline: the same solve and the same number of parameters on a graph whose
weights know nothing of bonds. What Φ is better by is what its Laplacian adds.
"""

from typing import List

import torch
from torch import Tensor, nn

from phicalc.electrostatics.laplacian import edge_weights
from phicalc.envelope import polynomial_envelope

HARMONICS = 4


class DistanceWeights(nn.Module):
    """env(r/r_c)·exp(−(r/σ)²), see :func:`phicalc.electrostatics.laplacian.edge_weights`."""

    def __init__(self, cutoff: float, sigma: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.sigma = sigma

    def forward(self, distances: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """(E,) | e/V from distances (E,) | Å; the species of the ends do not matter."""
        return edge_weights(distances, self.cutoff, self.sigma)


class RandomWeights(nn.Module):
    """env(x)·exp(Σ_k c_k cos(kπx)), x = r/r_c, with fixed random c_k for each pair of elements.

    Positive, symmetric in the ends of an edge, C² and 0 at the cutoff, independent of the order of
    atoms: all that the Laplacian needs, and nothing of chemistry. The c_k are normal, drawn once
    for each pair from its atomic numbers and the seed, and stored with the model.
    """

    coefficients: Tensor

    def __init__(self, cutoff: float, elements: List[int], seed: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        count = len(elements)
        values = torch.zeros(count, count, HARMONICS, dtype=torch.float64)
        for i, first in enumerate(elements):
            for j, second in enumerate(elements):
                pair = 1000 * min(first, second) + max(first, second)
                generator = torch.Generator().manual_seed(1_000_000 * seed + pair)
                values[i, j] = torch.randn(HARMONICS, generator=generator, dtype=torch.float64)
        self.register_buffer("coefficients", values)

    def forward(self, distances: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """(E,) | e/V from distances (E,) | Å and the species index of either end (E,)."""
        x = distances / self.cutoff
        exponent = torch.zeros_like(x)
        chosen = self.coefficients.double()[receiver, sender]
        for k in range(chosen.shape[1]):
            exponent = exponent + chosen[:, k] * torch.cos((k + 1) * torch.pi * x)
        return polynomial_envelope(x) * exponent.exp()
