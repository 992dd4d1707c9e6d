"""SchNet: continuous-filter convolutions on interatomic distances (arXiv 1706.08566)."""

import math
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from phicalc.geometric import scatter
from phicalc.nn.backbone import Backbone
from phicalc.nn.radial import CosineEnvelope, GaussianBasis, PolynomialEnvelope
from phicalc.nn.saturation import saturate


class ShiftedSoftplus(nn.Module):
    """ln(½ eˣ + ½), the paper's activation: smooth and 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x) - math.log(2.0)


def glorot_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer started as in the paper: Glorot-uniform weights, no offset."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Interaction(nn.Module):
    """One interaction block: filter-weighted sum over neighbours, then two atom-wise layers.

    Parameters
    ----------
    features, filters, radial
        Widths F of the atoms, C of the filters, K of the radial basis.
    average_neighbours
        The filters start √average_neighbours smaller, so that their sums start near unit size.
    """

    def __init__(self, features: int, filters: int, radial: int, average_neighbours: float) -> None:
        super().__init__()
        self.filter = nn.Sequential(
            glorot_linear(radial, filters), ShiftedSoftplus(), glorot_linear(filters, filters)
        )
        self.incoming = glorot_linear(features, filters, bias=False)
        self.outgoing = nn.Sequential(
            glorot_linear(filters, features), ShiftedSoftplus(), glorot_linear(features, features)
        )
        with torch.no_grad():
            self.incoming.weight.div_(math.sqrt(max(average_neighbours, 1.0)))

    def forward(self, nodes: Tensor, edge_index: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """Change of the node features.

        Parameters
        ----------
        nodes
            (N, F) | node features.
        edge_index
            (2, E) | sender j, receiver i.
        basis, envelope
            (E, K) and (E, 1) | radial basis and cutoff function of the distances.

        Returns
        -------
        Tensor
            (N, F) | what the block adds to the node features.
        """
        filters = self.filter(basis) * envelope
        messages = self.incoming(nodes).index_select(0, edge_index[0]) * filters
        change: Tensor = self.outgoing(scatter(messages, edge_index[1], 0, nodes.shape[0], "sum"))
        return change


class SchNet(Backbone):
    """Node features of T interaction blocks, invariant to rotation, reflection and atom order.

    Parameters
    ----------
    features, filters, layers, radial
        Width F of the atom features and C of the filters, number of blocks T, number of Gaussians.
    cutoff
        r_c in Å.
    envelope
        "polynomial" (C²) or "cosine" (the paper's, only C¹ at r_c).
    num_species
        Number of elements.
    average_neighbours
        Mean number of neighbours in the training data; sets the size of the starting filters.

    Raises
    ------
    ValueError
        Unknown envelope.

    Source: arXiv 1706.08566.
    """

    def __init__(
        self,
        features: int,
        filters: int,
        layers: int,
        radial: int,
        cutoff: float,
        envelope: str,
        num_species: int,
        average_neighbours: float = 1.0,
    ) -> None:
        super().__init__()
        if envelope == "polynomial":
            self.envelope: nn.Module = PolynomialEnvelope(cutoff)
        elif envelope == "cosine":
            self.envelope = CosineEnvelope(cutoff)
        else:
            raise ValueError(f"expected envelope 'polynomial' or 'cosine', got {envelope!r}")
        self.basis = GaussianBasis(radial, cutoff)
        self.embedding = nn.Embedding(num_species, features)
        self.interactions = nn.ModuleList(
            [Interaction(features, filters, radial, average_neighbours) for _ in range(layers)]
        )

    def forward(
        self,
        species_index: Tensor,
        initial: Tensor,
        edge_index: Tensor,
        edge_vectors: Tensor,
        edge_gates: Tensor,
        kinds: Optional[Tensor] = None,
        counts: Optional[Tensor] = None,
    ) -> List[Tensor]:
        """Node features h¹ … hᵀ, each (N, F); arguments as of every `Backbone`, in any order."""
        distances = torch.linalg.vector_norm(edge_vectors, dim=1)
        basis = self.basis(distances)
        envelope = (self.envelope(distances) * edge_gates).unsqueeze(1)
        nodes = self.embedding(species_index) + initial
        if kinds is not None:
            nodes = nodes.index_select(0, kinds)
        features: List[Tensor] = []
        for interaction in self.interactions:
            nodes = saturate(nodes + interaction(nodes, edge_index, basis, envelope))
            features.append(nodes)
        return features
