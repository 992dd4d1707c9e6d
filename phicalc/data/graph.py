"""Structures as graphs: the tensors of `phicalc.fields`, alone or batched."""

from collections.abc import Sequence

import torch
from ase import Atoms
from torch import Tensor

from phicalc import fields
from phicalc.data.read import Labels, total_charge_of
from phicalc.data.tensors import Graph, float_tensor, structure_tensors
from phicalc.errors import DataError
from phicalc.geometric import Batch, Data


def to_graph(atoms: Atoms, cutoff: float, labels: Labels | None = None) -> Data:
    """Graph of one structure.

    Parameters
    ----------
    atoms
        The structure; its total charge is the labels', else `info["charge"]`, else 0.
    cutoff
        r_c in Å.
    labels
        Attached under the names of the outputs, where present.

    Returns
    -------
    Data with species, positions, cell (1, 3, 3), pbc (1, 3), edge_index, edge_vectors,
    total_charge (1,) and, of the labels, energy (1,), forces (N, 3), stress (1, 3, 3),
    charges (N,), dipole (1, 3); all floats are float64.

    Raises
    ------
    StructureError
        A structure that has no graph, see `phicalc.checks.structure`.
    """
    charge = total_charge_of(atoms) if labels is None else labels.total_charge
    tensors = structure_tensors(atoms, cutoff, charge)
    if labels is not None:
        tensors |= label_tensors(labels)
    return Data.from_dict({**tensors, "num_nodes": len(atoms)})


def collate(graphs: Sequence[Data]) -> Batch:
    """Several graphs as one, block-diagonal; `batch` tells the structure of each atom.

    Raises
    ------
    DataError
        No graphs, or graphs that carry different labels.
    """
    if not graphs:
        raise DataError("expected at least one graph, got none")
    names = set(graphs[0].keys())
    for number, graph in enumerate(graphs):
        differing = names ^ set(graph.keys())
        if differing:
            raise DataError(
                f"expected the same labels in every graph, got {', '.join(sorted(differing))} "
                f"in only one of graphs 0 and {number}; leave it out with Labels.only"
            )
    return Batch.from_data_list(list(graphs))


def graph_dict(batch: Data | Batch) -> Graph:
    """The tensors of one graph or of a batch by name, `batch` among them."""
    tensors = {
        name: value
        for name, value in batch.to_dict().items()
        if isinstance(value, Tensor) and name != "ptr"
    }
    if fields.BATCH not in tensors:
        tensors[fields.BATCH] = torch.zeros(int(batch.num_nodes or 0), dtype=torch.long)
    return tensors


def average_neighbours(graphs: Sequence[Data]) -> float:
    """Mean number of neighbours of an atom, over all atoms of all graphs.

    Raises
    ------
    DataError
        No graphs.
    """
    atoms = sum(int(graph.num_nodes or 0) for graph in graphs)
    if atoms == 0:
        raise DataError("expected at least one graph with atoms, got none")
    return sum(int(graph[fields.EDGE_INDEX].shape[1]) for graph in graphs) / atoms


def label_tensors(labels: Labels) -> Graph:
    """Labels with the leading structure dimension that batching concatenates along."""
    tensors = {}
    for name in filter(labels.present.__contains__, fields.LABELS):  # in one order everywhere
        value = getattr(labels, name)
        tensors[name] = float_tensor(value if fields.PROPERTY[name].per == "atom" else [value])
    return tensors
