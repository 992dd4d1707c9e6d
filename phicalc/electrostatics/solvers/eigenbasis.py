"""The Laplacian eigenbasis, kept across MD steps, and when it is worth keeping.

The slow part of a conjugate-gradient solve of (L + μ)φ = b is the long-wavelength end of the
spectrum, which the k lowest eigenvectors of L span. They change little while the neighbour
topology stays, so they are computed once per topology and reused as the coarse space of the
solver; a new topology starts from the old vectors with one Chebyshev-filtered Rayleigh–Ritz
sweep (Zhou, Saad, Tiago, Chelikowsky, doi:10.1016/j.jcp.2006.03.017).
"""

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor

from phicalc.electrostatics.laplacian import adjacency_matrix, dense_laplacian

MIN_DEGREE, MAX_DEGREE = 8, 60
MAX_SWEEPS = 30
RITZ_TOLERANCE = 1e-2
"""Relative change of the sum of Ritz values at which a cold start is good enough."""

DENSE_SPECTRUM_LIMIT = 3000
TRIAL_STEPS = 5
"""Steps without and then with the basis, after which the cheaper of the two goes on."""

ITERATION_COST_PER_VECTOR = 0.02
"""What each basis vector adds to an iteration, as a share of an iteration without a basis."""

SOLVE_COST_PER_VECTOR = 1.1
"""What each basis vector costs per solve outside the iterations (the coarse matrix, and its share
of refreshing the basis), in iterations without a basis. Both measured by
tests/benchmarks/eigenbasis_cache.py."""


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


@dataclass
class CacheInfo:
    """What the cache did since it was made."""

    steps: int = 0
    """Solves observed."""
    topologies: int = 0
    """Neighbour topologies seen."""
    refreshes: int = 0
    """Times the basis was computed."""
    basis_steps: int = 0
    """Solves that were given a basis."""
    direct_steps: int = 0
    """Solves small enough for a direct solve, which needs neither basis nor start."""
    iterations: int = 0
    """Conjugate-gradient iterations in all."""
    last_iterations: int = 0
    last_residual: float = 0.0
    mode: str = "not used yet"
    """'direct', 'basis', 'no basis' (does not pay here) or 'trial' (finding out)."""

    @property
    def reuse_fraction(self) -> float:
        """Share of the steps on which the neighbour topology was unchanged."""
        return 1.0 - self.topologies / self.steps if self.steps else 0.0


class SolverCache:
    """Basis and starting vector of the Φ solve, from one MD step to the next.

    Whatever it holds costs or saves iterations and never changes the answer beyond the solver's
    tolerance. Whether the basis pays is decided from iteration counts alone, so that a run is
    reproducible: ``TRIAL_STEPS`` without it, as many with it, then the cheaper.

    Parameters
    ----------
    size
        number k of eigenvectors
    policy
        ``"auto"``, or ``"always"`` / ``"never"`` use the basis (for measurements)
    """

    def __init__(self, size: int = 32, policy: str = "auto") -> None:
        self.size = size
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next solve starts cold."""
        self.info = CacheInfo()
        self._num_nodes = -1
        self.restart()

    def restart(self) -> None:
        """Forget the last structure, keep the counts."""
        self._basis: Optional[Tensor] = None
        self._topology: Optional[int] = None
        self._history: list[Tensor] = []
        self._plain_iterations: list[int] = []
        self._basis_iterations: list[int] = []
        self._gave_basis = False

    def basis(self, num_nodes: int) -> Optional[Tensor]:
        """Basis (N, k) for the coming solve, or None."""
        if num_nodes != self._num_nodes:
            self.restart()
            self._num_nodes = num_nodes
        self._gave_basis = self._basis is not None and self._wants_basis()
        return self._basis if self._gave_basis else None

    def guess(self) -> Optional[Tensor]:
        """Starting vector (N,): the last potentials, extrapolated; or None."""
        if not self._history:
            return None
        if len(self._history) == 1:
            return self._history[0]
        if len(self._history) == 2:
            return 2.0 * self._history[0] - self._history[1]
        return 3.0 * (self._history[0] - self._history[1]) + self._history[2]

    def observe(
        self,
        topology: int,
        weights: Optional[Tensor],
        edge_index: Tensor,
        potential: Tensor,
        iterations: int,
        residual: float,
    ) -> None:
        """Learn from a finished solve; computes the basis of a new topology if it is wanted."""
        info = self.info
        info.steps += 1
        info.iterations += iterations
        info.last_iterations, info.last_residual = iterations, residual
        info.basis_steps += self._gave_basis
        new_topology = topology != self._topology
        info.topologies += new_topology
        self._topology = topology
        if iterations == 0 and residual == 0.0:
            info.direct_steps += 1
            info.mode = "direct"
            return
        counts = self._basis_iterations if self._gave_basis else self._plain_iterations
        if len(self._history) == 3 and len(counts) < TRIAL_STEPS:
            counts.append(iterations)
        self._history = [potential, *self._history[:2]]
        if self._wants_basis() and (new_topology or self._basis is None):
            assert weights is not None
            _, self._basis = lowest_eigenvectors(
                weights, edge_index, self._num_nodes, self.size, self._basis
            )
            info.refreshes += 1

    def _wants_basis(self) -> bool:
        if self.size == 0:
            self.info.mode = "no basis"
            return False
        if self.policy != "auto":
            self.info.mode = "basis" if self.policy == "always" else "no basis"
            return self.policy == "always"
        if len(self._plain_iterations) < TRIAL_STEPS:
            self.info.mode = "trial"
            return False
        if len(self._basis_iterations) < TRIAL_STEPS:
            self.info.mode = "trial"
            return True
        plain = sum(self._plain_iterations) / TRIAL_STEPS
        based = sum(self._basis_iterations) / TRIAL_STEPS
        per_iteration = 1.0 + ITERATION_COST_PER_VECTOR * self.size
        pays = based * per_iteration + SOLVE_COST_PER_VECTOR * self.size < plain
        self.info.mode = "basis" if pays else "no basis"
        return pays
