"""The Φ head: charges and energy from Poisson's equation on the molecular graph.

E_Φ = c · min_φ {½ φᵀLφ + ½ μ ‖φ − s‖²}: variational, so that an error δφ of the solve enters the
energy as δφ² and forces are partial derivatives at fixed φ. The idea of the layer is from
arXiv 2505.14606; the variational form, and why, is ours.
"""

from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.electronegativity import pauling_electronegativities
from phicalc.electrostatics.heads.edge_weights import DistanceWeights, RandomWeights
from phicalc.electrostatics.heads.head import Head
from phicalc.electrostatics.laplacian import (
    apply_laplacian,
    edge_difference,
    node_sum,
    silence_sparse_notice,
)
from phicalc.electrostatics.solvers.poisson import (
    DIRECT_LIMIT,
    MAX_ITERATIONS,
    PoissonSolve,
    solve_poisson,
)


class PhiHead(Head):
    """Graph-Poisson electrostatics on the features of all message steps.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    cutoff, sigma
        r_c and decay length of the edge weights | Å
    mu
        starting value of the learned screening μ | e/V
    random_weights, seed
        replace the edge weights by random ones, a baseline
    """

    physical = ("base_source", "log_mu", "strength")

    def __init__(
        self,
        features: int,
        layers: int,
        elements: List[int],
        cutoff: float,
        sigma: float = 2.0,
        mu: float = 0.1,
        random_weights: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        silence_sparse_notice()
        self.dense_limit = DIRECT_LIMIT
        self.max_iterations = MAX_ITERATIONS
        self.weights: nn.Module = DistanceWeights(cutoff, sigma)
        if random_weights:
            self.weights = RandomWeights(cutoff, elements, seed)
        # s starts at minus the electronegativity, which gives the charges their physical sign.
        self.base_source = nn.Parameter(
            -torch.tensor(pauling_electronegativities(elements), dtype=torch.get_default_dtype())
        )
        self.log_mu = nn.Parameter(torch.tensor(mu).log())
        self.strength = nn.Parameter(torch.tensor(-1.0))
        self.sources = nn.ModuleList()
        for _ in range(layers):
            last = nn.Linear(features // 2, 1, bias=False)
            nn.init.normal_(last.weight, std=0.01)
            self.sources.append(nn.Sequential(nn.Linear(features, features // 2), nn.SiLU(), last))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies, neutral charges and potential, all (N,) float64.

        Parameters
        ----------
        features
            T tensors (N, F), node features after each message step
        species_index
            (N,) | position of each atom's element in ``elements``
        graph
            needs EDGE_INDEX, EDGE_VECTORS, BATCH, TOTAL_CHARGE; may hold BASIS and POTENTIAL_GUESS

        Raises
        ------
        ConvergenceError
        """
        weights, source, mu = self.coefficients(features, species_index, graph)
        potential, iterations, residual = self.solve(weights, source, mu, graph)
        edge_index = graph[fields.EDGE_INDEX]
        energies = self.energies(weights, source, mu, potential, edge_index)
        device = potential.device
        return {
            fields.ENERGIES: energies,
            fields.CHARGES: apply_laplacian(weights, edge_index, potential),
            fields.POTENTIAL: potential,
            fields.SOURCE: source,
            fields.SCREENING: mu.view(1),
            fields.LAPLACIAN_WEIGHTS: weights,
            fields.SOLVER_ITERATIONS: torch.full([1], iterations, dtype=torch.int64, device=device),
            fields.SOLVER_RESIDUAL: torch.full([1], residual, dtype=torch.float64, device=device),
        }

    def coefficients(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """w (E,) | e/V, s (N,) | V and μ () | e/V; arguments of ``forward``."""
        edge_index = graph[fields.EDGE_INDEX]
        distances = torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1)
        receiver, sender = species_index[edge_index[1]], species_index[edge_index[0]]
        weights = self.weights(distances, receiver, sender)
        source = self.base_source[species_index].double()
        for t, layer in enumerate(self.sources):
            source = source + layer(features[t]).squeeze(1).double()
        return weights, source, self.log_mu.double().exp()

    def solve(
        self, weights: Tensor, source: Tensor, mu: Tensor, graph: Dict[str, Tensor]
    ) -> Tuple[Tensor, int, float]:
        """φ (N,) | V, iterations and relative residual; differentiable in training."""
        edge_index, batch = graph[fields.EDGE_INDEX], graph[fields.BATCH]
        if self.training and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            potential: Tensor = PoissonSolve.apply(
                weights, mu, mu * source, edge_index, batch, self.dense_limit, self.max_iterations
            )
            return potential, 0, 0.0
        return solve_poisson(
            weights.detach(),
            edge_index,
            mu.detach(),
            (mu * source).detach(),
            batch,
            graph.get(fields.BASIS),
            graph.get(fields.POTENTIAL_GUESS),
            direct_limit=self.dense_limit,
            max_iterations=self.max_iterations,
            num_structures=graph[fields.TOTAL_CHARGE].shape[0],
        )

    def energies(
        self, weights: Tensor, source: Tensor, mu: Tensor, potential: Tensor, edge_index: Tensor
    ) -> Tensor:
        """c {½ φᵀLφ + ½ μ ‖φ − s‖²} by atom (N,) | eV at fixed φ."""
        flow = edge_difference(potential, edge_index)
        edge_energy = 0.25 * node_sum(weights * flow**2, edge_index, potential.shape[0])
        return self.strength.double() * (edge_energy + 0.5 * mu * (potential - source) ** 2)

    def adjoint_energies(
        self,
        gradient: Tensor,
        result: Dict[str, Tensor],
        features: List[Tensor],
        species_index: Tensor,
        graph: Dict[str, Tensor],
    ) -> Tensor:
        """Zeros −z_i [(L + μ)φ − μs]_i (N,) | eV, with the gradient of ∂E/∂q · ∂q/∂φ · dφ/dx.

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
        weights, mu = result[fields.LAPLACIAN_WEIGHTS], result[fields.SCREENING]
        adjoint = solve_poisson(
            weights.detach(),
            edge_index,
            mu[0].detach(),
            apply_laplacian(weights.detach(), edge_index, gradient),
            graph[fields.BATCH],
            graph.get(fields.BASIS),
            direct_limit=self.dense_limit,
            max_iterations=self.max_iterations,
            num_structures=graph[fields.TOTAL_CHARGE].shape[0],
        )[0]
        potential = result[fields.POTENTIAL]
        residual = apply_laplacian(weights, edge_index, potential)
        residual = residual + mu * (potential - result[fields.SOURCE])
        return -adjoint * residual
