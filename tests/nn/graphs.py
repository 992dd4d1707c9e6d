"""A small random graph to try backbones on."""

import torch

N, CUTOFF = 7, 4.0


def random_graph() -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of N random atoms closer than the cutoff, sorted by receiver."""
    torch.manual_seed(0)
    positions = 2.5 * torch.rand(N, 3, dtype=torch.float64)
    receiver, sender = torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij")
    edge_index = torch.stack([sender.flatten(), receiver.flatten()])
    vectors = positions[edge_index[0]] - positions[edge_index[1]]
    distance = vectors.norm(dim=1)
    kept = (distance > 0) & (distance < CUTOFF)
    return edge_index[:, kept], vectors[kept]


def ones(edge_index: torch.Tensor) -> torch.Tensor:
    """Gates of edges that are all there."""
    return torch.ones(edge_index.shape[1], dtype=torch.float64)
