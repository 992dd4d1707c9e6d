"""The potential: the only place where a backbone, electrostatics heads and physics terms meet.

E = Σ_i [E⁰(Z_i) + readout(hᵀ_i)] + ZBL core repulsion + Σ heads, all sums in float64.
"""

from typing import Dict, List, Mapping, Optional, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.atom_parameters import spread_excess
from phicalc.electrostatics.local_charges import LocalChargesHead
from phicalc.electrostatics.phi import PhiHead
from phicalc.electrostatics.qeq import QEqHead
from phicalc.electrostatics.split_charge import SplitChargeHead
from phicalc.errors import ConfigError
from phicalc.model.config import (
    BackboneConfig,
    HeadConfig,
    LocalChargesConfig,
    ModelConfig,
    QEqConfig,
    SchNetConfig,
    SplitChargeConfig,
    sums_coulomb,
)
from phicalc.model.zbl import CoreRepulsion
from phicalc.nn.painn import PaiNN
from phicalc.nn.schnet import SchNet

MAX_ATOMIC_NUMBER = 118
TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_backbone(
    config: BackboneConfig, cutoff: float, num_species: int, average_neighbours: float
) -> nn.Module:
    """The message-passing network that a configuration names."""
    if isinstance(config, SchNetConfig):
        return SchNet(
            config.features,
            config.filters,
            config.layers,
            config.radial,
            cutoff,
            config.envelope,
            num_species,
            average_neighbours,
        )
    return PaiNN(
        config.features, config.layers, config.radial, cutoff, num_species, average_neighbours
    )


def build_head(
    config: HeadConfig, features: int, layers: int, elements: List[int], cutoff: float
) -> nn.Module:
    """The electrostatics head that a configuration names."""
    if isinstance(config, QEqConfig):
        return QEqHead(features, layers, elements, cutoff, config.hardness, config.accuracy)
    if isinstance(config, LocalChargesConfig):
        return LocalChargesHead(features, layers, elements, cutoff, config.accuracy)
    if isinstance(config, SplitChargeConfig):
        return SplitChargeHead(
            features,
            layers,
            elements,
            cutoff,
            config.sigma,
            config.hardness,
            formal_charges(config, elements),
            config.base == "learned",
            config.coulomb,
            config.accuracy,
        )
    return PhiHead(features, layers, elements, cutoff, config.sigma, config.mu)


def formal_charges(config: SplitChargeConfig, elements: List[int]) -> List[float]:
    """Formal charge | e of each element of the model."""
    symbols = [chemical_symbols[z] for z in elements]
    unknown = sorted(set(config.formal_charges) - set(symbols))
    if unknown:
        raise ConfigError(
            f"formal_charges: expected elements of the model ({', '.join(symbols)}), "
            f"got {', '.join(unknown)}"
        )
    return [config.formal_charges.get(symbol, 0.0) for symbol in symbols]


class Potential(nn.Module):
    """Energies (and charges) of a batch of structures; gradients are taken elsewhere.

    Parameters
    ----------
    config
        what the model is made of
    elements
        atomic numbers that it knows
    reference_energies
        E⁰ per atomic number | eV; zero where not given
    energy_scale
        unit of the readout | eV; the RMS force of the training data in eV/Å is a good one
    average_neighbours
        mean number of neighbours in the training data
    """

    species_index: Tensor
    reference_energies: Tensor
    energy_scale: Tensor

    def __init__(
        self,
        config: ModelConfig,
        elements: Sequence[int],
        reference_energies: Optional[Mapping[int, float]] = None,
        energy_scale: float = 1.0,
        average_neighbours: float = 20.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.elements: List[int] = sorted(int(z) for z in elements)
        if not self.elements or self.elements[0] < 1 or self.elements[-1] > MAX_ATOMIC_NUMBER:
            raise ConfigError(f"elements: expected atomic numbers 1 to 118, got {self.elements}")
        self.cutoff = float(config.cutoff)
        width, steps = config.backbone.features, config.backbone.layers
        count = len(self.elements)
        self.backbone = build_backbone(config.backbone, self.cutoff, count, average_neighbours)
        self.readout = nn.Sequential(
            nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1)
        )
        self.charge_embedding = nn.Parameter(torch.randn(count, width) * 0.1)
        self.excess_charge = nn.Linear(width, 1)
        self.heads = nn.ModuleList(
            [build_head(h, width, steps, self.elements, self.cutoff) for h in config.heads]
        )
        self.head_names: List[str] = [h.kind for h in config.heads]
        # Whether the energy depends on positions and cell beyond the edge vectors.
        self.needs_positions = any(sums_coulomb(h) for h in config.heads)
        self.to(TORCH_DTYPES[config.dtype])
        # What follows stays in float64 whatever the network's dtype.
        self.repulsion = CoreRepulsion(self.elements, self.cutoff)
        self.use_repulsion = config.zbl
        self.use_total_charge = config.total_charge
        index = torch.full([MAX_ATOMIC_NUMBER + 1], -1, dtype=torch.int64)
        index[self.elements] = torch.arange(count)
        self.register_buffer("species_index", index, persistent=False)
        reference = [(reference_energies or {}).get(z, 0.0) for z in self.elements]
        self.register_buffer("reference_energies", torch.tensor(reference, dtype=torch.float64))
        self.register_buffer("energy_scale", torch.tensor(energy_scale, dtype=torch.float64))

    def forward(self, graph: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Energies of a batch; see ``phicalc.fields`` for names, shapes and units.

        Returns
        -------
        ENERGY (B,), ENERGIES (N,), one ``energy_<term>`` (B,) for each term of the sum, and
        with a head CHARGES (N,) and whatever else the head reports.
        """
        index = self.species_index[graph[fields.SPECIES]]
        edge_index = graph[fields.EDGE_INDEX]
        vectors = graph[fields.EDGE_VECTORS]
        batch = graph[fields.BATCH]
        total_charge = graph[fields.TOTAL_CHARGE]
        dtype = self.charge_embedding.dtype
        charge_of_atom = total_charge.index_select(0, batch)
        initial = torch.zeros(
            index.shape[0], self.charge_embedding.shape[1], dtype=dtype, device=vectors.device
        )
        if self.use_total_charge:
            initial = charge_of_atom.to(dtype)[:, None] * self.charge_embedding[index]
        features: List[Tensor] = self.backbone(index, initial, edge_index, vectors.to(dtype))

        terms: Dict[str, Tensor] = {}
        terms["reference"] = self.reference_energies[index]
        terms["network"] = self.readout(features[-1]).squeeze(1).double() * self.energy_scale
        if self.use_repulsion:
            terms["zbl"] = self.repulsion(
                index, edge_index, torch.linalg.vector_norm(vectors, dim=1)
            )
        output: Dict[str, Tensor] = {}
        charges = torch.zeros_like(charge_of_atom)
        for i, head in enumerate(self.heads):
            result: Dict[str, Tensor] = head(features, index, graph)
            terms[self.head_names[i]] = result[fields.ENERGIES]
            charges = charges + result[fields.CHARGES]
            output.update(result)
        if len(self.heads) > 0:
            output[fields.CHARGES] = self.spread_excess(charges, features[-1], total_charge, batch)

        energies = torch.zeros_like(charge_of_atom)
        for name, term in terms.items():
            energies = energies + term
            output["energy_" + name] = torch.zeros_like(total_charge).index_add(0, batch, term)
        output[fields.ENERGIES] = energies
        output[fields.ENERGY] = torch.zeros_like(total_charge).index_add(0, batch, energies)
        return output

    def spread_excess(
        self, charges: Tensor, features: Tensor, total_charge: Tensor, batch: Tensor
    ) -> Tensor:
        """Charges (N,) made to sum to Q: what is missing goes by learned softmax weights."""
        weights = torch.nn.functional.softplus(self.excess_charge(features).squeeze(1).double())
        return spread_excess(charges, weights, total_charge, batch)


def build_potential(
    config: ModelConfig,
    elements: Sequence[int],
    reference_energies: Optional[Mapping[int, float]] = None,
    energy_scale: float = 1.0,
    average_neighbours: float = 20.0,
) -> Potential:
    """A potential with fresh parameters from torch's global random state."""
    return Potential(config, elements, reference_energies, energy_scale, average_neighbours)
