"""PaiNN: equivariant message passing with scalar and vector features (arXiv 2102.03150).

The filters of PaiNN are linear in the radial basis, so the sum over neighbours is taken in the
basis first, A_i[k, f] = Σ_j R_k(r_ij) x_j[f], as one batched matrix product over padded
neighbour rows, and the filter acts once per atom. That never forms a tensor of edges × 3F.
"""

from typing import List, Tuple

import torch
from torch import Tensor, nn

from phicalc.envelope import polynomial_envelope
from phicalc.nn.radial import BesselBasis
from phicalc.nn.saturation import saturate

BLOCK: int = 4096
"""Atoms whose neighbours are gathered at a time, so that no tensor outgrows what is kept for reuse
between steps (:mod:`phicalc.machine.allocator`)."""


def neighbour_rows(
    edge_index: Tensor, edge_vectors: Tensor, edge_gates: Tensor, num_nodes: int, cutoff: float
) -> Tuple[Tensor, Tensor, Tensor]:
    """Edges sorted by receiver as padded rows, one per atom.

    Returns
    -------
    senders (N·M,) int64, vectors (N, M, 3) and gates (N, M), M the largest number of neighbours.
    Padding has gate 0 and points at atom 0 from exactly the cutoff, where every radial function
    and its slope vanish.
    """
    receivers = edge_index[1]
    counts = torch.bincount(receivers, minlength=num_nodes)
    width = int(counts.max())
    first = torch.cumsum(counts, 0) - counts
    column = torch.arange(receivers.shape[0], device=receivers.device) - first[receivers]
    slot = receivers * width + column
    senders = torch.zeros(num_nodes * width, dtype=torch.int64, device=receivers.device)
    senders = senders.index_copy(0, slot, edge_index[0])
    vectors = torch.zeros(
        num_nodes * width, 3, dtype=edge_vectors.dtype, device=edge_vectors.device
    )
    vectors[:, 0].fill_(cutoff)  # assigned, TorchScript would round it to the default dtype
    vectors = vectors.index_copy(0, slot, edge_vectors)
    gates = torch.zeros(num_nodes * width, dtype=edge_gates.dtype, device=edge_gates.device)
    gates = gates.index_copy(0, slot, edge_gates)
    return senders, vectors.view(num_nodes, width, 3), gates.view(num_nodes, width)


class Message(nn.Module):
    """Equations 7 and 8 of the paper, summed over neighbours in the radial basis.

    Parameters
    ----------
    features, radial
        widths F and K
    filter_scale
        standard deviation of the filters' start
    first
        in the first message step the vector features are zero and their filter is left out
    """

    def __init__(self, features: int, radial: int, filter_scale: float, first: bool) -> None:
        super().__init__()
        self.features = features
        self.first = first
        self.block = BLOCK
        outputs = 2 if first else 3
        self.senders = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, outputs * features)
        )
        self.filters = nn.Parameter(torch.randn(radial, outputs * features) * filter_scale)

    def forward(
        self, scalars: Tensor, vectors: Tensor, senders: Tensor, radial: Tensor, angular: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Sum of the messages to every atom: scalars (N, F) and vectors (N, 3, F).

        Parameters
        ----------
        scalars, vectors
            (N, F), (N, 3, F)
        senders
            (N·M,) | padded neighbour rows
        radial, angular
            (N, K, M), (N, 3K, M) | R_k(r) and R_k(r)·r̂, envelope included
        """
        f = self.features
        x = self.senders(scalars)
        gathered = x[:, :f]
        if not self.first:
            carried = vectors * x[:, None, 2 * f :]
            gathered = torch.cat([gathered[:, None], carried], 1).view(scalars.shape[0], 4 * f)
        along = x[:, f : 2 * f]
        scalar_sums: List[Tensor] = []
        vector_sums: List[Tensor] = []
        for start in range(0, radial.shape[0], self.block):
            stop = min(start + self.block, radial.shape[0])
            rows = senders[start * radial.shape[2] : stop * radial.shape[2]]
            scalar_sum, vector_sum = self.summed(
                gathered.index_select(0, rows),
                along.index_select(0, rows),
                radial[start:stop],
                angular[start:stop],
            )
            scalar_sums.append(scalar_sum)
            vector_sums.append(vector_sum)
        if len(scalar_sums) == 1:
            return scalar_sums[0], vector_sums[0]
        return torch.cat(scalar_sums), torch.cat(vector_sums)

    def summed(
        self, gathered: Tensor, along: Tensor, radial: Tensor, angular: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Messages to a block of N atoms from what their M senders carry each.

        Parameters
        ----------
        gathered, along
            (N·M, F or 4F), (N·M, F)
        radial, angular
            (N, K, M), (N, 3K, M)
        """
        num_nodes, basis, width = radial.shape
        f = self.features
        channels = 1 if self.first else 4
        summed = torch.bmm(radial, gathered.view(num_nodes, width, channels * f))
        summed = summed.view(num_nodes, basis, channels, f)
        directed = torch.bmm(angular, along.view(num_nodes, width, f))
        directed = directed.view(num_nodes, 3, basis, f)
        scalar_sum = (summed[:, :, 0] * self.filters[:, :f]).sum(1)
        vector_sum = (directed * self.filters[:, f : 2 * f]).sum(2)
        if not self.first:
            vector_sum = vector_sum + (summed[:, :, 1:] * self.filters[:, None, 2 * f :]).sum(1)
        return scalar_sum, vector_sum


class Update(nn.Module):
    """Equations 9 and 10 of the paper: mixing of scalars and vectors within each atom.

    The norm of the mixed vectors enters as √(1 + ‖Vv‖²) − 1, not as ‖Vv‖: the latter has a
    cusp where symmetry makes the vector vanish, on every site of a perfect crystal for one.
    """

    def __init__(self, features: int, last: bool) -> None:
        super().__init__()
        self.features = features
        self.last = last
        self.mix = nn.Linear(features, 2 * features, bias=False)
        outputs = 2 if last else 3
        self.gates = nn.Sequential(
            nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, outputs * features)
        )

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tuple[Tensor, Tensor]:
        """New scalars (N, F) and vectors (N, 3, F); the last step leaves the vectors alone."""
        f = self.features
        mixed = self.mix(vectors)
        u, v = mixed[..., :f], mixed[..., f:]
        norm = torch.sqrt(1.0 + (v * v).sum(1)) - 1.0
        gates = self.gates(torch.cat([scalars, norm], 1))
        scalars = scalars + gates[:, :f] + gates[:, f : 2 * f] * (u * v).sum(1)
        if not self.last:
            vectors = vectors + gates[:, None, 2 * f :] * u
        return scalars, vectors


class PaiNN(nn.Module):
    """Scalar node features of T message steps, invariant to rotation, reflection and order.

    Parameters
    ----------
    features, layers, radial
        width F, number of steps T, number of radial Bessel functions K
    cutoff
        r_c | Å
    num_species
        number of elements
    average_neighbours
        mean number of neighbours in the training data; sets the scale at which filters start
    """

    def __init__(
        self,
        features: int,
        layers: int,
        radial: int,
        cutoff: float,
        num_species: int,
        average_neighbours: float,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.basis = BesselBasis(radial, cutoff)
        self.embedding = nn.Embedding(num_species, features)
        scale = self._filter_scale(average_neighbours)
        self.messages = nn.ModuleList(
            [Message(features, radial, scale, t == 0) for t in range(layers)]
        )
        self.updates = nn.ModuleList([Update(features, t == layers - 1) for t in range(layers)])

    def _filter_scale(self, average_neighbours: float) -> float:
        """Filters start so that a sum over uniformly spread neighbours has variance 1."""
        x = (torch.arange(200) + 0.5) / 200
        shell = 3.0 * x**2 / 200 * max(average_neighbours, 1.0)
        values = self.basis(x * self.cutoff) * polynomial_envelope(x)[:, None]
        coherent = (shell[:, None] * values).sum(0).square().sum()
        random = (shell[:, None] * values.square()).sum()
        return float((coherent + random).rsqrt())

    def forward(
        self,
        species_index: Tensor,
        initial: Tensor,
        edge_index: Tensor,
        edge_vectors: Tensor,
        edge_gates: Tensor,
    ) -> List[Tensor]:
        """Node features h¹ … hᵀ, each (N, F).

        Parameters
        ----------
        species_index
            (N,) | position of each atom's element in the model's list
        initial
            (N, F) | added to the embedding of the element
        edge_index, edge_vectors
            (2, E), (E, 3) | edges sorted by receiver, shorter than the cutoff | Å
        edge_gates
            (E,) | what is left of each edge, in [0, 1]; a factor of the envelope
        """
        scalars = self.embedding(species_index) + initial
        num_nodes = scalars.shape[0]
        senders, rows, gates = neighbour_rows(
            edge_index, edge_vectors, edge_gates, num_nodes, self.cutoff
        )
        distances = torch.linalg.vector_norm(rows, dim=2)
        radial = self.basis(distances)
        radial = radial * (polynomial_envelope(distances / self.cutoff) * gates)[..., None]
        radial = radial.transpose(1, 2).contiguous()
        unit = (rows / distances[..., None]).transpose(1, 2).contiguous()
        angular = unit[:, :, None] * radial[:, None]
        angular = angular.view(num_nodes, 3 * radial.shape[1], radial.shape[2])
        vectors = torch.zeros(
            num_nodes, 3, scalars.shape[1], dtype=scalars.dtype, device=scalars.device
        )
        features: List[Tensor] = []
        for message, update in zip(self.messages, self.updates):
            scalar_sum, vector_sum = message(scalars, vectors, senders, radial, angular)
            scalars, vectors = update(scalars + scalar_sum, vectors + vector_sum)
            scalars, vectors = saturate(scalars), saturate(vectors)
            features.append(scalars)
        return features
