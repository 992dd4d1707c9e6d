"""Pairs of atoms closer than training data lets one expect, where a network only guesses.

Nothing in the data tells a network what happens there, and what it makes up may well be a hole:
molecules fall in, forces are those of no material, and the guesses of one message step are the
input of the next, which ends at −1e30 eV. Two things answer to it, both zero on all training data,
so that they change no error that can be measured there:

- An atom that comes too close to another fades out of the network. It keeps no neighbours and is
  nobody's neighbour, and neither the network nor what heads take from it knows how close the two
  are. What is left in the network's sight are distances that it knows, or nearly, of which only so
  many fit into its cutoff: the energy has a lower bound, whatever the weights.
- A wall drives the two apart again, where core repulsion comes too late: that of two hydrogens
  begins at 0.62 Å.
"""

from typing import List

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from phicalc.electrostatics.laplacian import node_sum

BEGIN: float = 0.85
"""Where both begin in a new model, as share of the closest distance in training. That is the
closest of as many structures as there were, at their temperature, and hotter ones come closer:
after training at 300 K, pairs of 3BPA at up to 1200 K meet at 0.90 of it in 65 structures, where
the network is right to about 0.1 eV/Å, and a wall from the closest distance on was 4 eV/Å off."""

WALL_ENERGY: float = 2000.0
"""eV at r = 0. A tenth below where it begins it is 0.2 eV, a stiff bond in curvature."""

FADE: float = 0.3
"""Share of the distance where it begins over which an atom fades out of the network."""

UNSEEN: float = 0.5
"""Closest distance of two elements that never met in training, as share of their covalent radii's
sum. Bonds and contacts are longer, in any material."""


class Contact(nn.Module):
    """The distance c of each pair of elements below which it is too close, and what happens there.

    It is BEGIN of the closest distance in training, or that itself in models of before. All is a
    function of the depth 1 − r/c of each pair, zero for those farther apart than c. Three
    derivatives are continuous wherever something begins or ends.

    Parameters
    ----------
    elements
        atomic numbers of the model, in the order of the species index
    cutoff
        r_c of the edges | Å
    """

    closest: Tensor
    unseen: Tensor

    def __init__(self, elements: List[int], cutoff: float) -> None:
        super().__init__()
        self.energy = WALL_ENERGY
        self.fade = FADE
        zeros = torch.zeros(len(elements), len(elements), dtype=torch.float64)
        self.register_buffer("closest", zeros)  # c (S, S) | Å, symmetric; 0: no such pair was seen
        radii = torch.tensor([float(covalent_radii[z]) for z in elements], dtype=torch.float64)
        unseen = UNSEEN * (radii[:, None] + radii[None, :])
        self.register_buffer("unseen", unseen.clamp(max=cutoff), persistent=False)

    def depths(self, species_index: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """max(1 − r/c, 0) of each edge (E,), from edge vectors (E, 3) | Å, float64."""
        distances = torch.linalg.vector_norm(edge_vectors, dim=1)
        reach = torch.where(self.closest > 0.0, self.closest, self.unseen)
        count = reach.shape[0]
        pair = species_index.index_select(0, edge_index[1]) * count
        pair = pair + species_index.index_select(0, edge_index[0])
        return torch.clamp(1.0 - distances / reach.view(-1).index_select(0, pair), min=0.0)

    def edge_gates(self, depths: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
        """What is left of each edge in the network, g_i g_j in [0, 1]: (E,), from depths (E,).

        g = (1 − u)⁴ of an atom, 0 from u = 1 on, with u the sum of (depth/FADE)⁴ over its edges.
        Exactly 1 where no pair is closer than c.
        """
        square = (depths / self.fade) ** 2
        rest = torch.clamp(1.0 - node_sum(square * square, edge_index, num_nodes), min=0.0) ** 2
        gates = rest * rest
        return gates.index_select(0, edge_index[0]) * gates.index_select(0, edge_index[1])

    def wall(self, depths: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Per-atom energies (N,) | eV of WALL_ENERGY·depth⁴ for each pair, from depths (E,)."""
        square = depths * depths
        return 0.5 * node_sum(self.energy * square * square, edge_index, num_nodes)
