"""Conjugate gradients for the charges of one large structure, without forming any matrix.

They give what the dense solves of ``qeq.py`` and ``split_charge.py`` give, and no gradient: the
energies are variational, so that MD needs none. K = J + A is applied as Coulomb terms.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from phicalc.electrostatics.coulomb import CoulombTerms, apply_coulomb
from phicalc.electrostatics.laplacian import adjacency_matrix, node_sum
from phicalc.errors import ConvergenceError

DENSE_LIMIT: int = 320
"""Structures up to this many atoms are solved densely."""

TOLERANCE: float = 1e-10
"""Relative residual at which the iterations stop."""

ROUNDING: float = 1e-8
"""Part of sᵀ diag(L) s in the norm of a source, so that one that drives no flow has a norm too."""

MAX_ITERATIONS: int = 1000
"""Where they give up and report the residual they have."""


def check_converged(residual: float) -> None:
    """Raise ConvergenceError where an iteration gave up far from its goal."""
    if not residual <= 1e-6:
        raise ConvergenceError(
            "expected charges solved to a relative residual of 1e-6; the structure is far from all "
            "that the model was trained on"
        )


def equilibrate_iteratively(
    electronegativity: Tensor,
    hardness: Tensor,
    terms: CoulombTerms,
    total_charge: Tensor,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tuple[Tensor, int, float]:
    """Charges of least energy Σ χ_i q_i + ½ qᵀKq at Σ q = Q: projected conjugate gradients.

    Every step is a neutral one: the preconditioned residual is taken relative to its weighted mean
    (N. I. M. Gould et al., doi:10.1137/S1064827598345667).

    Parameters
    ----------
    electronegativity, hardness
        (N,) | V, eV/e²
    terms
        A of the structure | eV/e²
    total_charge
        (1,) | e

    Returns
    -------
    q (N,) | e, number of iterations, relative residual
    """
    scale = 1.0 / (hardness + terms.own)
    share = scale / scale.sum()
    charges = total_charge * share
    residual = -electronegativity - hardness * charges - apply_coulomb(terms, charges)
    residual = residual - (share * residual).sum()
    step = scale * residual
    rho = float(torch.dot(residual, step))
    target = rho * tolerance**2
    start = rho
    direction = step
    iterations = 0
    while rho > target and iterations < max_iterations:
        image = hardness * direction + apply_coulomb(terms, direction)
        length = rho / float(torch.dot(direction, image))
        charges = torch.add(charges, direction, alpha=length)
        residual = torch.sub(residual, image, alpha=length)
        residual = residual - (share * residual).sum()  # the level of χ, which rounding feeds on
        step = scale * residual
        rho_next = float(torch.dot(residual, step))
        direction = torch.add(step, direction, alpha=rho_next / rho)
        rho = rho_next
        iterations += 1
    return charges, iterations, (max(rho, 0.0) / max(start, 1e-300)) ** 0.5


def flow_iteratively(
    source: Tensor,
    weights: Tensor,
    edge_index: Tensor,
    hardness: Tensor,
    terms: Optional[CoulombTerms],
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    rounding: float = ROUNDING,
) -> Tuple[Tensor, int, float]:
    """φ of (1 + K L) φ = s by conjugate gradients in the inner product xᵀLy.

    1 + K L is symmetric in that product, with all eigenvalues at 1 or above. What it can't see, a
    constant on each connected component, moves no charge and no energy.

    Parameters
    ----------
    source
        (N,) | V | s − A q⁰
    weights, edge_index
        (E,), (2, E) | edges sorted by receiver
    hardness, terms
        J (N,) and A | eV/e²; no terms, no Coulomb
    guess
        (N,) | starting vector; the source without one

    Returns
    -------
    φ (N,) | V, number of iterations, relative residual in the norm √(xᵀLx)
    """
    num_nodes = source.shape[0]
    adjacency = adjacency_matrix(weights, edge_index, num_nodes)
    degree = node_sum(weights, edge_index, num_nodes)

    potential = source if guess is None else guess
    residual = source - potential - kernel(hardness, terms, laplace(adjacency, degree, potential))
    flow = laplace(adjacency, degree, residual)
    rho = float(torch.dot(residual, flow))
    norm = float(torch.dot(source, laplace(adjacency, degree, source)))
    norm = norm + rounding * float(torch.dot(degree, source * source))
    target = norm * tolerance**2
    direction, direction_flow = residual, flow
    iterations = 0
    while rho > target and iterations < max_iterations:
        image = direction + kernel(hardness, terms, direction_flow)
        length = rho / float(torch.dot(direction_flow, image))
        potential = torch.add(potential, direction, alpha=length)
        residual = torch.sub(residual, image, alpha=length)
        flow = laplace(adjacency, degree, residual)
        rho_next = float(torch.dot(residual, flow))
        direction = torch.add(residual, direction, alpha=rho_next / rho)
        direction_flow = torch.add(flow, direction_flow, alpha=rho_next / rho)
        rho = rho_next
        iterations += 1
    return potential, iterations, (max(rho, 0.0) / max(norm, 1e-300)) ** 0.5


def kernel(hardness: Tensor, terms: Optional[CoulombTerms], charges: Tensor) -> Tensor:
    """(J + A) q (N,) | V."""
    potential = hardness * charges
    if terms is not None:
        potential = potential + apply_coulomb(terms, charges)
    return potential


def laplace(adjacency: Tensor, degree: Tensor, potential: Tensor) -> Tensor:
    """Lφ (N,) from L = diag(degree) − adjacency."""
    return degree * potential - torch.mv(adjacency, potential)
