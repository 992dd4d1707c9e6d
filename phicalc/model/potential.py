"""The potential: the only place where a backbone, electrostatics heads and physics terms meet.

E = Σ_i [E⁰(Z_i) + readout(hᵀ_i)] + ZBL core repulsion + contact wall + Σ heads + charge feedback,
all sums in float64.
"""

from typing import Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.electric_field import FieldResponse
from phicalc.electrostatics.heads.atom_parameters import spread_excess
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.model.build import build_backbone, build_head
from phicalc.model.config import ModelConfig
from phicalc.model.contact import Contact
from phicalc.model.feedback import ChargeFeedback
from phicalc.model.zbl import CoreRepulsion

MAX_ATOMIC_NUMBER = 118
TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
    charge_scale
        unit of the charge per atom | e; its RMS over the charged training structures is a good one
    """

    species_index: Tensor
    reference_energies: Tensor
    energy_scale: Tensor
    charge_scale: Tensor

    def __init__(
        self,
        config: ModelConfig,
        elements: Sequence[int],
        reference_energies: Optional[Mapping[int, float]] = None,
        energy_scale: float = 1.0,
        average_neighbours: float = 20.0,
        charge_scale: float = 1.0,
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
        self.head_list = ", ".join(self.head_names) or "none"
        self.needs_positions = config.sums_coulomb
        self.feels_field = config.feels_field
        self.use_feedback = config.charge_feedback
        self.feedback = nn.ModuleList()
        if config.charge_feedback:
            for head in self.heads:
                head.refinements = 2  # type: ignore[assignment] # forces contain first derivatives of the charges
            one_step = config.backbone.model_copy(update={"layers": 1})
            step = build_backbone(one_step, self.cutoff, count, average_neighbours)
            self.feedback.append(ChargeFeedback(step, width, count))
        self.to(TORCH_DTYPES[config.dtype])
        # What follows stays in float64 whatever the network's dtype.
        self.repulsion = CoreRepulsion(self.elements, self.cutoff)
        self.use_repulsion = config.zbl
        self.contact = Contact(self.elements, self.cutoff)
        self.use_contact = config.contact
        self.use_total_charge = config.total_charge
        self.charge_per_atom = config.charge_embedding == "per-atom"
        index = torch.full([MAX_ATOMIC_NUMBER + 1], -1, dtype=torch.int64)
        index[self.elements] = torch.arange(count)
        self.register_buffer("species_index", index, persistent=False)
        reference = [(reference_energies or {}).get(z, 0.0) for z in self.elements]
        self.register_buffer("reference_energies", torch.tensor(reference, dtype=torch.float64))
        self.register_buffer("energy_scale", torch.tensor(energy_scale, dtype=torch.float64))
        self.register_buffer("charge_scale", torch.tensor(charge_scale, dtype=torch.float64))

    def forward(self, graph: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Energies of a batch; see ``phicalc.fields`` for names, shapes and units.

        Returns
        -------
        ENERGY (B,), ENERGIES (N,), one ``energy_<term>`` (B,) for each term of the sum, and
        with a head that has them CHARGES (N,), and whatever else the head reports.
        """
        if fields.FIELD in graph:
            self.require_field()
        index = self.species_index[graph[fields.SPECIES]]
        edge_index = graph[fields.EDGE_INDEX]
        vectors = graph[fields.EDGE_VECTORS]
        batch = graph[fields.BATCH]
        total_charge = graph[fields.TOTAL_CHARGE]
        charge_of_atom = total_charge.index_select(0, batch)
        depths = self.contact.depths(index, edge_index, vectors)
        gates = self.contact.edge_gates(depths, edge_index, index.shape[0])
        features = self.features(index, graph, gates)

        terms: Dict[str, Tensor] = {}
        terms["reference"] = self.reference_energies[index]
        terms["network"] = self.readout(features[-1]).squeeze(1).double() * self.energy_scale
        if self.use_repulsion:
            distances = torch.linalg.vector_norm(vectors, dim=1)
            terms["zbl"] = self.repulsion(index, edge_index, distances)
        if self.use_contact:
            terms["contact"] = self.contact.wall(depths, edge_index, index.shape[0])
        output: Dict[str, Tensor] = {}
        charges = torch.zeros_like(charge_of_atom)
        has_charges = False
        results: List[Dict[str, Tensor]] = []
        for i, head in enumerate(self.heads):
            result: Dict[str, Tensor] = head(features, index, graph)
            terms[self.head_names[i]] = result[fields.ENERGIES]
            if fields.CHARGES in result:
                charges = charges + result[fields.CHARGES]
                has_charges = True
            if fields.AUXILIARY_LOSS in result and fields.AUXILIARY_LOSS in output:
                both = result[fields.AUXILIARY_LOSS] + output[fields.AUXILIARY_LOSS]
                result[fields.AUXILIARY_LOSS] = both
            output.update(result)
            results.append(result)
        if has_charges:
            # Of what the heads give, for its gradient where their solves are held fixed.
            change = torch.zeros_like(charges)
            implicit = self.use_feedback and not self.training and vectors.requires_grad
            change.requires_grad_(implicit)
            charges = self.spread_excess(charges + change, features[-1], total_charge, batch)
            output[fields.CHARGES] = charges
            if self.use_feedback:
                term = self.feedback_energies(charges, features[-1], index, graph, gates)
                if implicit:
                    gradient = gradient_of(term.sum(), change)
                    term = term + self.adjoint_energies(gradient, results, features, index, graph)
                terms["feedback"] = term

        energies = torch.zeros_like(charge_of_atom)
        for name, term in terms.items():
            energies = energies + term
            output["energy_" + name] = torch.zeros_like(total_charge).index_add(0, batch, term)
        output[fields.ENERGIES] = energies
        output[fields.ENERGY] = torch.zeros_like(total_charge).index_add(0, batch, energies)
        return output

    def features(self, index: Tensor, graph: Dict[str, Tensor], gates: Tensor) -> List[Tensor]:
        """Node features (N, F) after each message step.

        Of atoms with species index (N,), and of what the network sees of their edges (E,).
        """
        dtype = self.charge_embedding.dtype
        count, width = self.charge_embedding.shape
        vectors = graph[fields.EDGE_VECTORS]
        # atoms of one element, in structures of one charge per atom, start alike: one kind each
        kinds = index
        species = torch.arange(count, device=index.device)
        initial = torch.zeros(count, width, dtype=dtype, device=vectors.device)
        if self.use_total_charge:
            charge, batch = graph[fields.TOTAL_CHARGE], graph[fields.BATCH]
            kinds = batch * count + index
            species = species.repeat(charge.shape[0])
            if self.charge_per_atom:
                one = torch.ones_like(batch, dtype=charge.dtype)
                atoms = torch.zeros_like(charge).index_add(0, batch, one)
                charge = charge / (atoms * self.charge_scale)
            initial = (charge.to(dtype)[:, None, None] * self.charge_embedding).flatten(0, 1)
        features: List[Tensor] = self.backbone(
            species,
            initial,
            graph[fields.EDGE_INDEX],
            vectors.to(dtype),
            gates.to(dtype),
            kinds,
            graph.get(fields.NEIGHBOUR_COUNTS),
        )
        return features

    def feedback_energies(
        self,
        charges: Tensor,
        features: Tensor,
        index: Tensor,
        graph: Dict[str, Tensor],
        gates: Tensor,
    ) -> Tensor:
        """Energies (N,) | eV of one more message step, of features hᵀ (N, F) and charges (N,)."""
        vectors, gates = graph[fields.EDGE_VECTORS].to(features.dtype), gates.to(features.dtype)
        energies = torch.zeros_like(charges)
        for step in self.feedback:
            term = step(charges, features, index, graph[fields.EDGE_INDEX], vectors, gates)
            energies = energies + term.double() * self.energy_scale
        return energies

    def adjoint_energies(
        self,
        gradient: Tensor,
        results: List[Dict[str, Tensor]],
        features: List[Tensor],
        index: Tensor,
        graph: Dict[str, Tensor],
    ) -> Tensor:
        """Energies (N,) | eV, zero in sum, with the gradient of ∂E/∂q · dq/dx of solves held fixed.

        See ``phicalc.model.feedback``; a head without a solve has nothing to add.
        """
        energies = torch.zeros_like(gradient)
        for i, head in enumerate(self.heads):
            if hasattr(head, "adjoint_energies"):
                energies = energies + head.adjoint_energies(  # type: ignore[operator]
                    gradient, results[i], features, index, graph
                )
        return energies

    def atom_features(self, graph: Dict[str, Tensor]) -> List[Tensor]:
        """Node features (N, F) after each message step of the structures of a graph."""
        index = self.species_index[graph[fields.SPECIES]]
        edge_index = graph[fields.EDGE_INDEX]
        depths = self.contact.depths(index, edge_index, graph[fields.EDGE_VECTORS])
        gates = self.contact.edge_gates(depths, edge_index, index.shape[0])
        features: List[Tensor] = self.features(index, graph, gates)
        return features

    def inverse(self, graph: Dict[str, Tensor]) -> Tensor:
        """INVERSE (N, N) of one structure, for solves at later geometries; (0, 0): of no head."""
        index = self.species_index[graph[fields.SPECIES]]
        inverse = torch.zeros(0, 0, device=index.device)
        for head in self.heads:
            if hasattr(head, "inverse"):
                inverse = head.inverse(index, graph)  # type: ignore[operator]
        return inverse

    def response(self, graph: Dict[str, Tensor]) -> FieldResponse:
        """Polarisation of one structure and its response to a field.

        Raises
        ------
        UnsupportedError
            The heads, or the head and the structure, give no polarisation.
        """
        self.require_field()
        if graph[fields.TOTAL_CHARGE].shape[0] != 1:
            raise UnsupportedError("expected one structure for a response, got a batch of several")
        index = self.species_index[graph[fields.SPECIES]]
        features = self.atom_features(graph)
        none = torch.zeros_like(graph[fields.CELL][0])
        response = FieldResponse(none[0], none[0], none)
        for head in self.heads:
            if hasattr(head, "response"):
                response = head.response(features, index, graph)  # type: ignore[operator]
        return response

    def require_field(self) -> None:
        """Raise UnsupportedError unless there is one head, with Coulomb sums."""
        if not self.feels_field:
            raise UnsupportedError(
                "expected one head with Coulomb sums (phi-coulomb, qeq or local) and no charge "
                "feedback for an electric field or a polarisation, got heads: "
                f"{self.head_list}{' with charge feedback' if self.use_feedback else ''}"
            )

    def spread_excess(
        self, charges: Tensor, features: Tensor, total_charge: Tensor, batch: Tensor
    ) -> Tensor:
        """Charges (N,) made to sum to Q: each takes its share of a learned softplus weight."""
        weights = torch.nn.functional.softplus(self.excess_charge(features).squeeze(1).double())
        return spread_excess(charges, weights, total_charge, batch)


def gradient_of(energy: Tensor, variable: Tensor) -> Tensor:
    """∂E/∂x of a part of the energy, whose graph is kept for the gradients that follow."""
    gradient = torch.autograd.grad([energy], [variable], retain_graph=True)[0]
    assert gradient is not None
    return gradient
