"""Charge that flows along the edges of the graph: its potential, and how it answers to a field.

What the phi-coulomb head is built from; see there for the energy and its symbols.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.operator import Coulomb
from phicalc.electrostatics.electric_field import FieldResponse, edge_drops
from phicalc.electrostatics.laplacian import (
    adjacency_matrix,
    apply_laplacian,
    edge_difference,
    laplace,
    laplacian_rows,
    node_sum,
)
from phicalc.electrostatics.padding import from_rows
from phicalc.electrostatics.solvers.charges import (
    MAX_ITERATIONS,
    TOLERANCE,
    check_converged,
    relative_square,
    root,
)
from phicalc.electrostatics.solvers.flow_inverse import descend_by_inverse
from phicalc.electrostatics.solvers.looks import (
    iterations_between_looks,
    look,
    plus,
    quotient,
    unseen,
)

ROUNDING: float = 1e-8
"""Part of sᵀ diag(L) s in the norm of a source, so that one that drives no flow has a norm too."""


class FlowParameters(NamedTuple):
    """What the flow of charge in a structure or a batch depends on, besides A and a field."""

    source: Tensor  # (N,) | V | s
    weights: Tensor  # (E,) | e/V | w
    hardness: Tensor  # (N,) | eV/e² | J
    base: Tensor  # (N,) | e | q⁰


def detached(parameters: FlowParameters) -> FlowParameters:
    """The same numbers without their gradients."""
    return FlowParameters(
        parameters.source.detach(),
        parameters.weights.detach(),
        parameters.hardness.detach(),
        parameters.base.detach(),
    )


def flow_potential(source: Tensor, laplacian: Tensor, kernel: Tensor) -> Tensor:
    """φ of (1 + K L) φ = s, K = J + A, whose flow Lφ minimises E(p) for each structure of a batch.

    Parameters
    ----------
    source
        (B, M) | V | s − A q⁰
    laplacian, kernel
        (B, M, M) | e/V and eV/e², both symmetric and positive semidefinite

    Returns
    -------
    (B, M) | V; differentiable to any order
    """
    system = torch.matmul(kernel, laplacian)
    system = system + torch.eye(system.shape[1], dtype=system.dtype, device=system.device)
    potential: Tensor = torch.linalg.solve(system, source[:, :, None]).squeeze(2)
    return potential


def solve_potential(
    source: Tensor,
    parameters: FlowParameters,
    coulomb: Coulomb,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tuple[Tensor, int, float]:
    """φ (N,) | V of (1 + (J + A) L) φ = source, of every structure.

    Differentiable to any order where A is a differentiable matrix. Returns and raises what
    `flow_iteratively` does; a direct solve has no iterations and no residual.
    """
    graph = coulomb.graph
    if coulomb.matrices is None:
        return flow_iteratively(
            source,
            parameters.weights,
            graph[fields.EDGE_INDEX],
            parameters.hardness,
            coulomb,
            guess,
            tolerance,
            max_iterations,
            inverse=graph.get(fields.INVERSE),
        )
    kernel = coulomb.kernel(parameters.hardness)
    laplacian = laplacian_rows(
        parameters.weights,
        graph[fields.EDGE_INDEX],
        coulomb.slots,
        kernel.shape[0],
        kernel.shape[1],
    )
    rows = flow_potential(coulomb.rows(source), laplacian, kernel)
    return from_rows(rows, coulomb.slots), 0, 0.0


def solve_flow(
    parameters: FlowParameters,
    coulomb: Coulomb,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    refinements: int = 1,
) -> Tuple[Tensor, Tensor, int, float]:
    """Potential and flow of a structure or a batch.

    Parameters
    ----------
    coulomb
        A; its graph needs EDGE_INDEX and EDGE_VECTORS, and may hold FIELD and INVERSE
    guess
        (N,) | V | potential to start iterations from
    refinements
        see `refine_flow`

    Returns
    -------
    φ (N,) | V, ρ (N,) | e, number of iterations, relative residual

    Raises
    ------
    ConvergenceError
    """
    if not torch.jit.is_scripting() and coulomb.refined():  # type: ignore[attr-defined]
        solved = solve_flow(detached(parameters), coulomb.fixed())
        potential, flow = refine_flow(parameters, coulomb, solved[0], refinements)
        return potential, flow, 0, 0.0
    edge_index, drops = coulomb.graph[fields.EDGE_INDEX], edge_drops(coulomb.graph)
    driven = driven_charges(parameters.weights, drops, edge_index, parameters.source)
    right = parameters.source - parameters.hardness * driven
    right = right - coulomb.apply(parameters.base + driven)
    potential, iterations, residual = solve_potential(
        right, parameters, coulomb, guess, tolerance, max_iterations
    )
    flow = apply_laplacian(parameters.weights, edge_index, potential) + driven
    return potential, flow, iterations, residual


def refine_flow(
    parameters: FlowParameters, coulomb: Coulomb, potential: Tensor, steps: int
) -> Tuple[Tensor, Tensor]:
    """Potential and flow (N,) with derivatives, from a potential without.

    Each step is one of Newton's method with a constant matrix, and makes derivatives of one more
    order right. A head's energy is stationary, so a loss on its forces needs the first alone.
    """
    edge_index, drops = coulomb.graph[fields.EDGE_INDEX], edge_drops(coulomb.graph)
    fixed, slots = detached(parameters), coulomb.slots
    kernel = coulomb.kernel(fixed.hardness)
    num, size = kernel.shape[0], kernel.shape[1]
    system = torch.matmul(kernel, laplacian_rows(fixed.weights, edge_index, slots, num, size))
    system = system + torch.eye(size, dtype=system.dtype, device=system.device)
    factors, pivots = torch.linalg.lu_factor(system)
    driven = driven_charges(parameters.weights, drops, edge_index, parameters.source)
    for _ in range(steps):
        flow = apply_laplacian(parameters.weights, edge_index, potential) + driven
        felt = parameters.hardness * flow + coulomb.apply(parameters.base + flow)
        rows = coulomb.rows(parameters.source - potential - felt)
        change = torch.linalg.lu_solve(factors, pivots, rows[:, :, None]).squeeze(2)
        potential = potential + from_rows(change, slots)
    return potential, apply_laplacian(parameters.weights, edge_index, potential) + driven


def flow_iteratively(
    source: Tensor,
    weights: Tensor,
    edge_index: Tensor,
    hardness: Tensor,
    coulomb: Coulomb,
    guess: Optional[Tensor] = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    rounding: float = ROUNDING,
    inverse: Optional[Tensor] = None,
    block: int = 0,
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
    hardness, coulomb
        J (N,) | eV/e², and A
    guess
        (N,) | starting vector; the source without one
    inverse
        (N, N) | about (1 + K L)⁻¹, with which to go as far as it goes: see `flow_inverse`
    block
        iterations between looks at the residual; 0: as many as suit the device

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
    charges = laplace(adjacency, degree, potential)
    residual = source - potential - (hardness * charges + coulomb.apply(charges))
    norm = torch.dot(source, laplace(adjacency, degree, source))
    norm = norm + rounding * torch.dot(degree, source * source)
    target = norm * tolerance**2
    launched = 0
    if inverse is not None:
        potential, residual, launched = descend_by_inverse(
            potential, residual, inverse, adjacency, degree, hardness, coulomb, float(target)
        )
    flow = laplace(adjacency, degree, residual)
    rho = torch.dot(residual, flow)
    direction, direction_flow = residual, flow
    iterations = torch.full_like(rho, float(launched))
    block = block if block > 0 else iterations_between_looks(source)
    seen = look(rho, norm, iterations) if block == 1 else unseen()
    while seen.square > seen.norm * tolerance**2 and launched < max_iterations:
        for _ in range(min(block, max_iterations - launched)):
            going = rho > target
            image = direction + (hardness * direction_flow + coulomb.apply(direction_flow))
            length = quotient(rho, torch.dot(direction_flow, image), going)
            potential = plus(potential, direction, length)
            residual = plus(residual, image, -length)
            flow = laplace(adjacency, degree, residual)
            rho_next = torch.dot(residual, flow)
            share = quotient(rho_next, rho, going)
            direction = plus(residual, direction, share)
            direction_flow = plus(flow, direction_flow, share)
            rho = torch.where(going, rho_next, rho)
            iterations = iterations + going
            launched += 1
        seen = look(rho, norm, iterations)
    left = root(relative_square(seen.square, seen.norm))
    check_converged(left)
    return potential, seen.iterations, left


def flow_response(
    parameters: FlowParameters, coulomb: Coulomb, max_iterations: int = MAX_ITERATIONS
) -> FieldResponse:
    """Polarisation of one structure and its response to a field: four iterative solves.

    Arguments as of `solve_flow`; the graph needs POSITIONS, CELL and BATCH besides.

    Raises
    ------
    ConvergenceError
    """
    graph = coulomb.graph
    edge_index, vectors = graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS]
    source, weights, base = parameters.source, parameters.weights, parameters.base
    fixed = detached(parameters)
    fixed_coulomb = coulomb.fixed()
    solved = solve_flow(fixed, fixed_coulomb, max_iterations=max_iterations)
    potential, flow = solved[0], solved[1]
    differences = driving_differences(potential, graph)
    moment = flow_moment(base, weights * differences, graph)[0]
    mixed: List[Tensor] = []
    polarisability: List[Tensor] = []
    for axis in range(3):
        along = vectors[:, axis]
        driven = driven_charges(fixed.weights, along, edge_index, fixed.source).detach()
        right = -(fixed.hardness * driven + fixed_coulomb.apply(driven))
        change = solve_potential(right, fixed, fixed_coulomb, max_iterations=max_iterations)[0]
        flow_change = apply_laplacian(fixed.weights, edge_index, change) + driven
        difference_change = edge_difference(change, edge_index) - along
        mixed.append(
            coulomb.coupling(flow_change, base + flow).sum()
            - (flow_change * source).sum()
            - 0.5 * (weights * differences * difference_change).sum()
            - (base * graph[fields.POSITIONS][:, axis]).sum()
        )
        polarisability.append(-0.5 * torch.mv(vectors.t(), weights * difference_change))
    return FieldResponse(torch.stack(mixed), moment, torch.stack(polarisability, 1))


def driving_differences(potential: Tensor, graph: Dict[str, Tensor]) -> Tensor:
    """φ_i − φ_j − f·r_e of every edge (E,) | V, which times its weight is its flow."""
    differences, drops = edge_difference(potential, graph[fields.EDGE_INDEX]), edge_drops(graph)
    if drops is not None:
        differences = differences - drops
    return differences


def driven_charges(
    weights: Tensor, drops: Optional[Tensor], edge_index: Tensor, like: Tensor
) -> Tensor:
    """Charges (N,) | e that drops f·r_e (E,) | V alone drive into the atoms, at equal potential."""
    if drops is None:
        return torch.zeros_like(like)
    return -node_sum(weights * drops, edge_index, like.shape[0])


def flow_moment(base: Tensor, flows: Tensor, graph: Dict[str, Tensor]) -> Tensor:
    """P V (B, 3) | e·Å of base charges (N,) | e and the flow of every edge (E,) | e."""
    batch, vectors = graph[fields.BATCH], graph[fields.EDGE_VECTORS]
    moment = base[:, None] * graph[fields.POSITIONS]
    # every edge stands twice in the list, hence the half
    moment = moment - 0.5 * node_sum(flows[:, None] * vectors, graph[fields.EDGE_INDEX], len(base))
    return torch.zeros_like(graph[fields.CELL][:, 0]).index_add(0, batch, moment)
