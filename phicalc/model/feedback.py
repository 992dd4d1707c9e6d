"""Charge feedback: one more message step, of features that know the charges (arXiv 2501.19179).

The energy of this step depends on charges q*(x) that make a head's own energy stationary,
r(x, y*) = 0 in its unknowns y, so that its gradient goes through the solve. Training differentiates
the solve. In MD y is held fixed, and every head adds −zᵀr(x, y), with z from one adjoint solve
Hz = ∂E/∂y, H = ∂r/∂y. At the solution it is zero and its gradient is what was missing,
∂E/∂y · dy/dx. Because the sum is stationary in y, an error of the solve enters the energy squared,
as it does without feedback.
"""

import torch
from torch import Tensor, nn


class ChargeFeedback(nn.Module):
    """Energies of a message step that starts from hᵀ + MLP[q, species].

    Parameters
    ----------
    step
        one message step: a backbone of one layer
    features
        width F
    num_species
        number of elements
    """

    def __init__(self, step: nn.Module, features: int, num_species: int) -> None:
        super().__init__()
        self.slope = nn.Embedding(num_species, features)
        self.offset = nn.Embedding(num_species, features)
        self.mix = nn.Linear(features, features)
        self.step = step
        self.readout = nn.Sequential(
            nn.Linear(features, features // 2), nn.SiLU(), nn.Linear(features // 2, 1)
        )

    def forward(
        self,
        charges: Tensor,
        features: Tensor,
        species_index: Tensor,
        edge_index: Tensor,
        edge_vectors: Tensor,
        edge_gates: Tensor,
    ) -> Tensor:
        """Per-atom energies (N,) in the unit of the readout.

        Parameters
        ----------
        charges
            (N,) float64 | e
        features
            (N, F) | hᵀ
        species_index
            (N,) | position of each atom's element in the model's list
        edge_index, edge_vectors, edge_gates
            (2, E), (E, 3), (E,) | as the backbone gets them
        """
        hidden = self.slope(species_index) * charges.to(features.dtype)[:, None]
        hidden = torch.nn.functional.silu(hidden + self.offset(species_index))
        initial = features + self.mix(hidden)
        energies: Tensor = self.readout(
            self.step(species_index, initial, edge_index, edge_vectors, edge_gates)[-1]
        )
        return energies.squeeze(1)
