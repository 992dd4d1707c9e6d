"""The weighted graph Laplacian of a structure: edges that fade out with distance.

(Lφ)_i = Σ_e w_e (φ_i − φ_j) over the edges e that end in atom i. L is symmetric, annihilates
constants on every connected component and never couples two structures of a batch.
"""

import warnings

import torch
from torch import Tensor

from phicalc.envelope import polynomial_envelope


def edge_weights(distances: Tensor, cutoff: float, sigma: float) -> Tensor:
    """Edge weights env(r/r_c)·exp(−(r/σ)²) ≥ 0, C² and 0 at the cutoff.

    Parameters
    ----------
    distances
        (E,) | Å
    cutoff, sigma
        r_c and decay length | Å

    Returns
    -------
    (E,) weights | e/V, the conductance of the edge
    """
    return polynomial_envelope(distances / cutoff) * torch.exp(-((distances / sigma) ** 2))


def node_sum(edge_values: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Sum of the values (E, …) of all edges that end in each atom: (N, …)."""
    shape = [num_nodes] + list(edge_values.shape[1:])  # noqa: RUF005 - TorchScript
    total = torch.zeros(shape, dtype=edge_values.dtype, device=edge_values.device)
    return total.index_add(0, edge_index[1], edge_values)


def edge_difference(potential: Tensor, edge_index: Tensor) -> Tensor:
    """φ_i − φ_j of every edge, receiver minus sender: (E,)."""
    return potential.index_select(0, edge_index[1]) - potential.index_select(0, edge_index[0])


def apply_laplacian(weights: Tensor, edge_index: Tensor, potential: Tensor) -> Tensor:
    """Lφ, differentiable in weights and potential: (N,) → (N,)."""
    flow = weights * edge_difference(potential, edge_index)
    return node_sum(flow, edge_index, potential.shape[0])


def laplace(adjacency: Tensor, degree: Tensor, potential: Tensor) -> Tensor:
    """Lφ (N,) from L = diag(degree) − adjacency."""
    return degree * potential - torch.mv(adjacency, potential)


def adjacency_matrix(weights: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Sparse CSR matrix W with W_ij = Σ_e w_e, so that L = diag(W·1) − W.

    Edges must be sorted by receiver; several images of one pair may stand side by side.
    """
    nodes = torch.arange(num_nodes + 1, device=weights.device)
    rows = torch.searchsorted(edge_index[1].contiguous(), nodes)
    shape = [num_nodes, num_nodes]
    return torch.sparse_csr_tensor(
        rows, edge_index[0], weights, shape, dtype=weights.dtype, device=weights.device
    )


def laplacian_rows(
    weights: Tensor, edge_index: Tensor, slots: Tensor, num_structures: int, size: int
) -> Tensor:
    """L of every structure of a batch as padded dense blocks (B, M, M), differentiable."""
    row = slots[edge_index[1]] * size
    flat = torch.zeros(num_structures * size * size, dtype=weights.dtype, device=weights.device)
    flat = flat.index_add(0, row + slots[edge_index[0]] % size, -weights)
    flat = flat.index_add(0, row + slots[edge_index[1]] % size, weights)
    return flat.view(num_structures, size, size)


def dense_laplacian(weights: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """L of one structure as a dense (N, N) matrix, for small systems and for checks."""
    nodes = torch.arange(num_nodes, device=weights.device)
    return laplacian_rows(weights, edge_index, nodes, 1, num_nodes)[0]


def silence_sparse_notice() -> None:
    """Let torch give its once-in-a-process notices about sparse CSR tensors, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adjacency_matrix(torch.ones(1), torch.zeros(2, 1, dtype=torch.int64), 1)
