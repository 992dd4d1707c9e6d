"""Solving the screened graph Poisson equation (L + μ) φ = b, in float64.

Small structures are solved directly (Cholesky, exact and free of history). Larger ones by
conjugate gradients with two levels: an exact solve in the span of the cached low eigenvectors
of L, Jacobi on the rest. A stale basis or a poor starting vector costs iterations, never
accuracy. Training differentiates the solve implicitly: the backward of a solve is a solve.
"""

import math
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from phicalc.electrostatics.laplacian import (
    adjacency_matrix,
    edge_difference,
    laplacian_rows,
    node_sum,
)
from phicalc.electrostatics.padding import from_rows, row_slots, to_rows
from phicalc.electrostatics.solvers.charges import check_converged
from phicalc.electrostatics.solvers.looks import (
    iterations_between_looks,
    look,
    plus,
    quotient,
    unseen,
)

TOLERANCE: float = 1e-9
"""Relative residual of the preconditioned system at which the iteration stops."""

DIRECT_LIMIT: int = 256
"""Structures up to this many atoms are solved by Cholesky: measured faster than any iteration."""

MAX_ITERATIONS: int = 2000
"""Where the iteration gives up."""


def solve_direct(
    weights: Tensor, edge_index: Tensor, mu: Tensor, b: Tensor, slots: Tensor, num: int, size: int
) -> Tensor:
    """Cholesky solve of every structure as one padded batch of dense blocks: (N,) → (N,).

    Of ``num`` structures of up to ``size`` atoms, each at its place in the rows, ``slots`` (N,). A
    failure raises ConvergenceError on a CPU; on a GPU, which nobody waits for, it is NaN.
    """
    matrices = laplacian_rows(weights, edge_index, slots, num, size)
    matrices.diagonal(0, 1, 2).add_(mu)
    right = to_rows(b, slots, num, size)[:, :, None]
    factors, failures = torch.linalg.cholesky_ex(matrices)
    solution = torch.cholesky_solve(right, factors)
    failed = failures != 0  # L + μ is positive definite, but for NaN
    if solution.device.type != "cpu":
        solution = solution.masked_fill(failed[:, None, None], math.nan)
    elif bool(failed.any()):
        check_converged(math.nan)
    return from_rows(solution, slots)


def solve_iterative(
    weights: Tensor,
    edge_index: Tensor,
    mu: Tensor,
    b: Tensor,
    basis: Optional[Tensor],
    guess: Optional[Tensor],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    block: int = 0,
) -> Tuple[Tensor, int, float]:
    """Two-level conjugate gradients (deflation) with Jacobi preconditioning.

    Jacobi is applied from both sides, D^-½ (L + μ) D^-½ = 1 − W̃ with D = diag(L) + μ, which
    leaves one sparse product and a handful of vector operations per iteration.

    Parameters
    ----------
    weights, edge_index
        (E,), (2, E) | edges sorted by receiver
    mu
        () | screening μ > 0
    b
        (N,) | right-hand side
    basis
        (N, k) | vectors that span the coarse space, linearly independent; need not be exact
    guess
        (N,) | starting vector; zero without one
    block
        iterations between looks at the residual; 0: as many as suit the device

    Returns
    -------
    φ (N,), number of iterations, relative residual ‖b − (L + μ)φ‖/‖b‖ in the norm of D^-½. The
    caller decides what a residual above the tolerance means.
    """
    num_nodes = b.shape[0]
    block = block if block > 0 else iterations_between_looks(b)
    scale = (node_sum(weights, edge_index, num_nodes) + mu).rsqrt()
    scaled = weights * scale.index_select(0, edge_index[0]) * scale.index_select(0, edge_index[1])
    adjacency = adjacency_matrix(scaled, edge_index, num_nodes)
    right = b * scale
    norm = right.norm()
    target = (tolerance * norm) ** 2

    y = torch.zeros_like(b)
    residual = right
    if guess is not None:
        y = guess / scale
        residual = right - y + torch.mv(adjacency, y)
    use_basis = basis is not None
    image = torch.zeros(0, 0, dtype=b.dtype, device=b.device)
    lift = image
    if basis is not None:
        coarse = basis / scale[:, None]
        image = coarse - torch.mm(adjacency, coarse)
        inverse, _ = torch.linalg.inv_ex(torch.mm(coarse.t(), image), check_errors=block == 1)
        lift = torch.mm(coarse, inverse)
        y = y + torch.mv(lift, torch.mv(coarse.t(), residual))
        residual = right - y + torch.mv(adjacency, y)

    direction = torch.zeros_like(b)
    rho = torch.dot(residual, residual)
    beta = torch.zeros_like(rho)
    iterations = torch.zeros_like(rho)
    launched = 0
    seen = look(rho, target, iterations) if block == 1 else unseen()
    while seen.square > seen.norm and launched < max_iterations:
        for _ in range(min(block, max_iterations - launched)):
            going = rho > target
            z = residual
            if use_basis:
                z = residual - torch.mv(lift, torch.mv(image.t(), residual))
            direction = plus(z, direction, beta)
            product = direction - torch.mv(adjacency, direction)
            step = quotient(rho, torch.dot(direction, product), going)
            y = plus(y, direction, step)
            residual = plus(residual, product, -step)
            rho_next = torch.dot(residual, residual)
            beta = quotient(rho_next, rho, going)
            rho = torch.where(going, rho_next, rho)
            iterations = iterations + going
            launched += 1
        seen = look(rho, target, iterations)
    true_residual = right - y + torch.mv(adjacency, y)
    seen = look(true_residual.norm(), norm, iterations)
    return y * scale, seen.iterations, seen.square / max(seen.norm, 1e-300)


def solve_poisson(
    weights: Tensor,
    edge_index: Tensor,
    mu: Tensor,
    b: Tensor,
    batch: Tensor,
    basis: Optional[Tensor] = None,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    direct_limit: int = DIRECT_LIMIT,
    max_iterations: int = MAX_ITERATIONS,
    num_structures: int = 0,
) -> Tuple[Tensor, int, float]:
    """φ = (L + μ)⁻¹ b without gradient: directly if small, else by conjugate gradients.

    The number of structures is that of the batch where it is not given. Returns φ (N,), the number
    of iterations (0: direct) and the relative residual.

    Raises
    ------
    ConvergenceError
    """
    num = num_structures if num_structures > 0 else int(batch.max()) + 1
    slots, size = row_slots(batch, num)
    if size <= direct_limit:
        return solve_direct(weights, edge_index, mu, b, slots, num, size), 0, 0.0
    potential, iterations, residual = solve_iterative(
        weights, edge_index, mu, b, basis, guess, tolerance, max_iterations
    )
    check_converged(residual)
    return potential, iterations, residual


class PoissonSolve(torch.autograd.Function):
    """φ = (L + μ)⁻¹ b, differentiable to any order in weights, μ and b.

    With λ = (L + μ)⁻¹ ∂ℓ/∂φ the gradients are ∂ℓ/∂b = λ, ∂ℓ/∂μ = −λᵀφ and, per directed edge,
    ∂ℓ/∂w_e = −λ_i (φ_i − φ_j). They hold for weights that are equal in both directions of a pair.
    Raises ConvergenceError, forwards and backwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        mu: Tensor,
        b: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        direct_limit: int = DIRECT_LIMIT,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Tensor:
        ctx.limits = direct_limit, max_iterations
        solution, _, _ = solve_poisson(
            weights,
            edge_index,
            mu,
            b,
            batch,
            direct_limit=direct_limit,
            max_iterations=max_iterations,
        )
        ctx.save_for_backward(weights, mu, solution, edge_index, batch)
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        weights, mu, solution, edge_index, batch = ctx.saved_tensors
        adjoint = PoissonSolve.apply(weights, mu, grad, edge_index, batch, *ctx.limits)
        flow = edge_difference(solution, edge_index)
        grad_weights = -adjoint.index_select(0, edge_index[1]) * flow
        grad_mu = -(adjoint * solution).sum()
        return grad_weights, grad_mu, adjoint, None, None, None, None
