"""Ziegler–Biersack–Littmark core repulsion, faded out at the sum of the covalent radii.

J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Solids (1985).
"""

from typing import List

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from phicalc.electrostatics.laplacian import node_sum
from phicalc.envelope import steep_envelope
from phicalc.units import COULOMB_CONSTANT


def screened_repulsion(
    distances: Tensor, z_i: Tensor, z_j: Tensor, coulomb_constant: float = COULOMB_CONSTANT
) -> Tensor:
    """Universal ZBL pair energy k_e Z_i Z_j/r · φ(r/a), a = 0.4685 Å/(Z_i^0.23 + Z_j^0.23).

    All arguments and the result (E,) | Å, atomic numbers, eV.
    """
    x = distances * (z_i**0.23 + z_j**0.23) / 0.46850
    screening = (
        0.18175 * torch.exp(-3.19980 * x)
        + 0.50986 * torch.exp(-0.94229 * x)
        + 0.28022 * torch.exp(-0.40290 * x)
        + 0.02817 * torch.exp(-0.20162 * x)
    )
    return coulomb_constant * z_i * z_j / distances * screening


class CoreRepulsion(nn.Module):
    """ZBL energy of every atom, zero beyond the sum of two covalent radii (or the cutoff)."""

    numbers: Tensor
    radii: Tensor

    def __init__(self, elements: List[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        numbers = torch.tensor(elements, dtype=torch.float64)
        radii = torch.tensor([float(covalent_radii[z]) for z in elements], dtype=torch.float64)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("radii", radii, persistent=False)

    def forward(self, species_index: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Per-atom energies (N,) | eV, from distances (E,) | Å, float64."""
        i, j = species_index[edge_index[1]], species_index[edge_index[0]]
        reach = torch.clamp(self.radii[i] + self.radii[j], max=self.cutoff)
        if distances.device.type == "cpu":  # a GPU has sooner computed zeros than counted the rest
            close = (distances < reach).nonzero().squeeze(1)
            i, j, distances, reach = i[close], j[close], distances[close], reach[close]
            edge_index = edge_index[:, close]
        pair = screened_repulsion(distances, self.numbers[i], self.numbers[j])
        pair = pair * steep_envelope(distances / reach)
        return 0.5 * node_sum(pair, edge_index, species_index.shape[0])
