"""Neighbours as padded rows: the sum over them in the radial basis is a batched matrix product.

What is linear in radial functions, A_i[k, f] = Σ_j R_k(r_ij) x_j[f], becomes one product per block
of atoms with about as many neighbours, (n, K, M) by (n, M, F), with M the widest of the block's
rows. That never forms a tensor of edges × K × F.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from phicalc.envelope import polynomial_envelope
from phicalc.nn.radial import bessel_basis

BLOCK: int = 4096
"""Atoms whose neighbours are gathered at a time, so that no tensor outgrows what is kept for reuse
between steps (:mod:`phicalc.machine.allocator`)."""

SMALL_BLOCK: int = 64
"""A CPU takes a quarter of the atoms at a time, but no fewer than this: rows of a block are as wide
as its widest, and a smaller block is nearer to the caches. A GPU would rather launch less."""


class Rows(NamedTuple):
    """Edges as padded rows, one per atom, in blocks of atoms with about as many neighbours.

    Rows are as wide as the widest of their block. Padding has gate 0 and points at row 0 from
    exactly the cutoff, where every radial function and its slope vanish.

    Attributes
    ----------
    order, rank
        (N,), (N,) int64 | the atom of each row and the row of each atom
    atoms, widths
        of each block: its number of atoms and the width of its rows
    senders, vectors, gates
        (P,) int64, (P, 3), (P,) | the places of all rows, one after another; senders as rows
    """

    order: Tensor
    rank: Tensor
    atoms: List[int]
    widths: List[int]
    senders: Tensor
    vectors: Tensor
    gates: Tensor


def neighbour_rows(
    edge_index: Tensor,
    edge_vectors: Tensor,
    edge_gates: Tensor,
    num_nodes: int,
    cutoff: float,
    block: int,
    known: Optional[Tensor] = None,
) -> Rows:
    """Edges (2, E) sorted by receiver, with vectors (E, 3) and gates (E,), as padded rows.

    The numbers of neighbours (N,), ascending, are those known on the CPU, or else brought there.
    """
    receivers = edge_index[1].contiguous()
    device = receivers.device
    starts = torch.searchsorted(receivers, torch.arange(num_nodes + 1, device=device))
    counts = starts[1:] - starts[:-1]
    ascending, order = torch.sort(counts, stable=True)
    rank = torch.empty_like(order).index_copy(0, order, torch.arange(num_nodes, device=device))
    atoms = [min(block, num_nodes - start) for start in range(0, num_nodes, block)]
    last = torch.cumsum(torch.tensor(atoms, device=torch.device("cpu")), 0) - 1
    widths: List[int] = (ascending if known is None else known).cpu().index_select(0, last).tolist()
    places = 0
    of_blocks: List[Tensor] = []
    for number, width in zip(atoms, widths):
        of_blocks.append(torch.arange(number, device=device) * width + places)
        places += number * width
    shift = joined(of_blocks).index_select(0, rank) - starts[:-1]
    slot = torch.arange(receivers.shape[0], device=device) + shift.index_select(0, receivers)
    senders = torch.zeros(places, dtype=torch.int64, device=device)
    senders = senders.index_copy(0, slot, rank.index_select(0, edge_index[0]))
    vectors = torch.zeros(places, 3, dtype=edge_vectors.dtype, device=device)
    vectors[:, 0].fill_(cutoff)  # assigned, TorchScript would round it to the default dtype
    vectors = vectors.index_copy(0, slot, edge_vectors)
    gates = torch.zeros(places, dtype=edge_gates.dtype, device=device)
    gates = gates.index_copy(0, slot, edge_gates)
    return Rows(order, rank, atoms, widths, senders, vectors, gates)


def block_size(num_nodes: int, edge_vectors: Tensor, largest: int, smallest: int) -> int:
    """Atoms of a block where the edges are: a quarter of all on a CPU, or as many as allowed."""
    if edge_vectors.device.type != "cpu":
        return largest
    return min(largest, max(smallest, (num_nodes + 3) // 4))


def radial_functions(rows: Rows, count: int, cutoff: float) -> Tuple[Tensor, Tensor]:
    """R_k(r) (P, K) of all places, Bessel functions under envelope and gate, and r̂ (P, 3)."""
    distances = torch.linalg.vector_norm(rows.vectors, dim=1, keepdim=True)
    envelope = polynomial_envelope(distances / cutoff) * rows.gates[:, None]
    radial = bessel_basis(distances.squeeze(1), count, cutoff) * envelope
    return radial, rows.vectors / distances


def value_blocks(rows: Rows, values: Tensor) -> List[Tensor]:
    """Values (P, C) of all places as (n, M, C) of each block."""
    places = [number * width for number, width in zip(rows.atoms, rows.widths)]
    blocks: List[Tensor] = []
    for part, number, width in zip(values.split(places), rows.atoms, rows.widths):
        blocks.append(part.view(number, width, values.shape[1]))
    return blocks


def sender_blocks(rows: Rows) -> List[Tensor]:
    """Senders (n·M,) of each block."""
    return list(rows.senders.split([n * width for n, width in zip(rows.atoms, rows.widths)]))


def one_hot(kinds: Tensor, alike: Tensor) -> Tensor:
    """(N, T), 1 at the kind of each atom (N,), in the dtype of what the kinds have (T, F)."""
    count = alike.shape[0]
    return torch.eye(count, dtype=alike.dtype, device=alike.device).index_select(0, kinds)


def joined(blocks: List[Tensor]) -> Tensor:
    """One after another; no copy of a single one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
