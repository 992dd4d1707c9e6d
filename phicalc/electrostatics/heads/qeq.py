"""Charge equilibration on learned electronegativities (CELLI, arXiv 2501.19179), variational.

E(q) = Σ χ_i q_i + ½ J_i q_i² + ½ qᵀAq at its minimum over all q with Σq = Q, A the Coulomb matrix
of Gaussian charges with its self-energy. All of E stays in the energy, so that forces are partial
derivatives at fixed q. The equilibration is A. K. Rappé's and W. A. Goddard's
(doi:10.1021/j100161a070).

Two failures belong to the method: charge flows any distance at no cost, so an extended system
screens like a metal, and distant fragments share a fraction of a charge.
"""

from typing import Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.operator import Coulomb, coulomb_of
from phicalc.electrostatics.coulomb.particle_mesh import ACCURACY
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
from phicalc.electrostatics.heads.head import Head
from phicalc.electrostatics.laplacian import silence_sparse_notice
from phicalc.electrostatics.solvers.charges import (
    DENSE_LIMIT,
    MAX_ITERATIONS,
    equilibrate_iteratively,
    screening_mesh,
    solve_charges,
    solver_tolerance,
)


class QEqCoefficients(NamedTuple):
    """What the energy of charges depends on, besides A."""

    electronegativity: Tensor  # (N,) | V | χ, plus the potential of a field
    hardness: Tensor  # (N,) | eV/e² | J


def detached(coefficients: QEqCoefficients) -> QEqCoefficients:
    """The same numbers without their gradients."""
    return QEqCoefficients(coefficients.electronegativity.detach(), coefficients.hardness.detach())


class QEqHead(Head):
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
        self.refinements = 1  # orders of derivatives of the solution, in training on crystals
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
        coefficients = self.coefficients(features, species_index, graph)
        coulomb = self.coulomb(species_index, graph, self.dense_limit)
        tolerance = solver_tolerance(self.tolerance, features[0])
        charges, iterations, residual = self.solve(coefficients, coulomb, tolerance)
        energies = self.energies(coefficients, coulomb, charges)
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
        coefficients = self.coefficients(features, species_index, graph)
        coulomb = self.coulomb(species_index, graph, self.dense_limit)
        adjoint, _, _ = solve_charges(
            -gradient,
            coefficients.hardness.detach(),
            coulomb.fixed(),
            torch.zeros_like(graph[fields.TOTAL_CHARGE]),
            None,
            solver_tolerance(self.tolerance, features[0]),
            self.max_iterations,
        )
        charges = result[fields.CHARGES]
        own = coefficients.electronegativity + coefficients.hardness * charges
        energies: Tensor = -adjoint * own - coulomb.coupling(adjoint, charges)
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
        coefficients = self.coefficients(features, species_index, graph)
        fixed = detached(coefficients)
        coulomb = self.coulomb(species_index, graph, 0)
        positions, total_charge = graph[fields.POSITIONS], graph[fields.TOTAL_CHARGE]
        solved = coulomb.fixed()
        screening = screening_mesh(graph, fixed.hardness + solved.diagonal())
        charges = equilibrate_iteratively(
            fixed.electronegativity,
            fixed.hardness,
            solved,
            total_charge,
            screening,
            max_iterations=self.max_iterations,
        )[0]
        potential = coefficients.electronegativity + coefficients.hardness * charges
        mixed: List[Tensor] = []
        changes: List[Tensor] = []
        for axis in range(3):
            along = positions[:, axis]
            change = equilibrate_iteratively(
                -along.detach(),
                fixed.hardness,
                solved,
                torch.zeros_like(total_charge),
                screening,
                max_iterations=self.max_iterations,
            )[0]
            coupling = coulomb.coupling(change, charges).sum()
            mixed.append((change * potential).sum() + coupling - (charges * along).sum())
            changes.append(change)
        moment = torch.mv(positions.t(), charges)
        polarisability = torch.mm(positions.t(), torch.stack(changes, 1))
        return FieldResponse(torch.stack(mixed), moment, polarisability)

    def coefficients(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> QEqCoefficients:
        """χ and J; arguments of ``forward``."""
        chi = self.electronegativity(features, species_index)
        outside = field_potential(graph)
        if outside is not None:
            refuse_periodic_field(graph)
            chi = chi + outside
        return QEqCoefficients(chi, self.hardness(species_index))

    def solve(
        self, coefficients: QEqCoefficients, coulomb: Coulomb, tolerance: float
    ) -> Tuple[Tensor, int, float]:
        """Charges (N,) | e, iterations and relative residual; differentiable in training."""
        if not self.training:
            coefficients, coulomb = detached(coefficients), coulomb.fixed()
        return solve_charges(
            coefficients.electronegativity,
            coefficients.hardness,
            coulomb,
            coulomb.graph[fields.TOTAL_CHARGE],
            coulomb.graph.get(fields.CHARGE_GUESS),
            tolerance,
            self.max_iterations,
            self.refinements,
        )

    def energies(self, coefficients: QEqCoefficients, coulomb: Coulomb, charges: Tensor) -> Tensor:
        """E(q) by atom (N,) | eV at fixed charges."""
        own = coefficients.electronegativity + 0.5 * coefficients.hardness * charges
        return charges * own + coulomb.energies(charges)

    def coulomb(self, species_index: Tensor, graph: Dict[str, Tensor], dense_limit: int) -> Coulomb:
        """A, by matrices in training, in batches and up to so many atoms."""
        widths = self.widths(species_index)
        return coulomb_of(graph, widths, self.cutoff, self.accuracy, dense_limit, self.training)
