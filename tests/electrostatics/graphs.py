"""Weighted graphs to solve on: a random cluster and a chain with slow long waves."""

import torch

from phicalc.electrostatics.laplacian import edge_weights


def _edges(positions: torch.Tensor, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    distances = torch.cdist(positions, positions)
    receiver, sender = torch.nonzero((distances < cutoff) & (distances > 0), as_tuple=True)
    weights = edge_weights(distances[receiver, sender], cutoff, 2.0)
    return weights, torch.stack([sender, receiver])


def cluster(num_nodes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (E,) and edges (2, E) of atoms at random, at the density of water."""
    generator = torch.Generator().manual_seed(seed)
    edge = (num_nodes / 0.1) ** (1 / 3)
    positions = edge * torch.rand(num_nodes, 3, dtype=torch.float64, generator=generator)
    return _edges(positions, 5.0)


def chain(num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and edges of a straight polymer, 1.4 Å from atom to atom."""
    positions = torch.zeros(num_nodes, 3, dtype=torch.float64)
    positions[:, 0] = 1.4 * torch.arange(num_nodes)
    return _edges(positions, 5.0)
