"""A plain global scalar in the place of electrostatics: the baseline of a few more parameters.

E = Σ_t MLP_t(mean_i hᵗ_i), a function of the mean features of a structure, as many parameters as
the scalar of a charge head. It is invariant and smooth, and no potential for anything but
structures of one size: the energy does not grow with the number of atoms, and two fragments that
do not touch change each other's energy.
"""

from typing import Dict, List

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.heads.head import Head


class PooledHead(Head):
    """An energy from the mean of all atoms' features; no charges.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    """

    def __init__(self, features: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(layers):
            last = nn.Linear(features // 2, 1)
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
            self.layers.append(nn.Sequential(nn.Linear(features, features // 2), nn.SiLU(), last))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """ENERGIES (N,) float64 | eV, equal shares of the structure's energy; needs BATCH."""
        batch = graph[fields.BATCH]
        num = graph[fields.TOTAL_CHARGE].shape[0]
        count = torch.bincount(batch, minlength=num)
        energy = torch.zeros_like(graph[fields.TOTAL_CHARGE])
        for t, layer in enumerate(self.layers):
            step = features[t]
            total = torch.zeros(num, step.shape[1], dtype=step.dtype, device=step.device)
            mean = total.index_add(0, batch, step) / count[:, None]
            energy = energy + layer(mean).squeeze(1).double()
        return {fields.ENERGIES: (energy / count).index_select(0, batch)}
