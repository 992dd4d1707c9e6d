"""Φ with Coulomb: charge flows along the graph's edges, in the field of all other charges.

Split-charge equilibration (R. A. Nistor et al., doi:10.1063/1.2346671) with bond hardness 1/w_e,
site hardness J and source s, the negative electronegativity:

    E(p) = Σ_e p_e²/(2 w_e) + Σ_i (½ J_i ρ_i² − s_i ρ_i) + ½ qᵀAq,   ρ_i = Σ_e ± p_e,   q = q⁰ + ρ

Its solution p_e = w_e (φ_i − φ_j), φ = s − Jρ − Aq, ρ = Lφ makes it Poisson's equation on the
graph, and with A = 0 it is the Φ head with μ = 1/J and c = −1. E is the stationary value of

    F(φ, ρ) = φᵀρ − ½ φᵀLφ + Σ_i (½ J_i ρ_i² − s_i ρ_i) + ½ qᵀAq

in φ and ρ both, so that forces are its partial derivatives at fixed φ and ρ. Charge flows only
along edges: fragments without an edge between them keep the charges they have.

That gives a crystal a polarisation that no choice of periodic images changes, but for a constant:

    P V = Σ_i q⁰_i r_i − Σ_e p_e r_e,   r_e = r_j + S − r_i,   p_e from j to i

In a uniform field f the energy is E − f·PV, and p_e = w_e (φ_i − φ_j − f·r_e).
"""

from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.coulomb.operator import Coulomb, coulomb_of, no_coulomb
from phicalc.electrostatics.coulomb.particle_mesh import ACCURACY
from phicalc.electrostatics.electric_field import FieldResponse, field_potential
from phicalc.electrostatics.electronegativity import (
    pauling_electronegativities,
    starting_charges,
)
from phicalc.electrostatics.heads.atom_parameters import (
    AtomScalar,
    BaseCharges,
    PositivePerElement,
    start_widths,
)
from phicalc.electrostatics.heads.head import Head
from phicalc.electrostatics.laplacian import (
    apply_laplacian,
    edge_weights,
    node_sum,
    silence_sparse_notice,
)
from phicalc.electrostatics.solvers.charges import (
    DENSE_LIMIT,
    MAX_ITERATIONS,
    solver_tolerance,
)
from phicalc.electrostatics.solvers.flow import (
    FlowParameters,
    detached,
    driving_differences,
    flow_moment,
    flow_response,
    solve_flow,
    solve_potential,
)
from phicalc.electrostatics.solvers.flow_inverse import flow_inverse


class PhiCoulombHead(Head):
    """Charges that flow along the edges of the graph, and their energy.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    cutoff, sigma
        r_c and decay length of the edge weights | Å
    hardness
        starting value of J | eV/e²
    formal_charges
        base charge of each element | e, in the order of the species index
    base
        "formal", "constant" or "learned": see BaseCharges
    coulomb
        False leaves A out, which makes it a Φ head
    accuracy
        ε of the Coulomb sum of large crystals
    """

    physical = ("log_conductance",)

    def __init__(
        self,
        features: int,
        layers: int,
        elements: List[int],
        cutoff: float,
        sigma: float,
        hardness: float,
        formal_charges: List[float],
        base: str,
        coulomb: bool,
        accuracy: float = ACCURACY,
    ) -> None:
        super().__init__()
        silence_sparse_notice()
        self.needs_positions = coulomb
        self.dense_limit = DENSE_LIMIT
        self.max_iterations = MAX_ITERATIONS
        self.accuracy = accuracy
        self.tolerance = 0.0
        self.refinements = 1  # orders of derivatives of the solution, in training on crystals
        self.cutoff = cutoff
        self.sigma = sigma
        start = [-value for value in pauling_electronegativities(elements)]
        self.source = AtomScalar(features, layers, start)
        self.hardness = PositivePerElement([hardness] * len(elements))
        self.widths = PositivePerElement(start_widths(elements))
        self.base_charges = BaseCharges(features, layers, formal_charges, base)
        # Bonds of some pairs of elements let charge through far more easily than others.
        self.log_conductance = nn.Parameter(torch.zeros(len(elements), len(elements)))
        if base == "learned":
            with torch.no_grad():
                start = starting_charges(elements)
                self.base_charges.scalar.constant.copy_(torch.tensor(start))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies, charges q and potential φ, all (N,) float64, MOMENT, and the solve.

        Parameters
        ----------
        features
            T tensors (N, F), node features after each message step
        species_index
            (N,) | position of each atom's element in ``elements``
        graph
            needs EDGE_INDEX, EDGE_VECTORS, POSITIONS, CELL, PBC, BATCH, TOTAL_CHARGE; may hold
            POTENTIAL_GUESS, INVERSE and FIELD

        Raises
        ------
        UnsupportedError
            A field on a periodic structure whose base charges depend on the features.
        ConvergenceError
        """
        if fields.FIELD in graph:
            self.base_charges.require_constant(species_index, graph)
        coefficients = self.coefficients(features, species_index, graph)
        coulomb = self.coulomb(species_index, graph, self.dense_limit)
        tolerance = solver_tolerance(self.tolerance, features[0])
        potential, flow, iterations, residual = self.solve(coefficients, coulomb, tolerance)
        energies = self.energies(coefficients, coulomb, potential, flow)
        base, weights = coefficients.base, coefficients.weights
        device = potential.device
        output = {
            fields.ENERGIES: energies,
            fields.CHARGES: base + flow,
            fields.POTENTIAL: potential,
            fields.LAPLACIAN_WEIGHTS: weights,
            fields.SOLVER_ITERATIONS: torch.full([1], iterations, dtype=torch.int64, device=device),
            fields.SOLVER_RESIDUAL: torch.full([1], residual, dtype=torch.float64, device=device),
        }
        if self.training and self.base_charges.base == "learned":
            output[fields.AUXILIARY_LOSS] = self.base_charges.imbalance(
                features, species_index, graph
            )
        if self.needs_positions:
            flows = weights * driving_differences(potential, graph)
            output[fields.MOMENT] = flow_moment(base, flows, graph)
        return output

    def adjoint_energies(
        self,
        gradient: Tensor,
        result: Dict[str, Tensor],
        features: List[Tensor],
        species_index: Tensor,
        graph: Dict[str, Tensor],
    ) -> Tensor:
        """Energies (N,) | eV that sum to zero, with the gradient of ∂E/∂ρ · dρ/dx.

        Their sum is −zᵀ∂F/∂φ − (Lz)ᵀ∂F/∂ρ, where the adjoint z solves the equation of φ with
        ∂E/∂q as its source. It starts cold.

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
        edge_index = graph[fields.EDGE_INDEX]
        coefficients = self.coefficients(features, species_index, graph)
        coulomb = self.coulomb(species_index, graph, self.dense_limit)
        fixed, potential = detached(coefficients), result[fields.POTENTIAL]
        flow = apply_laplacian(fixed.weights, edge_index, potential)
        adjoint, _, _ = solve_potential(
            gradient,
            fixed,
            coulomb.fixed(),
            None,
            solver_tolerance(self.tolerance, features[0]),
            self.max_iterations,
        )
        adjoint_flow = apply_laplacian(fixed.weights, edge_index, adjoint)
        coupling = coulomb.coupling(adjoint_flow, coefficients.base + flow)
        of_potential = flow - apply_laplacian(coefficients.weights, edge_index, potential)
        of_flow = potential + coefficients.hardness * flow - coefficients.source
        energies: Tensor = -adjoint * of_potential - adjoint_flow * of_flow - coupling
        return energies

    def response(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> FieldResponse:
        """Polarisation of one structure, its response to a field, and what gives Born charges.

        Without matrices at any size: four solves by conjugate gradients. Arguments of ``forward``.

        Raises
        ------
        UnsupportedError
            A periodic structure whose base charges depend on the features.
        ConvergenceError
        """
        self.base_charges.require_constant(species_index, graph)
        coefficients = self.coefficients(features, species_index, graph)
        return flow_response(
            coefficients, self.coulomb(species_index, graph, 0), self.max_iterations
        )

    def inverse(self, species_index: Tensor, graph: Dict[str, Tensor]) -> Tensor:
        """What solves of this geometry's neighbours may be given as INVERSE: (N, N) float32.

        Raises
        ------
        UnsupportedError
            A slab or a wire, or too large a structure.
        """
        weights = self.weights(species_index, graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS])
        hardness, widths = self.hardness(species_index), self.widths(species_index)
        return flow_inverse(weights.detach(), hardness.detach(), widths.detach(), graph)

    def coefficients(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> FlowParameters:
        """Sources, weights, hardnesses and base charges; arguments of ``forward``."""
        return FlowParameters(
            self.source(features, species_index),
            self.weights(species_index, graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS]),
            self.hardness(species_index),
            self.base_charges(features, species_index, graph),
        )

    def solve(
        self, coefficients: FlowParameters, coulomb: Coulomb, tolerance: float
    ) -> Tuple[Tensor, Tensor, int, float]:
        """φ | V and ρ | e, both (N,), iterations and residual; differentiable in training."""
        if not self.training:
            coefficients, coulomb = detached(coefficients), coulomb.fixed()
        guess = coulomb.graph.get(fields.POTENTIAL_GUESS)
        return solve_flow(
            coefficients, coulomb, guess, tolerance, self.max_iterations, self.refinements
        )

    def energies(
        self, coefficients: FlowParameters, coulomb: Coulomb, potential: Tensor, flow: Tensor
    ) -> Tensor:
        """F(φ, ρ), less f·PV in a field, by atom (N,) | eV at fixed φ and ρ."""
        graph = coulomb.graph
        edge_energy = coefficients.weights * driving_differences(potential, graph) ** 2
        energies = (
            potential * flow
            - 0.25 * node_sum(edge_energy, graph[fields.EDGE_INDEX], potential.shape[0])
            + (0.5 * coefficients.hardness * flow - coefficients.source) * flow
            + coulomb.energies(coefficients.base + flow)
        )
        outside = field_potential(graph)
        if outside is not None:
            energies = energies + coefficients.base * outside
        return energies

    def weights(self, species_index: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Edge weights (E,) | e/V, symmetric in the two ends of an edge."""
        symmetric = 0.5 * (self.log_conductance + self.log_conductance.t()).double()
        i, j = species_index[edge_index[1]], species_index[edge_index[0]]
        distances = torch.linalg.vector_norm(edge_vectors, dim=1)
        return edge_weights(distances, self.cutoff, self.sigma) * symmetric.exp()[i, j]

    def coulomb(self, species_index: Tensor, graph: Dict[str, Tensor], dense_limit: int) -> Coulomb:
        """A, by matrices in training, in batches and up to so many atoms; 0 without Coulomb."""
        if not self.needs_positions:
            return no_coulomb(graph, dense_limit, self.training)
        widths = self.widths(species_index)
        return coulomb_of(graph, widths, self.cutoff, self.accuracy, dense_limit, self.training)
