"""Conjugate gradients for the charges of one large structure.

They give what the dense solves of the qeq and phi-coulomb heads give, and no gradient: the
energies are variational, so that MD needs none. K = J + A is applied as a `CoulombOperator`.

An error δq of the charges enters the energy as δq² and the forces as δq. The iterations stop at a
relative residual of 1e-8 in a float64 model, which keeps forces to about 1e-7 eV/Å whatever they
started from, and at 1e-6 in a float32 one, whose network rounds forces to about 1e-5 eV/Å.
"""

import math
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.capabilities import DENSE_LIMIT as DENSE_LIMIT
from phicalc.electrostatics.coulomb.mesh import (
    Mesh,
    MeshRule,
    affordable_spacing,
    apply_mesh,
    build_mesh,
    typical_density,
)
from phicalc.electrostatics.coulomb.operator import CoulombOperator, apply_operator
from phicalc.electrostatics.laplacian import adjacency_matrix, node_sum
from phicalc.errors import ConvergenceError

TOLERANCE: float = 1e-8
"""Relative residual at which the iterations stop."""

ROUNDING: float = 1e-8
"""Part of sᵀ diag(L) s in the norm of a source, so that one that drives no flow has a norm too."""

SINGLE_TOLERANCE: float = 1e-6
"""The same for a network in single precision."""

LARGEST_RESIDUAL: float = 1e-6
"""Relative residual of a solve above which a result is an error, not a result."""

MAX_ITERATIONS: int = 1000
"""Where they give up."""

SCREENING_SPACING: float = 1.2
"""Å, of the coarse mesh on which the preconditioner screens long waves."""


def solver_tolerance(
    wanted: float, features: Tensor, double: float = TOLERANCE, single: float = SINGLE_TOLERANCE
) -> float:
    """The tolerance that is wanted or, where that is 0, the one for the network's precision."""
    if wanted > 0.0:
        return wanted
    return single if features.dtype == torch.float32 else double


def check_converged(residual: float, largest: float = LARGEST_RESIDUAL) -> None:
    """Raise ConvergenceError where an iteration gave up far from its goal, or at NaN."""
    if not residual <= largest:
        # TorchScript knows no other format that is fit for small numbers.
        numbers = "%e, got %e" % (largest, residual)  # noqa: UP031
        raise ConvergenceError(
            f"expected charges solved to a relative residual of {numbers}; the structure is far "
            "from all that the model was trained on"
        )


def relative_square(square: float, norm: float) -> float:
    """A squared residual over that of a source, which has none if it is nothing."""
    return square if norm == 0.0 else square / norm


def root(square: float) -> float:
    """√ of a square that rounding may have made negative. NaN stays NaN and never converged.

    Not max(square, 0.0), which is 0.0 for NaN in TorchScript.
    """
    return 0.0 if square < 0.0 else square**0.5


def screening_mesh(
    graph: Dict[str, Tensor], diagonal: Tensor, constant: float, spacing: float = SCREENING_SPACING
) -> Optional[Mesh]:
    """What the long waves of A subtract from 1/D in (D + A)⁻¹, for a crystal.

    With A ≈ W G Wᵀ on a coarse mesh, (D + W G Wᵀ)⁻¹ = 1/D − 1/D W (1/G + Wᵀ(1/D)W)⁻¹ Wᵀ 1/D, where
    Wᵀ(1/D)W is replaced by a number, as in a uniform medium. Iterations to 1e-6 from no charges,
    without and with it: 14 and 10 for 192 atoms of water, 29 and 10 for 3,000.

    Parameters
    ----------
    graph
        needs POSITIONS, CELL and PBC
    diagonal
        (N,) | eV/e² | D
    constant
        k_e | eV Å/e²
    spacing
        Å, of the coarse mesh, and the width of what it resolves; wider where a cell is dilute
    """
    if not bool(graph[fields.PBC].all()):
        return None
    cell = graph[fields.CELL].detach()[0]
    width = affordable_spacing(cell, spacing, diagonal.shape[0])
    rule = MeshRule(width, width, 4, 6.4)
    classes = torch.zeros(diagonal.shape[0], dtype=torch.int64, device=diagonal.device)
    variance = torch.full([1, 1], 2.0 * width**2, dtype=diagonal.dtype, device=diagonal.device)
    mesh = build_mesh(graph[fields.POSITIONS].detach(), cell, classes, variance, rule)
    response = typical_density(mesh, 1.0 / diagonal)
    square = (mesh.waves * mesh.waves).sum(1).view(mesh.kernel[0, 0].shape)
    screening = 4.0 * math.pi * constant * response * torch.exp(-square * width**2)
    square[0, 0, 0] = 1.0
    mesh.kernel.mul_(constant / (1.0 + screening / square))
    return mesh


def precondition(mesh: Optional[Mesh], diagonal: Tensor, residual: Tensor) -> Tensor:
    """About (D + A)⁻¹ r."""
    step = residual / diagonal
    if mesh is not None:
        step = step - apply_mesh(mesh, step) / diagonal
    return step


def equilibrate_iteratively(
    electronegativity: Tensor,
    hardness: Tensor,
    operator: CoulombOperator,
    total_charge: Tensor,
    screening: Optional[Mesh] = None,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tuple[Tensor, int, float]:
    """Charges of least energy Σ χ_i q_i + ½ qᵀKq at Σ q = Q: projected conjugate gradients.

    Parameters
    ----------
    electronegativity, hardness
        (N,) | V, eV/e²
    operator
        A of the structure
    total_charge
        (1,) | e
    screening
        long waves of the preconditioner; without them it is Jacobi's
    guess
        (N,) | e | starting charges, of any sum

    Returns
    -------
    q (N,) | e, number of iterations, relative residual in the norm of the preconditioner

    Raises
    ------
    ConvergenceError
    """
    charges = torch.zeros_like(electronegativity) if guess is None else guess
    charges, iterations, square = descend(
        electronegativity,
        hardness,
        operator,
        total_charge,
        screening,
        charges,
        tolerance,
        max_iterations,
    )
    if square < 0.0:  # screening was too much for a medium that is far from uniform
        charges, more, square = descend(
            electronegativity,
            hardness,
            operator,
            total_charge,
            None,
            charges,
            tolerance,
            max_iterations,
        )
        iterations += more
    residual = root(square)
    check_converged(residual)
    return charges, iterations, residual


def descend(
    electronegativity: Tensor,
    hardness: Tensor,
    operator: CoulombOperator,
    total_charge: Tensor,
    screening: Optional[Mesh],
    charges: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Tuple[Tensor, int, float]:
    """The iterations of `equilibrate_iteratively`, and the square of the relative residual.

    Every step is a neutral one: the preconditioned residual M⁻¹r is taken less its part along
    M⁻¹1 (N. I. M. Gould et al., doi:10.1137/S1064827598345667). Ends with a negative square where
    the preconditioner is not positive definite.
    """
    diagonal = hardness + operator.diagonal
    uniform = precondition(screening, diagonal, torch.ones_like(diagonal))
    share = uniform / uniform.sum()
    # The residual is measured against that of no charges, and χ's level where they hardly vary.
    step = precondition(screening, diagonal, electronegativity)
    norm = float(torch.dot(electronegativity, step - share * step.sum()))
    norm = norm + float(total_charge.abs().sum() ** 2 / uniform.sum())
    norm = norm + 1e-6 * float((electronegativity**2 / diagonal).sum())

    charges = charges + share * (total_charge - charges.sum())
    residual = -electronegativity - hardness * charges - apply_operator(operator, charges)
    residual = residual - torch.dot(share, residual)
    step = precondition(screening, diagonal, residual)
    step = step - share * step.sum()
    rho = float(torch.dot(residual, step))
    direction = step
    iterations = 0
    while rho > norm * tolerance**2 and iterations < max_iterations:
        image = hardness * direction + apply_operator(operator, direction)
        length = rho / float(torch.dot(direction, image))
        charges = torch.add(charges, direction, alpha=length)
        residual = torch.sub(residual, image, alpha=length)
        residual = residual - torch.dot(share, residual)  # χ's level, which rounding feeds on
        step = precondition(screening, diagonal, residual)
        step = step - share * step.sum()
        rho_next = float(torch.dot(residual, step))
        direction = torch.add(step, direction, alpha=rho_next / rho)
        rho = rho_next
        iterations += 1
    return charges, iterations, relative_square(rho, norm)


def flow_iteratively(
    source: Tensor,
    weights: Tensor,
    edge_index: Tensor,
    hardness: Tensor,
    operator: Optional[CoulombOperator],
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
    hardness, operator
        J (N,) | eV/e², and A; no operator, no Coulomb
    guess
        (N,) | starting vector; the source without one

    Returns
    -------
    φ (N,) | V, number of iterations, relative residual in the norm √(xᵀLx)

    Raises
    ------
    ConvergenceError
    """
    num_nodes = source.shape[0]
    adjacency = adjacency_matrix(weights, edge_index, num_nodes)
    degree = node_sum(weights, edge_index, num_nodes)

    potential = source if guess is None else guess
    residual = (
        source - potential - kernel(hardness, operator, laplace(adjacency, degree, potential))
    )
    flow = laplace(adjacency, degree, residual)
    rho = float(torch.dot(residual, flow))
    norm = float(torch.dot(source, laplace(adjacency, degree, source)))
    norm = norm + rounding * float(torch.dot(degree, source * source))
    target = norm * tolerance**2
    direction, direction_flow = residual, flow
    iterations = 0
    while rho > target and iterations < max_iterations:
        image = direction + kernel(hardness, operator, direction_flow)
        length = rho / float(torch.dot(direction_flow, image))
        potential = torch.add(potential, direction, alpha=length)
        residual = torch.sub(residual, image, alpha=length)
        flow = laplace(adjacency, degree, residual)
        rho_next = float(torch.dot(residual, flow))
        direction = torch.add(residual, direction, alpha=rho_next / rho)
        direction_flow = torch.add(flow, direction_flow, alpha=rho_next / rho)
        rho = rho_next
        iterations += 1
    left = root(relative_square(rho, norm))
    check_converged(left)
    return potential, iterations, left


def kernel(hardness: Tensor, operator: Optional[CoulombOperator], charges: Tensor) -> Tensor:
    """(J + A) q (N,) | V."""
    potential = hardness * charges
    if operator is not None:
        potential = potential + apply_operator(operator, charges)
    return potential


def laplace(adjacency: Tensor, degree: Tensor, potential: Tensor) -> Tensor:
    """Lφ (N,) from L = diag(degree) − adjacency."""
    return degree * potential - torch.mv(adjacency, potential)
