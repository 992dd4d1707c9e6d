"""Charges straight from the features, and their Coulomb energy: no equations to solve.

The baseline of the charge heads, and their limit of infinite hardness. AIMNet2
(doi:10.1039/D4SC08572H) and latent Ewald summation (arXiv 2408.15165) work this way.
"""

from typing import Dict, List

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.atom_parameters import BaseCharges, PositivePerElement, start_widths
from phicalc.electrostatics.coulomb import coulomb_matrices
from phicalc.electrostatics.padding import from_rows, row_slots, to_rows


class LocalChargesHead(nn.Module):
    """E = ½ qᵀAq of charges q that the features give; they sum to Q.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    """

    def __init__(self, features: int, layers: int, elements: List[int]) -> None:
        super().__init__()
        self.needs_positions = True
        self.charges = BaseCharges(features, layers, [0.0] * len(elements), True)
        self.widths = PositivePerElement(start_widths(elements))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies and charges, (N,) float64; arguments as of every head."""
        batch = graph[fields.BATCH]
        num = graph[fields.TOTAL_CHARGE].shape[0]
        slots, size = row_slots(batch, num)
        matrices = coulomb_matrices(
            graph[fields.POSITIONS],
            graph[fields.CELL],
            graph[fields.PBC],
            batch,
            self.widths(species_index),
        )
        charges = self.charges(features, species_index, graph)
        rows = to_rows(charges, slots, num, size)
        potential = torch.matmul(matrices, rows[:, :, None]).squeeze(2)
        return {
            fields.ENERGIES: from_rows(0.5 * rows * potential, slots),
            fields.CHARGES: charges,
        }
