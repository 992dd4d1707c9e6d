"""Equilibration of charges, by matrices or by conjugate gradients: whichever A is made for.

The iterations give what the dense solve gives, and no gradient: the energies are variational, so
that MD needs none.

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
    mesh_shape,
    typical_density,
)
from phicalc.electrostatics.coulomb.operator import Coulomb
from phicalc.electrostatics.on_cpu import cell_on_cpu, pbc_on_cpu
from phicalc.electrostatics.padding import from_rows
from phicalc.electrostatics.solvers.looks import (
    iterations_between_looks,
    look,
    plus,
    quotient,
    unseen,
)
from phicalc.errors import ConvergenceError
from phicalc.units import COULOMB_CONSTANT

TOLERANCE: float = 1e-8
"""Relative residual at which the iterations stop."""

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


def solve_charges(
    electronegativity: Tensor,
    hardness: Tensor,
    coulomb: Coulomb,
    total_charge: Tensor,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    refinements: int = 1,
) -> Tuple[Tensor, int, float]:
    """Charges (N,) | e that minimise Σ χ_i q_i + ½ qᵀ(J + A)q at Σ q = Q, of every structure.

    Differentiable where A is a matrix. Arguments and what else is returned as of
    `equilibrate_iteratively`; a direct solve has no iterations and no residual.

    Raises
    ------
    ConvergenceError
    """
    if not torch.jit.is_scripting() and coulomb.refined():  # type: ignore[attr-defined]
        return refine_charges(electronegativity, hardness, coulomb, total_charge, refinements)
    if coulomb.matrices is not None:
        rows = equilibrate(coulomb.rows(electronegativity), coulomb.kernel(hardness), total_charge)
        return from_rows(rows, coulomb.slots), 0, 0.0
    return equilibrate_iteratively(
        electronegativity,
        hardness,
        coulomb,
        total_charge,
        screening_mesh(coulomb.graph, hardness + coulomb.diagonal()),
        guess,
        tolerance,
        max_iterations,
    )


def refine_charges(
    electronegativity: Tensor, hardness: Tensor, coulomb: Coulomb, total_charge: Tensor, steps: int
) -> Tuple[Tensor, int, float]:
    """The same from a solve without derivatives, which steps of refining it add.

    Each is one of Newton's method with a constant matrix, and makes derivatives of one more order
    right. A head's energy is stationary, so a loss on its forces needs the first alone.
    """
    kernel, slots = coulomb.kernel(hardness.detach()), coulomb.slots
    rows = equilibrate(coulomb.rows(electronegativity.detach()), kernel, total_charge)
    charges = from_rows(rows, slots)
    for _ in range(steps):
        potential = electronegativity + hardness * charges + coulomb.apply(charges)
        missing = total_charge - coulomb.rows(charges).sum(1)
        change = equilibrate(coulomb.rows(potential), kernel, missing)
        charges = charges + from_rows(change, slots)
    return charges, 0, 0.0


def equilibrate(electronegativity: Tensor, kernel: Tensor, total_charge: Tensor) -> Tensor:
    """Charges that minimise Σ χ_i q_i + ½ qᵀKq at Σ q = Q, for each structure of a batch.

    Parameters
    ----------
    electronegativity
        (B, M) | V | χ
    kernel
        (B, M, M) | eV/e² | J + A, symmetric, positive definite, zero where padded
    total_charge
        (B,) | e

    Returns
    -------
    (B, M) | e, zero where padded; differentiable to any order
    """
    diagonal = kernel.diagonal(0, 1, 2)
    real = (diagonal > 0).to(kernel.dtype)
    padded = kernel + torch.diag_embed(1.0 - real)
    solved = torch.linalg.solve(padded, torch.stack([-electronegativity * real, real], 2))
    free, uniform = solved[:, :, 0], solved[:, :, 1]
    level = (total_charge - free.sum(1)) / uniform.sum(1)
    charges: Tensor = free + level[:, None] * uniform
    return charges


def screening_mesh(
    graph: Dict[str, Tensor],
    diagonal: Tensor,
    constant: float = COULOMB_CONSTANT,
    spacing: float = SCREENING_SPACING,
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
    if not bool(pbc_on_cpu(graph).all()):
        return None
    cell = graph[fields.CELL].detach()[0]
    cpu_cell = cell_on_cpu(graph)[0]
    width = affordable_spacing(cpu_cell, spacing, diagonal.shape[0])
    rule = MeshRule(width, width, 4, 6.4)
    classes = torch.zeros(diagonal.shape[0], dtype=torch.int64, device=diagonal.device)
    variance = torch.full([1, 1], 2.0 * width**2, dtype=diagonal.dtype, device=diagonal.device)
    shape = mesh_shape(cpu_cell, width)
    mesh = build_mesh(graph[fields.POSITIONS].detach(), cell, shape, classes, variance, rule)
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
    coulomb: Coulomb,
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
    coulomb
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
        coulomb,
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
            coulomb,
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
    coulomb: Coulomb,
    total_charge: Tensor,
    screening: Optional[Mesh],
    charges: Tensor,
    tolerance: float,
    max_iterations: int,
    block: int = 0,
) -> Tuple[Tensor, int, float]:
    """The iterations of `equilibrate_iteratively`, and the square of the relative residual.

    Every step is a neutral one: the preconditioned residual M⁻¹r is taken less its part along
    M⁻¹1 (N. I. M. Gould et al., doi:10.1137/S1064827598345667). Ends with a negative square where
    the preconditioner is not positive definite. Looks at the residual after each block of
    iterations; 0: as many as suit the device.
    """
    diagonal = hardness + coulomb.diagonal()
    uniform = precondition(screening, diagonal, torch.ones_like(diagonal))
    share = uniform / uniform.sum()
    # The residual is measured against that of no charges, and χ's level where they hardly vary.
    step = precondition(screening, diagonal, electronegativity)
    norm = torch.dot(electronegativity, step - share * step.sum())
    norm = norm + total_charge.abs().sum() ** 2 / uniform.sum()
    norm = norm + 1e-6 * (electronegativity**2 / diagonal).sum()

    charges = charges + share * (total_charge - charges.sum())
    residual = -electronegativity - hardness * charges - coulomb.apply(charges)
    residual = residual - torch.dot(share, residual)
    step = precondition(screening, diagonal, residual)
    step = step - share * step.sum()
    rho = torch.dot(residual, step)
    target = norm * tolerance**2
    direction = step
    iterations = torch.zeros_like(rho)
    block = block if block > 0 else iterations_between_looks(charges)
    launched = 0
    seen = look(rho, norm, iterations) if block == 1 else unseen()
    while seen.square > seen.norm * tolerance**2 and launched < max_iterations:
        for _ in range(min(block, max_iterations - launched)):
            going = rho > target
            image = hardness * direction + coulomb.apply(direction)
            length = quotient(rho, torch.dot(direction, image), going)
            charges = plus(charges, direction, length)
            residual = plus(residual, image, -length)
            residual = residual - torch.dot(share, residual)  # χ's level, which rounding feeds on
            step = precondition(screening, diagonal, residual)
            step = step - share * step.sum()
            rho_next = torch.dot(residual, step)
            direction = plus(step, direction, quotient(rho_next, rho, going))
            rho = torch.where(going, rho_next, rho)
            iterations = iterations + going
            launched += 1
        seen = look(rho, norm, iterations)
    return charges, seen.iterations, relative_square(seen.square, seen.norm)
