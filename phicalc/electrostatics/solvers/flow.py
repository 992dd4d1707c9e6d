"""Charge that flows along the edges of the graph: its potential, and how it answers to a field.

What the phi-coulomb head is built from; see there for the energy and its symbols.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.operator import (
    CoulombOperator,
    apply_operator,
    coulomb_coupling,
)
from phicalc.electrostatics.electric_field import FieldResponse, edge_drops
from phicalc.electrostatics.laplacian import (
    apply_laplacian,
    edge_difference,
    laplacian_rows,
    node_sum,
)
from phicalc.electrostatics.padding import from_rows, multiply_rows, row_slots, to_rows
from phicalc.electrostatics.solvers.charges import (
    MAX_ITERATIONS,
    TOLERANCE,
    flow_iteratively,
    kernel,
)


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


def dense_potential(
    source: Tensor, parameters: FlowParameters, matrices: Tensor, graph: Dict[str, Tensor]
) -> Tensor:
    """``flow_potential`` (N,) | V of the atoms of a batch, from a source (N,) and A (B, M, M)."""
    num, size = matrices.shape[0], matrices.shape[1]
    slots, _ = row_slots(graph[fields.BATCH], num)
    laplacian = laplacian_rows(parameters.weights, graph[fields.EDGE_INDEX], slots, num, size)
    diagonal = torch.diag_embed(to_rows(parameters.hardness, slots, num, size))
    rows = flow_potential(to_rows(source, slots, num, size), laplacian, matrices + diagonal)
    return from_rows(rows, slots)


def solve_flow_densely(
    parameters: FlowParameters, matrices: Tensor, graph: Dict[str, Tensor], training: bool
) -> Tuple[Tensor, Tensor, Tensor]:
    """Potential, flow and Coulomb energies of a batch, by matrices.

    Parameters
    ----------
    matrices
        (B, M, M) | eV/e² | A
    graph
        needs BATCH, EDGE_INDEX and EDGE_VECTORS; may hold FIELD
    training
        whether potential and flow are differentiable; if not, the Coulomb energies still are, at
        fixed flow

    Returns
    -------
    φ | V, ρ | e and ½ q_i (Aq)_i | eV, all (N,)
    """
    edge_index = graph[fields.EDGE_INDEX]
    slots, _ = row_slots(graph[fields.BATCH], matrices.shape[0])
    fixed = parameters if training else detached(parameters)
    fixed_matrices = matrices if training else matrices.detach()
    driven = driven_charges(fixed.weights, edge_drops(graph), edge_index, fixed.source)
    driven = driven if training else driven.detach()
    right = fixed.source - fixed.hardness * driven
    right = right - multiply_rows(fixed_matrices, fixed.base + driven, slots)
    potential = dense_potential(right, fixed, fixed_matrices, graph)
    flow = apply_laplacian(fixed.weights, edge_index, potential) + driven
    charges = parameters.base + flow
    return potential, flow, 0.5 * charges * multiply_rows(matrices, charges, slots)


def solve_flow_iteratively(
    parameters: FlowParameters,
    operator: Optional[CoulombOperator],
    graph: Dict[str, Tensor],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tuple[Tensor, Tensor, int, float]:
    """Potential and flow of one large structure, without matrices and without derivatives.

    Parameters
    ----------
    operator
        A; none without Coulomb
    graph
        needs EDGE_INDEX and EDGE_VECTORS; may hold FIELD and POTENTIAL_GUESS to start from

    Returns
    -------
    φ (N,) | V, ρ (N,) | e, number of iterations, relative residual

    Raises
    ------
    ConvergenceError
    """
    edge_index = graph[fields.EDGE_INDEX]
    fixed = detached(parameters)
    driven = driven_charges(fixed.weights, edge_drops(graph), edge_index, fixed.source).detach()
    right = fixed.source - fixed.hardness * driven
    if operator is not None:
        right = right - apply_operator(operator, fixed.base + driven)
    potential, iterations, residual = flow_iteratively(
        right,
        fixed.weights,
        edge_index,
        fixed.hardness,
        operator,
        graph.get(fields.POTENTIAL_GUESS),
        tolerance,
        max_iterations,
    )
    flow = apply_laplacian(fixed.weights, edge_index, potential) + driven
    return potential, flow, iterations, residual


def flow_response(
    parameters: FlowParameters,
    operator: Optional[CoulombOperator],
    graph: Dict[str, Tensor],
    max_iterations: int = MAX_ITERATIONS,
) -> FieldResponse:
    """Polarisation of one structure and its response to a field: four iterative solves.

    Arguments as of ``solve_flow_iteratively``; the graph needs POSITIONS, CELL and BATCH besides.

    Raises
    ------
    ConvergenceError
    """
    edge_index, vectors = graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS]
    source, weights, base = parameters.source, parameters.weights, parameters.base
    fixed = detached(parameters)
    solved = solve_flow_iteratively(parameters, operator, graph, max_iterations=max_iterations)
    potential, flow = solved[0], solved[1]
    differences = driving_differences(potential, graph)
    moment = flow_moment(base, weights * differences, graph)[0]
    mixed: List[Tensor] = []
    polarisability: List[Tensor] = []
    for axis in range(3):
        along = vectors[:, axis]
        driven = driven_charges(fixed.weights, along, edge_index, fixed.source).detach()
        right = -kernel(fixed.hardness, operator, driven)
        change = flow_iteratively(
            right,
            fixed.weights,
            edge_index,
            fixed.hardness,
            operator,
            max_iterations=max_iterations,
        )[0]
        flow_change = apply_laplacian(fixed.weights, edge_index, change) + driven
        difference_change = edge_difference(change, edge_index) - along
        coupling = torch.zeros_like(source).sum()
        if operator is not None:
            coupling = coulomb_coupling(operator, flow_change, base + flow, graph)
        mixed.append(
            coupling
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
