"""Charge that flows along the edges of the graph: its potential, and the moment it carries.

What ``split_charge.py`` is built from; see there for the energy and its symbols.
"""

from typing import Dict, Optional

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.laplacian import node_sum


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
