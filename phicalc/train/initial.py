"""A new potential, set up for its training data."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from phicalc import fields
from phicalc.data.graph_file import tensors_of
from phicalc.geometric import Data
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.config import ModelConfig
from phicalc.model.contact import BEGIN
from phicalc.model.potential import Potential
from phicalc.train.dataset import TrainingData
from phicalc.train.labels import labelled
from phicalc.train.transfer import (
    charges_as_in,
    deviations,
    merge_closest,
    refit_reference_energies,
    take_weights,
)

CENTRING_STRUCTURES, CENTRING_ATOMS = 64, 4000


def new_potential(
    config: ModelConfig,
    data: TrainingData,
    initial: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Potential:
    """A potential to be trained, in the scale of its data and right on average.

    Parameters
    ----------
    initial
        Checkpoint to take weights from. What it lacks, a new head for one, and all without it,
        comes from torch's random state.
    say
        Takes a line on each thing that was done with the checkpoint.

    Raises
    ------
    ConfigError
        The checkpoint shares no weights with this model.
    ModelFileError
        It cannot be read.
    """
    checkpoint = None if initial is None else load_checkpoint(initial, config.dtype)
    if checkpoint is not None:
        config = charges_as_in(config, checkpoint)
    per_atom = config.charge_embedding == "per-atom"
    potential = Potential(
        config,
        data.elements,
        reference_energies=data.reference.fit.energies if data.reference else None,
        energy_scale=data.energy_scale,
        average_neighbours=data.average_neighbours,
        charge_scale=data.charge_scale if per_atom else 1.0,
    )
    closest = BEGIN * closest_distances(data.train, potential.species_index)
    if checkpoint is None:
        potential.contact.closest.copy_(closest)
        if data.reference is not None:
            centre_energies(potential, data.train, move_readout=bool(data.reference.fit.given))
        return potential
    potential.eval()
    for line in take_weights(potential, checkpoint, str(initial)):
        say(line)
    merge_closest(potential, closest)
    if data.reference is not None:
        given = {z: data.reference.fit.energies[z] for z in data.reference.configured}
        joined = [z for z in potential.elements if z not in checkpoint.elements]
        for line in refit_reference_energies(potential, data.train, joined, given):
            say(line)
        if given:
            centre_energies(potential, data.train, move_readout=True)
    return potential


def closest_distances(graphs: Sequence[Data], species_index: Tensor) -> Tensor:
    """Shortest edge between each pair of elements (S, S) | Å, symmetric; 0 where there is none.

    ``species_index`` (119,) maps atomic numbers to positions in the model's list.
    """
    count = int(species_index.max()) + 1
    closest = torch.full((count * count,), torch.inf, dtype=torch.float64)
    names = (fields.SPECIES, fields.EDGE_INDEX, fields.EDGE_VECTORS)
    for species, edges, vectors in zip(*(tensors_of(graphs, n) for n in names), strict=True):
        receiver, sender = species_index[species][edges.flip(0)]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        closest.scatter_reduce_(0, receiver * count + sender, distances, "amin")
    return torch.where(torch.isinf(closest), 0.0, closest).view(count, count)


@torch.no_grad()
def centre_energies(
    potential: Potential, graphs: Sequence[Data], move_readout: bool = False
) -> None:
    """Shift all energies per atom alike, so that untrained ones have no offset.

    Core repulsion and heads add an energy that the least-squares references know nothing of;
    left in, it is the first thing training has to unlearn. The shift is the median over up to 64
    structures, fewer of large ones, for a median is not moved by a few with atoms very close.

    Parameters
    ----------
    graphs
        Structures, of which those without an energy do not count.
    move_readout
        Shift the constant of the readout in place of the reference energies, which are given.
    """
    known = [number for number, one in enumerate(labelled(graphs, fields.ENERGY)) if one]
    sizes_of_all = [len(species) for species in tensors_of(graphs, fields.SPECIES)]
    largest = max(sizes_of_all[number] for number in known)
    most = min(CENTRING_STRUCTURES, max(8, CENTRING_ATOMS // largest))
    chosen = known[:: -(-len(known) // most)]
    sizes = [sizes_of_all[number] for number in chosen]
    off = deviations(potential, [graphs[number] for number in chosen])
    shift = torch.tensor(off, dtype=torch.float64).div(torch.tensor(sizes)).median()
    if move_readout:
        potential.get_parameter("readout.2.bias").add_(shift / potential.energy_scale)
    else:
        potential.get_buffer("reference_energies").add_(shift)
