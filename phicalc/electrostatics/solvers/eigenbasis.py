"""The lowest eigenvectors of the Laplacian.

The slow part of a conjugate-gradient solve of (L + μ)φ = b is the long-wavelength end of the
spectrum, which the k lowest eigenvectors of L span. They change little while the neighbour
topology stays, so they are computed once per topology and reused as the coarse space of the
solver; a new topology starts from the old vectors with one Chebyshev-filtered Rayleigh–Ritz
sweep (Zhou, Saad, Tiago, Chelikowsky, doi:10.1016/j.jcp.2006.03.017).
"""

import math
from typing import Optional, Tuple

import torch
from torch import Tensor

from phicalc.electrostatics.laplacian import adjacency_matrix, dense_laplacian

MIN_DEGREE, MAX_DEGREE = 8, 60
MAX_SWEEPS = 30
RITZ_TOLERANCE = 1e-2
"""Relative change of the sum of Ritz values at which a cold start is good enough."""

DENSE_SPECTRUM_LIMIT = 3000


class LaplacianOperator:
    """L = D − W as a sparse operator on blocks of vectors (N, k)."""

    def __init__(self, weights: Tensor, edge_index: Tensor, num_nodes: int) -> None:
        self.adjacency = adjacency_matrix(weights, edge_index, num_nodes)
        ones = torch.ones(num_nodes, 1, dtype=weights.dtype, device=weights.device)
        self.degree = self.adjacency @ ones
        self.upper_bound = 2.0 * float(self.degree.max()) if num_nodes else 0.0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.degree * vectors - self.adjacency @ vectors


def rayleigh_ritz(operator: LaplacianOperator, vectors: Tensor) -> Tuple[Tensor, Tensor]:
    """Best approximate eigenpairs in a span: values (k,) ascending, orthonormal vectors (N, k)."""
    orthonormal, _ = torch.linalg.qr(vectors)
    projected = orthonormal.T @ (operator @ orthonormal)
    values, rotation = torch.linalg.eigh(0.5 * (projected + projected.T))
    return values, orthonormal @ rotation


def chebyshev_filter(
    operator: LaplacianOperator, vectors: Tensor, lower: float, degree: int
) -> Tensor:
    """Damp the components of ``vectors`` with eigenvalues between ``lower`` and the top."""
    half_width = 0.5 * (operator.upper_bound - lower)
    centre = 0.5 * (operator.upper_bound + lower)
    # Scaled so that the lowest eigenvalue, 0, keeps size one.
    sigma_start = -half_width / centre
    sigma = sigma_start
    previous = vectors
    current = (operator @ vectors - centre * vectors) * (sigma / half_width)
    for _ in range(degree - 1):
        sigma_next = 1.0 / (2.0 / sigma_start - sigma)
        step = (operator @ current - centre * current) * (2.0 * sigma_next / half_width)
        previous, current = current, step - sigma * sigma_next * previous
        sigma = sigma_next
    return current


def lowest_eigenvectors(
    weights: Tensor, edge_index: Tensor, num_nodes: int, size: int, start: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Approximately the ``size`` lowest eigenpairs of L.

    Parameters
    ----------
    weights, edge_index
        (E,), (2, E) | edges sorted by receiver
    start
        (N, k) | vectors of a similar graph: one sweep is then enough; from none it takes a few

    Returns
    -------
    λ (k,) ascending and U (N, k) orthonormal, k = min(size, N)
    """
    operator = LaplacianOperator(weights, edge_index, num_nodes)
    cold = start is None
    if start is None:
        generator = torch.Generator().manual_seed(0)
        shape = (num_nodes, min(size, num_nodes))
        start = torch.randn(shape, dtype=weights.dtype, generator=generator).to(weights.device)
    values, vectors = rayleigh_ritz(operator, start)
    for _ in range(MAX_SWEEPS if cold else 1):
        lower = float(values[-1])
        if not 1e-12 * operator.upper_bound < lower < 0.999 * operator.upper_bound:
            break  # all that was asked for is in the kernel, or in the whole space
        degree = math.ceil(math.sqrt(operator.upper_bound / lower))
        degree = min(max(degree, MIN_DEGREE), MAX_DEGREE)
        before = float(values.sum())
        values, vectors = rayleigh_ritz(
            operator, chebyshev_filter(operator, vectors, lower, degree)
        )
        if before - float(values.sum()) < RITZ_TOLERANCE * before:
            break
    return values, vectors


def spectrum(
    weights: Tensor, edge_index: Tensor, potential: Tensor, size: Optional[int] = None
) -> Tuple[Tensor, Tensor]:
    """Eigenvalues of L and coefficients α_k = u_kᵀφ of the potential φ = Σ α_k u_k.

    Of Φ alone they are μ/(λ_k + μ)·u_kᵀs.

    Parameters
    ----------
    potential
        (N,) | φ in V
    size
        number of modes, lowest first; all of them by default, up to ``DENSE_SPECTRUM_LIMIT``
        atoms, 64 approximate ones beyond

    Returns
    -------
    λ, α both (k,). Each α has the sign of its eigenvector, which is arbitrary.
    """
    num_nodes = potential.shape[0]
    if num_nodes <= DENSE_SPECTRUM_LIMIT:
        values, vectors = torch.linalg.eigh(dense_laplacian(weights, edge_index, num_nodes))
        values, vectors = values[:size], vectors[:, :size]
    else:
        values, vectors = lowest_eigenvectors(weights, edge_index, num_nodes, size or 64)
    return values, vectors.T @ potential
