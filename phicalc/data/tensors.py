"""Structures as tensors by the names of `phicalc.fields`, alone or joined.

Without torch-geometric, whose import takes longer than a calculation: training batches with it
(:mod:`phicalc.data.graph`), what serves a model does not.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from phicalc import fields
from phicalc.data.lattice import periodic_cell
from phicalc.data.neighbours import build_neighbours

Graph = dict[str, Tensor]


def structure_tensors(atoms: Atoms, cutoff: float, charge: float) -> Graph:
    """Species, positions, cell, pbc, edges and total charge of one structure; floats are float64.

    Parameters
    ----------
    atoms
        The structure.
    cutoff
        r_c in Å.
    charge
        Total charge in e.

    Raises
    ------
    StructureError
        A structure that has no graph, see `phicalc.checks.structure`.
    """
    neighbours = build_neighbours(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    return {
        fields.SPECIES: torch.tensor(atoms.numbers, dtype=torch.long),
        fields.POSITIONS: float_tensor(atoms.positions),
        fields.CELL: float_tensor(periodic_cell(atoms.cell.array, atoms.pbc)[None]),
        fields.PBC: torch.tensor(atoms.pbc[None], dtype=torch.bool),
        fields.EDGE_INDEX: neighbours.edge_index,
        fields.EDGE_VECTORS: neighbours.edge_vectors,
        fields.TOTAL_CHARGE: float_tensor([charge]),
    }


def joined(graphs: Sequence[Graph]) -> Graph:
    """Several graphs with the same entries as one, block-diagonal; BATCH tells which is whose.

    Without edges, if they have none.
    """
    sizes = [len(graph[fields.SPECIES]) for graph in graphs]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    batch = {
        name: torch.cat([graph[name] for graph in graphs])
        for name in graphs[0]
        if name != fields.EDGE_INDEX
    }
    if fields.EDGE_INDEX in graphs[0]:
        pairs = zip(graphs, starts, strict=True)
        shifted = [graph[fields.EDGE_INDEX] + start for graph, start in pairs]
        batch[fields.EDGE_INDEX] = torch.cat(shifted, dim=1)
    batch[fields.BATCH] = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(sizes))
    return batch


def on_device(graph: Graph, device: torch.device) -> Graph:
    """A graph of the CPU on a device, with what a CPU asks for kept beside it."""
    if device.type == "cpu":
        return graph
    counts = torch.bincount(graph[fields.EDGE_INDEX][1], minlength=len(graph[fields.SPECIES]))
    return {
        **{name: value.to(device) for name, value in graph.items()},
        **cpu_entries(graph[fields.CELL], graph[fields.PBC], counts.sort()[0]),
    }


def cpu_entries(cell: Tensor, pbc: Tensor, counts: Tensor) -> Graph:
    """What a CPU asks for while a device computes: CELL, PBC and edges to each atom, ascending."""
    return {fields.CPU_CELL: cell, fields.CPU_PBC: pbc, fields.NEIGHBOUR_COUNTS: counts}


def grouped(
    sizes: Sequence[int], batch_size: int, alone_above: int | None = None
) -> Iterator[range]:
    """Consecutive structures to be evaluated together, as ranges of their numbers, in order.

    Parameters
    ----------
    sizes
        Atoms of each structure.
    batch_size
        Most structures in a group.
    alone_above
        Structures of more atoms have a group of their own; None: none has.
    """
    start = 0
    for number, atoms in enumerate(sizes):
        alone = alone_above is not None and atoms > alone_above
        if start < number and (alone or number - start >= batch_size):
            yield range(start, number)
            start = number
        if alone:
            yield range(number, number + 1)
            start = number + 1
    if start < len(sizes):
        yield range(start, len(sizes))


def float_tensor(values: object) -> Tensor:
    """In float64."""
    return torch.tensor(np.asarray(values), dtype=torch.float64)
