"""Forces, virial and stress: the only place where gradients in the geometry are taken.

Networks see the geometry through the edge vectors alone, so one gradient g_e = ∂E/∂r_e gives it
all: F_i = Σ_{e→i} g_e − Σ_{e←i} g_e and the virial dE/dε = Σ_e sym(g_e ⊗ r_e). Heads with Coulomb
sums depend on positions and cell besides; what these add, at fixed edge vectors, is −∂E/∂r_i and
the gradient with respect to a strain of both.
"""

from typing import Dict, List, Tuple

import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from phicalc import fields
from phicalc.model.potential import Potential


def forces_of(edge_gradient: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Forces (N, 3) | eV/Å from ∂E/∂r_e (E, 3)."""
    forces = torch.zeros(num_nodes, 3, dtype=edge_gradient.dtype, device=edge_gradient.device)
    forces = forces.index_add(0, edge_index[1], edge_gradient)
    return forces.index_add(0, edge_index[0], -edge_gradient)


def virial_of(edge_gradient: Tensor, edge_vectors: Tensor, edge_batch: Tensor, num: int) -> Tensor:
    """dE/dε (B, 3, 3) | eV, symmetric, from ∂E/∂r_e and r_e, both (E, 3)."""
    if num == 1:
        virial = torch.mm(edge_gradient.t(), edge_vectors)[None]
    else:
        outer = (edge_gradient[:, :, None] * edge_vectors[:, None, :]).view(-1, 9)
        virial = torch.zeros(num, 9, dtype=outer.dtype, device=outer.device)
        virial = virial.index_add(0, edge_batch, outer).view(num, 3, 3)
    return 0.5 * (virial + virial.transpose(1, 2))


def strained(
    positions: Tensor, cell: Tensor, strain: Tensor, batch: Tensor
) -> Tuple[Tensor, Tensor]:
    """Positions (N, 3) and cells (B, 3, 3) | Å under strains (B, 3, 3): x → x (1 + ε)."""
    shift = torch.bmm(positions[:, None], strain.index_select(0, batch)).squeeze(1)
    return positions + shift, cell + torch.bmm(cell, strain)


class Differentiated(nn.Module):
    """A potential with its forces, stress and, for molecules, dipole.

    In training mode gradients keep their graph, so that a loss on forces can be differentiated.
    """

    masses: Tensor

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential
        masses = torch.tensor(atomic_masses, dtype=torch.float64)
        self.register_buffer("masses", masses, persistent=False)

    def forward(self, graph: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Everything of ``Potential.forward`` plus FORCES, STRESS and DIPOLE.

        STRESS is zero for structures that are not periodic in all three directions; DIPOLE,
        about the centre of mass, appears with charges and is zero for periodic structures.
        """
        vectors = graph[fields.EDGE_VECTORS].detach().requires_grad_(True)
        inputs = graph.copy()
        inputs[fields.EDGE_VECTORS] = vectors
        variables: List[Tensor] = [vectors]
        if self.potential.needs_positions:
            positions = graph[fields.POSITIONS].detach().requires_grad_(True)
            strain = torch.zeros_like(graph[fields.CELL]).requires_grad_(True)
            inputs[fields.POSITIONS], inputs[fields.CELL] = strained(
                positions, graph[fields.CELL].detach(), strain, graph[fields.BATCH]
            )
            variables = [vectors, positions, strain]
        output: Dict[str, Tensor] = self.potential(inputs)

        edge_index, batch = graph[fields.EDGE_INDEX], graph[fields.BATCH]
        num_graphs = graph[fields.TOTAL_CHARGE].shape[0]
        gradients = self.gradients(output[fields.ENERGY].sum(), variables)
        edge_batch = batch.index_select(0, edge_index[1])
        forces = forces_of(gradients[0], edge_index, batch.shape[0])
        virial = virial_of(gradients[0], vectors, edge_batch, num_graphs)
        if self.potential.needs_positions:
            forces = forces - gradients[1]
            virial = virial + 0.5 * (gradients[2] + gradients[2].transpose(1, 2))
        output[fields.FORCES] = forces
        output[fields.STRESS] = self.stress(virial, graph)
        if fields.CHARGES in output:
            output[fields.DIPOLE] = self.dipole(output[fields.CHARGES], graph)
        if not self.training:
            for name in list(output.keys()):
                output[name] = output[name].detach()
        return output

    def gradients(
        self, energy: Tensor, variables: List[Tensor], again: bool = False
    ) -> List[Tensor]:
        """∂E/∂x of each variable, zero for one that E does not depend on; ``again`` for more."""
        gradients: List[Tensor] = []
        if not energy.requires_grad:
            return [torch.zeros_like(variable) for variable in variables]
        total: List[Tensor] = [energy]
        found = torch.autograd.grad(
            total,
            variables,
            retain_graph=again or self.training,
            create_graph=self.training,
            allow_unused=True,
        )
        for gradient, variable in zip(found, variables):
            gradients.append(torch.zeros_like(variable) if gradient is None else gradient)
        return gradients

    def energy(self, graph: Dict[str, Tensor]) -> Tensor:
        """The energies (B,) | eV alone, without their gradients."""
        output: Dict[str, Tensor] = self.potential(graph)
        return output[fields.ENERGY]

    def features(self, graph: Dict[str, Tensor]) -> List[Tensor]:
        """Features (N, F) of the atoms after each message step, invariant under rotation."""
        features: List[Tensor] = self.potential.atom_features(graph)
        return [step.detach() for step in features]

    def inverse(self, graph: Dict[str, Tensor]) -> Tensor:
        """What may be given as INVERSE to evaluations of later geometries of one structure."""
        inverse: Tensor = self.potential.inverse(graph)
        return inverse

    def response(self, graph: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """MOMENT (1, 3), BORN_CHARGES and POLARISABILITY of one structure, exact, ions clamped.

        Raises
        ------
        UnsupportedError
            The heads, or the head and the structure, give no polarisation.
        ConvergenceError
        """
        vectors = graph[fields.EDGE_VECTORS].detach().requires_grad_(True)
        positions = graph[fields.POSITIONS].detach().requires_grad_(True)
        inputs = graph.copy()
        inputs[fields.EDGE_VECTORS], inputs[fields.POSITIONS] = vectors, positions
        found = self.potential.response(inputs)
        born: List[Tensor] = []
        for axis in range(3):
            gradients = self.gradients(found.mixed[axis], [vectors, positions], True)
            of_edges = forces_of(gradients[0], graph[fields.EDGE_INDEX], positions.shape[0])
            born.append(of_edges - gradients[1])
        return {
            fields.MOMENT: found.moment.detach()[None],
            fields.BORN_CHARGES: torch.stack(born, 1).detach(),
            fields.POLARISABILITY: found.polarisability.detach(),
        }

    def stress(self, virial: Tensor, graph: Dict[str, Tensor]) -> Tensor:
        """Virial over volume (B, 3, 3) | eV/Å³, tension positive as in ASE."""
        volume = torch.linalg.det(graph[fields.CELL]).abs()
        bulk = graph[fields.PBC].all(1) & (volume > 0)
        inverse = torch.where(bulk, 1.0 / torch.where(bulk, volume, 1.0), 0.0)
        return virial * inverse[:, None, None]

    def dipole(self, charges: Tensor, graph: Dict[str, Tensor]) -> Tensor:
        """Σ q_i (r_i − r_centre of mass) (B, 3) | e·Å of structures with no periodic direction."""
        batch, positions = graph[fields.BATCH], graph[fields.POSITIONS]
        mass = self.masses[graph[fields.SPECIES]][:, None]
        centre = torch.zeros_like(graph[fields.CELL][:, 0])
        weight = torch.zeros_like(centre[:, :1]).index_add(0, batch, mass)
        centre = centre.index_add(0, batch, mass * positions) / weight
        moment = charges[:, None] * (positions - centre.index_select(0, batch))
        dipole = torch.zeros_like(centre).index_add(0, batch, moment)
        return torch.where(graph[fields.PBC].any(1)[:, None], 0.0, dipole)
