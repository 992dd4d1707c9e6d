"""What a backbone is: one file in this room, written to this signature."""

from typing import List, Optional

from torch import Tensor, nn


class Backbone(nn.Module):
    """Base of all message-passing networks: features of the atoms, which know nothing of charges.

    They are invariant under rotation, reflection and the order of atoms and edges, twice
    differentiable in the edge vectors, and lose an edge smoothly at the cutoff and as its gate
    closes. A batch is one graph without edges between its structures.
    """

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
        """Node features h¹ … hᵀ after each message step, T tensors (N, F).

        Parameters
        ----------
        species_index
            (N,) int64 | place of each atom's element in the model's list; with kinds (T,), of each
            kind
        initial
            (N, F) | added to the embedding of the element; of the model's dtype, as what follows;
            with kinds (T, F)
        edge_index
            (2, E) int64 | sender j, receiver i, sorted by receiver; E = 0 included
        edge_vectors
            (E, 3) | Å | r_j + S·cell − r_i
        edge_gates
            (E,) | in [0, 1], a factor of the envelope
        kinds
            (N,) int64 | the kind of each atom, 0 … T − 1, where atoms of one kind start alike
        counts
            (N,) int64 | edges to each atom, ascending, on the CPU: known there, nobody has to wait
            for a GPU to count them; without them they are counted
        """
        raise NotImplementedError
