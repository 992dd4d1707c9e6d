"""Charge equilibration on learned electronegativities (CELLI, arXiv 2501.19179), variational.

E(q) = Σ χ_i q_i + ½ J_i q_i² + ½ qᵀAq at its minimum over all q with Σq = Q, A the Coulomb matrix
of Gaussian charges with its self-energy. All of E stays in the energy, so that forces are partial
derivatives at fixed q. The equilibration is A. K. Rappé's and W. A. Goddard's
(doi:10.1021/j100161a070).

Two failures belong to the method: charge flows any distance at no cost, so an extended system
screens like a metal, and distant fragments share a fraction of a charge.
"""

from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices
from phicalc.electrostatics.coulomb.operator import (
    ACCURACY,
    coulomb_coupling,
    coulomb_energies,
    coulomb_operator,
)
from phicalc.electrostatics.electric_field import (
    FieldResponse,
    field_potential,
    refuse_periodic_field,
)
from phicalc.electrostatics.electronegativity import pauling_electronegativities
from phicalc.electrostatics.heads.atom_parameters import (
    AtomScalar,
    PositivePerElement,
    start_widths,
)
from phicalc.electrostatics.laplacian import silence_sparse_notice
from phicalc.electrostatics.padding import from_rows, multiply_rows, row_slots, to_rows
from phicalc.electrostatics.solvers.charges import (
    DENSE_LIMIT,
    MAX_ITERATIONS,
    equilibrate_iteratively,
    screening_mesh,
    solver_tolerance,
)


def equilibrate(electronegativity: Tensor, kernel: Tensor, total_charge: Tensor) -> Tensor:
    """Charges that minimise Σ χ_i q_i + ½ qᵀKq at Σ q = Q, for each structure of a batch.

    Parameters
    ----------
    electronegativity
        (B, M) | V | χ
    kernel
        (B, M, M) | eV/e² | J + A, symmetric, positive definite, zero where padded
    total_charge
        (B,) | e

    Returns
    -------
    (B, M) | e, zero where padded; differentiable to any order
    """
    diagonal = kernel.diagonal(0, 1, 2)
    real = (diagonal > 0).to(kernel.dtype)
    padded = kernel + torch.diag_embed(1.0 - real)
    solved = torch.linalg.solve(padded, torch.stack([-electronegativity * real, real], 2))
    free, uniform = solved[:, :, 0], solved[:, :, 1]
    level = (total_charge - free.sum(1)) / uniform.sum(1)
    charges: Tensor = free + level[:, None] * uniform
    return charges


class QEqHead(nn.Module):
    """Equilibrated charges and their energy.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    cutoff
        r_c of the edges | Å
    hardness
        starting value of J | eV/e²
    accuracy
        ε of the Coulomb sum of large crystals
    """

    def __init__(
        self,
        features: int,
        layers: int,
        elements: List[int],
        cutoff: float,
        hardness: float = 10.0,
        accuracy: float = ACCURACY,
    ) -> None:
        super().__init__()
        silence_sparse_notice()
        self.needs_positions = True
        self.dense_limit = DENSE_LIMIT
        self.max_iterations = MAX_ITERATIONS
        self.cutoff = cutoff
        self.accuracy = accuracy
        self.tolerance = 0.0
        self.electronegativity = AtomScalar(features, layers, pauling_electronegativities(elements))
        self.hardness = PositivePerElement([hardness] * len(elements))
        self.widths = PositivePerElement(start_widths(elements))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies and charges, (N,) float64.

        Parameters
        ----------
        features
            T tensors (N, F), node features after each message step
        species_index
            (N,) | position of each atom's element in ``elements``
        graph
            needs POSITIONS, CELL, PBC, EDGE_INDEX, EDGE_VECTORS, BATCH, TOTAL_CHARGE; may hold
            CHARGE_GUESS and FIELD

        Raises
        ------
        UnsupportedError
            A field on a periodic structure.
        ConvergenceError
        """
        chi = self.electronegativity(features, species_index)
        outside = field_potential(graph)
        if outside is not None:
            refuse_periodic_field(graph)
            chi = chi + outside
        hardness = self.hardness(species_index)
        widths = self.widths(species_index)
        num = graph[fields.TOTAL_CHARGE].shape[0]
        if self.training or num > 1 or widths.shape[0] <= self.dense_limit:
            charges, potential = self.solve_densely(chi, hardness, widths, graph)
            energies = charges * (chi + 0.5 * potential)
            iterations, residual = 0, 0.0
        else:
            operator = coulomb_operator(graph, widths, self.cutoff, self.accuracy)
            diagonal = hardness.detach() + operator.diagonal
            charges, iterations, residual = equilibrate_iteratively(
                chi.detach(),
                hardness.detach(),
                operator,
                graph[fields.TOTAL_CHARGE],
                screening_mesh(graph, diagonal, operator.constant),
                graph.get(fields.CHARGE_GUESS),
                solver_tolerance(self.tolerance, features[0]),
                self.max_iterations,
            )
            own = charges * (chi + 0.5 * hardness * charges)
            energies = own + coulomb_energies(operator, charges, graph)
        device = charges.device
        return {
            fields.ENERGIES: energies,
            fields.CHARGES: charges,
            fields.EQUILIBRATED_CHARGES: charges,
            fields.CHARGE_ITERATIONS: torch.full([1], iterations, dtype=torch.int64, device=device),
            fields.CHARGE_RESIDUAL: torch.full([1], residual, dtype=torch.float64, device=device),
        }

    def adjoint_energies(
        self,
        gradient: Tensor,
        result: Dict[str, Tensor],
        features: List[Tensor],
        species_index: Tensor,
        graph: Dict[str, Tensor],
    ) -> Tensor:
        """Energies (N,) | eV of zero sum −zᵀ[χ + (J + A) q], with the gradient of ∂E/∂q · dq/dx.

        The adjoint z is an equilibration too, of −∂E/∂q at no total charge. It starts cold.

        Parameters
        ----------
        gradient
            (N,) | V | ∂E/∂q of an energy that depends on the charges
        result
            what ``forward`` gave; the other arguments are those of ``forward``

        Raises
        ------
        ConvergenceError
        """
        chi = self.electronegativity(features, species_index)
        hardness, widths = self.hardness(species_index), self.widths(species_index)
        charges = result[fields.CHARGES]
        neutral = torch.zeros_like(graph[fields.TOTAL_CHARGE])
        if neutral.shape[0] > 1 or widths.shape[0] <= self.dense_limit:
            kernel, slots = self.kernel_rows(hardness, widths, graph)
            num, size = kernel.shape[0], kernel.shape[1]
            rows = to_rows(-gradient, slots, num, size)
            adjoint = from_rows(equilibrate(rows, kernel.detach(), neutral), slots)
            energies: Tensor = -adjoint * (chi + multiply_rows(kernel, charges, slots))
        else:
            operator = coulomb_operator(graph, widths, self.cutoff, self.accuracy)
            diagonal = hardness.detach() + operator.diagonal
            adjoint = equilibrate_iteratively(
                -gradient,
                hardness.detach(),
                operator,
                neutral,
                screening_mesh(graph, diagonal, operator.constant),
                None,
                solver_tolerance(self.tolerance, features[0]),
                self.max_iterations,
            )[0]
            coupling = coulomb_coupling(operator, adjoint, charges, graph)
            energies = -adjoint * (chi + hardness * charges) - coupling / charges.shape[0]
        return energies

    def response(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> FieldResponse:
        """Dipole of one molecule about the origin, its response to a field and ∂E/∂f's part in it.

        Raises
        ------
        UnsupportedError
            The structure is periodic.
        ConvergenceError
        """
        refuse_periodic_field(graph)
        positions, total_charge = graph[fields.POSITIONS], graph[fields.TOTAL_CHARGE]
        chi = self.electronegativity(features, species_index)
        outside = field_potential(graph)
        if outside is not None:
            chi = chi + outside
        hardness, widths = self.hardness(species_index), self.widths(species_index)
        operator = coulomb_operator(graph, widths, self.cutoff, self.accuracy)
        diagonal = hardness.detach() + operator.diagonal
        screening = screening_mesh(graph, diagonal, operator.constant)
        charges = equilibrate_iteratively(
            chi.detach(),
            hardness.detach(),
            operator,
            total_charge,
            screening,
            max_iterations=self.max_iterations,
        )[0]
        potential = chi + hardness * charges
        mixed: List[Tensor] = []
        changes: List[Tensor] = []
        for axis in range(3):
            along = positions[:, axis]
            none = torch.zeros_like(total_charge)
            change = equilibrate_iteratively(
                -along.detach(),
                hardness.detach(),
                operator,
                none,
                screening,
                max_iterations=self.max_iterations,
            )[0]
            coupling = coulomb_coupling(operator, change, charges, graph)
            mixed.append((change * potential).sum() + coupling - (charges * along).sum())
            changes.append(change)
        moment = torch.mv(positions.t(), charges)
        polarisability = torch.mm(positions.t(), torch.stack(changes, 1))
        return FieldResponse(torch.stack(mixed), moment, polarisability)

    def solve_densely(
        self, chi: Tensor, hardness: Tensor, widths: Tensor, graph: Dict[str, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Charges | e and their potential (J + A) q | V, both (N,), from χ, J and σ (N,)."""
        total_charge = graph[fields.TOTAL_CHARGE]
        kernel, slots = self.kernel_rows(hardness, widths, graph)
        chi_rows = to_rows(chi, slots, kernel.shape[0], kernel.shape[1])
        if self.training:
            rows = equilibrate(chi_rows, kernel, total_charge)
        else:
            rows = equilibrate(chi_rows.detach(), kernel.detach(), total_charge)
        charges = from_rows(rows, slots)
        return charges, multiply_rows(kernel, charges, slots)

    def kernel_rows(
        self, hardness: Tensor, widths: Tensor, graph: Dict[str, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """J + A of a batch (B, M, M) | eV/e², and the place of every atom in its rows (N,)."""
        num = graph[fields.TOTAL_CHARGE].shape[0]
        slots, size = row_slots(graph[fields.BATCH], num)
        diagonal = torch.diag_embed(to_rows(hardness, slots, num, size))
        return coulomb_matrices(graph, widths) + diagonal, slots
