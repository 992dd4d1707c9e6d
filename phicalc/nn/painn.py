"""PaiNN: equivariant message passing with scalar and vector features (arXiv 2102.03150).

The filters of PaiNN are linear in the radial basis, so the sum over neighbours is taken in the
basis first, A_i[k, f] = Σ_j R_k(r_ij) x_j[f], as one batched matrix product over padded
neighbour rows, and the filter acts once per atom. That never forms a tensor of edges × 3F.
In the first step atoms of one kind are alike, and the sum over neighbours of R_k alone, kind by
kind, says all.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from phicalc.nn.backbone import Backbone
from phicalc.nn.radial import BesselBasis, starting_scale
from phicalc.nn.rows import (
    BLOCK,
    SMALL_BLOCK,
    Rows,
    block_size,
    joined,
    neighbour_rows,
    one_hot,
    radial_functions,
    sender_blocks,
    value_blocks,
)
from phicalc.nn.saturation import saturate


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
        outputs = 2 if first else 3
        self.senders = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, outputs * features)
        )
        self.filters = nn.Parameter(torch.randn(radial, outputs * features) * filter_scale)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        senders: List[Tensor],
        radial: List[Tensor],
        angular: List[Tensor],
    ) -> Tuple[Tensor, Tensor]:
        """Sum of the messages to every atom: scalars (N, F) and vectors (N, 3, F).

        Parameters
        ----------
        scalars, vectors
            (N, F), (N, 3, F)
        senders, radial, angular
            (n·M,), (n, M, K), (n, M, 3K) of each block | its padded neighbour rows: R_k(r) and
            R_k(r)·r̂, envelope included
        """
        f = self.features
        parts = self.senders(scalars).split(f, 1)
        filters = self.filters.split(f, 1)
        carried, weights = parts[0], filters[0]
        if not self.first:
            moved = (vectors * parts[2][:, None]).view(scalars.shape[0], 3 * f)
            carried = torch.cat([carried, moved], 1)
            weights = torch.cat([weights, filters[2], filters[2], filters[2]], 1)
        sums: List[Tensor] = []
        directed: List[Tensor] = []
        for rows, r, a in zip(senders, radial, angular):
            number, width, basis = r.shape
            near = carried.index_select(0, rows).view(number, width, carried.shape[1])
            sums.append((torch.bmm(r.transpose(1, 2), near) * weights).sum(1))
            near = parts[1].index_select(0, rows).view(number, width, f)
            along = torch.bmm(a.transpose(1, 2), near).view(number, 3, basis, f)
            directed.append((along * filters[1]).sum(2))
        vector_sum = joined(directed)
        if self.first:
            return joined(sums), vector_sum
        scalar_sum, moved = joined(sums).split([f, 3 * f], 1)
        return scalar_sum, vector_sum + moved.view_as(vector_sum)

    def of_kinds(
        self,
        scalars: Tensor,
        kinds: Tensor,
        senders: List[Tensor],
        radial: List[Tensor],
        angular: List[Tensor],
    ) -> Tuple[Tensor, Tensor]:
        """The first sum where atoms are of a few kinds: scalars (T, F) of each, kinds (N,)."""
        f = self.features
        count = scalars.shape[0]
        one_of = one_hot(kinds, scalars)
        products = self.filters[:, None] * self.senders(scalars)
        weights = products.view(-1, 2 * f).split(f, 1)
        sums: List[Tensor] = []
        directed: List[Tensor] = []
        for rows, r, a in zip(senders, radial, angular):
            number, width, basis = r.shape
            near = one_of.index_select(0, rows).view(number, width, count)
            sums.append(torch.bmm(r.transpose(1, 2), near).view(number, basis * count))
            directed.append(torch.bmm(a.transpose(1, 2), near).view(number, 3, basis * count))
        return joined(sums) @ weights[0], joined(directed) @ weights[1]


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
        u, v = self.mix(vectors).split(f, 2)
        norm = torch.sqrt(1.0 + (v * v).sum(1)) - 1.0
        gates = self.gates(torch.cat([scalars, norm], 1)).split(f, 1)
        scalars = scalars + gates[0] + gates[1] * (u * v).sum(1)
        if not self.last:
            vectors = vectors + gates[2][:, None] * u
        return scalars, vectors


class PaiNN(Backbone):
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
        self.block, self.small_block = BLOCK, SMALL_BLOCK
        self.basis = BesselBasis(radial, cutoff)
        self.embedding = nn.Embedding(num_species, features)
        scale = starting_scale(self.basis, average_neighbours)
        self.messages = nn.ModuleList(
            [Message(features, radial, scale, t == 0) for t in range(layers)]
        )
        self.updates = nn.ModuleList([Update(features, t == layers - 1) for t in range(layers)])

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
        """Node features h¹ … hᵀ, each (N, F); arguments as of every `Backbone`."""
        alike = self.embedding(species_index) + initial
        few = kinds is not None and 4 * alike.shape[0] <= alike.shape[1]
        num_nodes = alike.shape[0] if kinds is None else kinds.shape[0]
        block = block_size(num_nodes, edge_vectors, self.block, self.small_block)
        rows = neighbour_rows(
            edge_index, edge_vectors, edge_gates, num_nodes, self.cutoff, block, counts
        )
        kind = rows.order if kinds is None else kinds.index_select(0, rows.order)
        scalars = alike.index_select(0, kind)
        vectors = torch.zeros(
            num_nodes, 3, scalars.shape[1], dtype=scalars.dtype, device=scalars.device
        )
        senders, radial, angular = self.blocks(rows)
        features: List[Tensor] = []
        for message, update in zip(self.messages, self.updates):
            if few and len(features) == 0:
                sums = message.of_kinds(  # type: ignore[operator]
                    alike, kind, senders, radial, angular
                )
            else:
                sums = message(scalars, vectors, senders, radial, angular)
            scalars, vectors = update(scalars + sums[0], vectors + sums[1])
            scalars, vectors = saturate(scalars), saturate(vectors)
            features.append(scalars.index_select(0, rows.rank))
        return features

    def blocks(self, rows: Rows) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
        """Senders (n·M,), R_k(r) (n, M, K) and R_k(r)·r̂ (n, M, 3K) of each block of rows."""
        radial, directions = radial_functions(rows, self.basis.count, self.cutoff)
        angular = (directions[:, :, None] * radial[:, None]).flatten(1)
        return sender_blocks(rows), value_blocks(rows, radial), value_blocks(rows, angular)
