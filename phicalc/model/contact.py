"""A wall below the closest distances of the training data, where a network only guesses.

Nothing in the data tells a network what happens between two atoms closer than any it has seen, and
what it makes up may well be a hole: molecules fall in, forces are those of no material, and a run
without a thermostat loses energy as they are hit. Core repulsion comes too late: it begins at
0.62 Å for two hydrogens. The wall begins at the closest distance of each pair of elements in the
training data, so that it is zero on all of them and changes no error that can be measured there.
"""

from typing import List

import torch
from torch import Tensor, nn

from phicalc.electrostatics.laplacian import node_sum

WALL_ENERGY: float = 2000.0
"""eV at r = 0. A tenth below the closest distance it is 0.2 eV, a stiff bond in curvature."""


class ContactRepulsion(nn.Module):
    """E = WALL_ENERGY·(1 − r/c)⁴ for pairs closer than c, their closest distance in training.

    Three derivatives are continuous at c.

    Parameters
    ----------
    elements
        atomic numbers of the model, in the order of the species index
    """

    closest: Tensor

    def __init__(self, elements: List[int]) -> None:
        super().__init__()
        zeros = torch.zeros(len(elements), len(elements), dtype=torch.float64)
        self.energy = WALL_ENERGY
        self.register_buffer("closest", zeros)  # c (S, S) | Å, symmetric; 0: no such pair was seen

    def forward(self, species_index: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Per-atom energies (N,) | eV, from distances (E,) | Å, float64."""
        reach = self.closest[species_index[edge_index[1]], species_index[edge_index[0]]]
        close = (distances < reach).nonzero().squeeze(1)
        depth = 1.0 - distances[close] / reach[close]
        square = depth * depth
        pair = self.energy * square * square
        return 0.5 * node_sum(pair, edge_index[:, close], species_index.shape[0])
