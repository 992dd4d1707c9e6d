"""What the charge heads learn: a scalar per atom, a positive number per element, base charges."""

import math
from typing import Dict, List

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from phicalc import fields
from phicalc.errors import UnsupportedError


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
    weights = weights.clamp(min=1e-30)  # where all of them underflow, shares are even
    share = torch.zeros_like(total_charge).index_add(0, batch, weights)
    return charges + weights * (missing / share).index_select(0, batch)


class BaseCharges(nn.Module):
    """Charges that sum to Q before any charge flows.

    What the charges of the elements lack of Q is shared: by learned weights, which depend on the
    features, or evenly with ``base="constant"``, where no base charge may move with the atoms.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    formal
        charge of each element | e, in the order of the species index
    base
        "formal": these alone; "constant": plus a learned number per element; "learned": plus a
        learned function of the features
    """

    formal: Tensor

    def __init__(self, features: int, layers: int, formal: List[float], base: str) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("formal", torch.tensor(formal, dtype=torch.float64), persistent=False)
        steps = layers if base == "learned" else 0
        self.scalar = AtomScalar(features, steps, [0.0] * len(formal))
        self.scalar.requires_grad_(base != "formal")
        self.excess = nn.Linear(features, 1)
        self.excess.requires_grad_(base != "constant")

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Tensor:
        """(N,) float64 | e; needs BATCH and TOTAL_CHARGE."""
        charges = self.unconstrained(features, species_index)
        if self.base == "constant":
            weights = torch.ones_like(charges)
        else:
            weights = torch.nn.functional.softplus(self.excess(features[-1]).squeeze(1).double())
        return spread_excess(charges, weights, graph[fields.TOTAL_CHARGE], graph[fields.BATCH])

    def unconstrained(self, features: List[Tensor], species_index: Tensor) -> Tensor:
        """(N,) float64 | e, charges before they are made to sum to Q."""
        charges = self.formal.double()[species_index]
        if self.base != "formal":
            charges = charges + self.scalar(features, species_index)
        return charges

    def imbalance(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Tensor:
        """(B,) float64 | e², the square of what the learned charges lack of Q.

        As an auxiliary loss it teaches every ion of the training data a charge that sums to Q by
        itself, which it then keeps beside another ion that the network does not see.
        """
        charges = self.unconstrained(features, species_index)
        missing = graph[fields.TOTAL_CHARGE].index_add(0, graph[fields.BATCH], -charges)
        return missing**2

    def require_constant(self, species_index: Tensor, graph: Dict[str, Tensor]) -> None:
        """Raise UnsupportedError where a structure is periodic and its base charges may vary.

        Σ q⁰_i r_i of a crystal changes with the choice of periodic images, by a lattice vector
        times a charge; only where that charge is a constant does its derivative not.
        """
        periodic = graph[fields.PBC].any(1)
        if self.base == "constant" or not bool(periodic.any()):
            return
        total, batch = graph[fields.TOTAL_CHARGE], graph[fields.BATCH]
        formal = self.formal.double()[species_index]
        missing = total - torch.zeros_like(total).index_add(0, batch, formal)
        if self.base == "learned" or bool((periodic & (missing.abs() > 1e-9)).any()):
            raise UnsupportedError(
                "expected base charges that are constants for the polarisation of a periodic "
                "cell: formal ones that sum to the total charge, or base: constant; got charges "
                "that depend on the features, so that the polarisation would depend on the choice "
                "of periodic images"
            )
