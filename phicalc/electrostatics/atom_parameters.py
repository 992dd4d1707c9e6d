"""What the charge heads learn: a scalar per atom, a positive number per element, base charges."""

import math
from typing import Dict, List

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from phicalc import fields


class AtomScalar(nn.Module):
    """A constant per element plus Σ_t MLP_t(hᵗ), accumulated over all message steps.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    start
        starting value of each element's constant, in the order of the species index
    """

    physical = ("constant",)

    def __init__(self, features: int, layers: int, start: List[float]) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(start, dtype=torch.get_default_dtype()))
        self.layers = nn.ModuleList()
        for _ in range(layers):
            last = nn.Linear(features // 2, 1, bias=False)
            nn.init.normal_(last.weight, std=0.01)
            self.layers.append(nn.Sequential(nn.Linear(features, features // 2), nn.SiLU(), last))

    def forward(self, features: List[Tensor], species_index: Tensor) -> Tensor:
        """(N,) float64, from T tensors (N, F) and the species index (N,)."""
        value = self.constant[species_index].double()
        for t, layer in enumerate(self.layers):
            value = value + layer(features[t]).squeeze(1).double()
        return value


class PositivePerElement(nn.Module):
    """start_Z · softplus(θ_Z)/ln 2 > 0, θ_Z learned from 0: hardnesses and widths.

    The widths of Gaussian charges start at the covalent radii (arXiv 2501.19179).
    """

    physical = ("theta",)
    start: Tensor

    def __init__(self, start: List[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(start)))
        self.register_buffer("start", torch.tensor(start, dtype=torch.float64), persistent=False)

    def forward(self, species_index: Tensor) -> Tensor:
        """(N,) float64, from the species index (N,)."""
        value = self.start.double() * torch.nn.functional.softplus(self.theta.double())
        return (value / math.log(2.0))[species_index]


def start_widths(elements: List[int]) -> List[float]:
    """Covalent radius | Å of each atomic number (doi:10.1039/b801115j, as tabulated in ASE)."""
    return [float(covalent_radii[z]) for z in elements]


def spread_excess(charges: Tensor, weights: Tensor, total_charge: Tensor, batch: Tensor) -> Tensor:
    """Charges made to sum to Q in each structure: what is missing is shared by weight.

    Parameters
    ----------
    charges, weights
        (N,) | e, and any positive unit
    total_charge
        (B,) | e
    batch
        (N,) | structure of each atom
    """
    missing = total_charge - torch.zeros_like(total_charge).index_add(0, batch, charges)
    share = torch.zeros_like(total_charge).index_add(0, batch, weights)
    return charges + weights * (missing / share).index_select(0, batch)


class BaseCharges(nn.Module):
    """Charges that sum to Q before any charge flows: formal ones, or learned from the features.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    formal
        charge of each element | e, in the order of the species index
    learned
        add a learned function of the features to them
    """

    formal: Tensor

    def __init__(self, features: int, layers: int, formal: List[float], learned: bool) -> None:
        super().__init__()
        self.learned = learned
        self.register_buffer("formal", torch.tensor(formal, dtype=torch.float64), persistent=False)
        self.scalar = AtomScalar(features, layers if learned else 0, [0.0] * len(formal))
        self.scalar.requires_grad_(learned)
        self.excess = nn.Linear(features, 1)

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Tensor:
        """(N,) float64 | e; needs BATCH and TOTAL_CHARGE."""
        charges = self.formal.double()[species_index]
        if self.learned:
            charges = charges + self.scalar(features, species_index)
        weights = torch.nn.functional.softplus(self.excess(features[-1]).squeeze(1).double())
        return spread_excess(charges, weights, graph[fields.TOTAL_CHARGE], graph[fields.BATCH])
