"""Many-body message passing on the density of neighbours, as of the atomic cluster expansion.

The density around atom i in channel f,

    A_i[lm, f] = Σ_j Σ_k W_l[k, f] R_k(r_ij) Y_lm(r̂_ij) x_j[f],   l ≤ 2,

is a sum over pairs; products of the densities of one atom know three, four and five atoms at a
time at no more cost over the edges (10.1103/PhysRevB.99.014104). The sum is taken in the radial
basis first, over padded neighbour rows (``phicalc.nn.rows``), and the filters W act once per atom.
Senders of later steps carry vectors v_j besides, which add, each with filters of its own,

    Σ_j R(r) r̂·v_j to l = 0,   Σ_j R(r) v_j to l = 1,   Σ_j R(r) (r̂v_jᵀ + v_jr̂ᵀ)/2 to l = 2.

What is made of the densities is in ``phicalc.nn.products``.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from phicalc.nn.backbone import Backbone
from phicalc.nn.products import Products, components, quadrupoles
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


class FirstDensity(nn.Module):
    """Densities of senders that carry scalars alone.

    Parameters
    ----------
    features, radial
        widths F and K
    scale
        standard deviation of the filters' start
    """

    def __init__(self, features: int, radial: int, scale: float) -> None:
        super().__init__()
        self.features = features
        self.senders = nn.Linear(features, features)
        self.filters = nn.Parameter(torch.randn(3, radial, features) * scale)

    def forward(
        self, scalars: Tensor, senders: List[Tensor], low: List[Tensor], high: List[Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Densities of l = 0, 1 and 2: (N, F), (N, 3, F), (N, 5, F).

        Parameters
        ----------
        scalars
            (N, F) | features h of the atoms
        senders, low, high
            (n·M,), (n, M, 4K), (n, M, 5K) of each block | its padded neighbour rows: R_k(r) times
            1 and r̂, and times the five components of l = 2
        """
        carried = self.senders(scalars)
        f = self.features
        w = self.filters
        of_low = torch.stack([w[0], w[1], w[1], w[1]])
        sums: List[Tensor] = []
        tensors: List[Tensor] = []
        for rows, a, b in zip(senders, low, high):
            number, width = a.shape[:2]
            near = carried.index_select(0, rows).view(number, width, f)
            found = torch.bmm(a.transpose(1, 2), near).view(number, 4, -1, f)
            sums.append((found * of_low).sum(2))
            found = torch.bmm(b.transpose(1, 2), near).view(number, 5, -1, f)
            tensors.append((found * w[2]).sum(2))
        together = joined(sums)
        return together[:, 0], together[:, 1:].contiguous(), joined(tensors)

    def of_kinds(
        self,
        scalars: Tensor,
        kinds: Tensor,
        senders: List[Tensor],
        low: List[Tensor],
        high: List[Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The same where atoms are of a few kinds: scalars (T, F) of each, kinds (N,)."""
        one_of = one_hot(kinds, scalars)
        count = scalars.shape[0]
        weights = (self.filters[:, :, None] * self.senders(scalars)).flatten(1, 2)
        sums: List[Tensor] = []
        tensors: List[Tensor] = []
        for rows, a, b in zip(senders, low, high):
            number, width = a.shape[:2]
            near = one_of.index_select(0, rows).view(number, width, count)
            sums.append(torch.bmm(a.transpose(1, 2), near).view(number, 4, -1))
            tensors.append(torch.bmm(b.transpose(1, 2), near).view(number, 5, -1))
        together = joined(sums)
        return (
            together[:, 0] @ weights[0],
            # one product for all, as of the others, whether or not weights are being trained
            together[:, 1:].contiguous() @ weights[1],
            joined(tensors) @ weights[2],
        )


class Density(nn.Module):
    """Densities of senders that carry scalars and vectors; parameters as of `FirstDensity`."""

    def __init__(self, features: int, radial: int, scale: float) -> None:
        super().__init__()
        self.features = features
        self.senders = nn.Linear(features, features)
        self.filters = nn.Parameter(torch.randn(6, radial, features) * scale)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        senders: List[Tensor],
        low: List[Tensor],
        high: List[Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """As :meth:`FirstDensity.forward`, of vectors (N, 3, F) besides."""
        f = self.features
        x = self.senders(scalars)
        carried = torch.cat([x, vectors.flatten(1)], 1)
        w = self.filters
        # of R_k and R_k r̂, times the scalar and the three components of the vectors
        radial = torch.stack([w[0], w[3], w[3], w[3]], 1)
        directed = torch.stack([w[1], w[4], w[4], w[4]], 1)
        of_low = torch.stack([radial, directed, directed, directed])
        sums: List[Tensor] = []
        inner: List[Tensor] = []
        tensors: List[Tensor] = []
        for rows, a, b in zip(senders, low, high):
            number, width = a.shape[:2]
            near = carried.index_select(0, rows).view(number, width, 4 * f)
            found = torch.bmm(a.transpose(1, 2), near).view(number, 4, -1, 4, f)
            along = found[:, 1, :, 1] + found[:, 2, :, 2] + found[:, 3, :, 3]
            sums.append((found * of_low).sum(2))
            inner.append((along * w[5]).sum(1))
            near = x.index_select(0, rows).view(number, width, f)
            found = torch.bmm(b.transpose(1, 2), near).view(number, 5, -1, f)
            tensors.append((found * w[2]).sum(2))
        together = joined(sums)
        return (
            together[:, 0, 0] + joined(inner),
            together[:, 1:, 0] + together[:, 0, 1:],
            joined(tensors) + components(together[:, 1:, 1:]),
        )


class DensityNetwork(Backbone):
    """Scalar node features of T message steps, each with products of body order up to 5.

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
        self.radial = radial
        self.block, self.small_block = BLOCK, SMALL_BLOCK
        self.embedding = nn.Embedding(num_species, features)
        scale = starting_scale(BesselBasis(radial, cutoff), average_neighbours)
        self.first_density = FirstDensity(features, radial, scale)
        self.first_products = Products(features, num_species, layers == 1)
        later = range(1, layers)
        self.densities = nn.ModuleList([Density(features, radial, scale) for _ in later])
        self.products = nn.ModuleList(
            [Products(features, num_species, t == layers - 1) for t in later]
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
        """Node features h¹ … hᵀ, each (N, F); arguments as of every `Backbone`."""
        alike = self.embedding(species_index) + initial
        num_nodes = alike.shape[0] if kinds is None else kinds.shape[0]
        block = block_size(num_nodes, edge_vectors, self.block, self.small_block)
        rows = neighbour_rows(
            edge_index, edge_vectors, edge_gates, num_nodes, self.cutoff, block, counts
        )
        kind = rows.order if kinds is None else kinds.index_select(0, rows.order)
        species = species_index.index_select(0, kind)
        scalars = alike.index_select(0, kind)
        senders, low, high = self.blocks(rows)
        if kinds is not None and 4 * alike.shape[0] <= alike.shape[1]:
            density = self.first_density.of_kinds(alike, kind, senders, low, high)
        else:
            density = self.first_density(scalars, senders, low, high)
        vectors = torch.zeros_like(density[1])
        scalars, vectors = self.first_products(scalars, vectors, density, species)
        features = [scalars.index_select(0, rows.rank)]
        for step, products in zip(self.densities, self.products):
            density = step(scalars, vectors, senders, low, high)
            scalars, vectors = products(scalars, vectors, density, species)
            features.append(scalars.index_select(0, rows.rank))
        return features

    def blocks(self, rows: Rows) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
        """Senders (n·M,), R_k(r) times 1 and r̂ (n, M, 4K), and times l = 2 (n, M, 5K), by block."""
        radial, directions = radial_functions(rows, self.radial, self.cutoff)
        angular = (directions[:, :, None] * radial[:, None]).flatten(1)
        low = torch.cat([radial, angular], 1)
        high = (quadrupoles(directions)[:, :, None] * radial[:, None]).flatten(1)
        return sender_blocks(rows), value_blocks(rows, low), value_blocks(rows, high)
