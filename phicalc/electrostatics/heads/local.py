"""Charges straight from the features, and their Coulomb energy: no equations to solve.

The baseline of the charge heads, and their limit of infinite hardness. AIMNet2
(doi:10.1039/D4SC08572H) and latent Ewald summation (arXiv 2408.15165) work this way.
"""

from typing import Dict, List

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.operator import coulomb_of
from phicalc.electrostatics.coulomb.particle_mesh import ACCURACY
from phicalc.electrostatics.electric_field import (
    FieldResponse,
    field_potential,
    refuse_periodic_field,
)
from phicalc.electrostatics.electronegativity import starting_charges
from phicalc.electrostatics.heads.atom_parameters import (
    BaseCharges,
    PositivePerElement,
    start_widths,
)
from phicalc.electrostatics.heads.head import Head
from phicalc.electrostatics.laplacian import silence_sparse_notice
from phicalc.electrostatics.solvers.charges import DENSE_LIMIT


class LocalChargesHead(Head):
    """E = ½ qᵀAq of charges q that the features give; they sum to Q.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    cutoff
        r_c of the edges | Å
    accuracy
        ε of the Coulomb sum of large crystals
    """

    def __init__(
        self,
        features: int,
        layers: int,
        elements: List[int],
        cutoff: float,
        accuracy: float = ACCURACY,
    ) -> None:
        super().__init__()
        silence_sparse_notice()
        self.needs_positions = True
        self.dense_limit = DENSE_LIMIT
        self.cutoff = cutoff
        self.accuracy = accuracy
        self.charges = BaseCharges(features, layers, [0.0] * len(elements), "learned")
        self.widths = PositivePerElement(start_widths(elements))
        with torch.no_grad():
            self.charges.scalar.constant.copy_(torch.tensor(starting_charges(elements)))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies and charges, (N,) float64; arguments as of every head.

        Raises
        ------
        UnsupportedError
            A field on a periodic structure.
        """
        charges = self.charges(features, species_index, graph)
        widths = self.widths(species_index)
        coulomb = coulomb_of(
            graph, widths, self.cutoff, self.accuracy, self.dense_limit, self.training
        )
        energies = coulomb.energies(charges)
        outside = field_potential(graph)
        if outside is not None:
            refuse_periodic_field(graph)
            energies = energies + charges * outside
        output = {fields.ENERGIES: energies, fields.CHARGES: charges}
        if self.training:
            output[fields.AUXILIARY_LOSS] = self.charges.imbalance(features, species_index, graph)
        return output

    def response(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> FieldResponse:
        """Dipole of one molecule about the origin; no field changes these charges.

        Raises
        ------
        UnsupportedError
            The structure is periodic.
        """
        refuse_periodic_field(graph)
        charges = self.charges(features, species_index, graph)
        moment = torch.mv(graph[fields.POSITIONS].t(), charges)
        return FieldResponse(-moment, moment, torch.zeros_like(graph[fields.CELL][0]))
