"""A new potential, set up for its training data."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.model.config import ModelConfig
from phicalc.model.potential import Potential, build_potential
from phicalc.train.dataset import TrainingData
from phicalc.train.losses import atoms_per_structure

CENTRING_STRUCTURES = 64


def new_potential(config: ModelConfig, data: TrainingData) -> Potential:
    """An untrained potential in the scale of its data and right on average.

    Initial weights come from torch's random state.
    """
    potential = build_potential(
        config,
        data.elements,
        reference_energies=data.reference.energies if data.reference else None,
        energy_scale=data.energy_scale,
        average_neighbours=data.average_neighbours,
    )
    potential.contact.closest.copy_(closest_distances(data.train, potential.species_index))
    if data.reference is not None:
        centre_energies(potential, data.train)
    return potential


def closest_distances(graphs: Sequence[Data], species_index: Tensor) -> Tensor:
    """Shortest edge between each pair of elements (S, S) | Å, symmetric; 0 where there is none.

    ``species_index`` (119,) maps atomic numbers to positions in the model's list.
    """
    count = int(species_index.max()) + 1
    closest = torch.full((count * count,), torch.inf, dtype=torch.float64)
    for graph in graphs:
        index = species_index[graph[fields.SPECIES]]
        receiver, sender = index[graph[fields.EDGE_INDEX].flip(0)]
        distances = torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1)
        closest.scatter_reduce_(0, receiver * count + sender, distances, "amin")
    return torch.where(torch.isinf(closest), 0.0, closest).view(count, count)


@torch.no_grad()
def centre_energies(potential: Potential, graphs: Sequence[Data]) -> None:
    """Shift all reference energies alike, so that untrained energies per atom have no offset.

    Core repulsion and heads add an energy that the least-squares references know nothing of;
    left in, it is the first thing training has to unlearn. The shift is the median over up to 64
    structures, for a median is not moved by a few with atoms very close.
    """
    chosen = graphs[:: -(-len(graphs) // CENTRING_STRUCTURES)]
    potential.eval()
    errors = []
    for structure in chosen:
        graph = graph_dict(collate([structure]))
        predicted = potential(graph)[fields.ENERGY]
        errors.append((graph[fields.ENERGY] - predicted) / atoms_per_structure(graph))
    potential.get_buffer("reference_energies").add_(torch.cat(errors).median())
