"""A new potential, set up for its training data."""

from collections.abc import Sequence
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.errors import ConfigError
from phicalc.geometric import Data
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.config import ModelConfig
from phicalc.model.potential import Potential
from phicalc.train.dataset import TrainingData
from phicalc.train.losses import atoms_per_structure

CENTRING_STRUCTURES = 64


def new_potential(
    config: ModelConfig, data: TrainingData, initial: Path | None = None
) -> Potential:
    """A potential to be trained, in the scale of its data and right on average.

    Parameters
    ----------
    initial
        Checkpoint to take weights from. What it lacks, a new head for one, and all without it,
        comes from torch's random state.

    Raises
    ------
    ConfigError
        The checkpoint is of other elements, or shares no weights with this model.
    ModelFileError
        It cannot be read.
    """
    potential = Potential(
        config,
        data.elements,
        reference_energies=data.reference.energies if data.reference else None,
        energy_scale=data.energy_scale,
        average_neighbours=data.average_neighbours,
    )
    if initial is not None:
        take_weights(potential, initial)
    potential.contact.closest.copy_(closest_distances(data.train, potential.species_index))
    if data.reference is not None:
        centre_energies(potential, data.train)
    return potential


def take_weights(potential: Potential, path: Path) -> None:
    """Copy all weights that have the same name and shape in a checkpoint."""
    checkpoint = load_checkpoint(path, potential.config.dtype)
    if checkpoint.elements != potential.elements:
        expected, found = (
            " ".join(chemical_symbols[z] for z in numbers)
            for numbers in (potential.elements, checkpoint.elements)
        )
        raise ConfigError(f"initial: expected a checkpoint for {expected}, got one for {found}")
    own, given = potential.state_dict(), checkpoint.potential.state_dict()
    shared = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not any(name.startswith("backbone.") for name in shared):
        raise ConfigError(
            f"initial: {path} is of another network; expected {potential.config.backbone}"
        )
    potential.load_state_dict({**own, **shared})


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
