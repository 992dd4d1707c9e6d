"""From the data section of a configuration to graphs in memory."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch_geometric.data import Data

from phicalc import fields
from phicalc.data.graph import average_neighbours, to_graph
from phicalc.data.read import check_labels, labels_of, read_structures
from phicalc.data.reference import ReferenceFit, fit_reference_energies
from phicalc.data.splits import split
from phicalc.errors import DataError
from phicalc.train.config import Property, TrainConfig

SMALLEST_ENERGY_SCALE = 1e-2


@dataclass(frozen=True)
class TrainingData:
    """Graphs, and what a new potential is normalised by.

    Attributes
    ----------
    train, valid
        Labelled graphs.
    elements
        Atomic numbers in the training set, ascending.
    reference
        Energy per element by least squares, and how well it fits; None without energy labels.
    energy_scale
        Root mean square of the training forces in eV/Å (times 1 Å: an energy); 1 without forces.
    average_neighbours
        Mean number of neighbours within the cutoff.
    provenance
        Name, sha256 and number of structures of either set.
    """

    train: list[Data]
    valid: list[Data]
    elements: list[int]
    reference: ReferenceFit | None
    energy_scale: float
    average_neighbours: float
    provenance: dict[str, Any]


def load_training_data(config: TrainConfig) -> TrainingData:
    """Read, check and convert the structures that a configuration names.

    Raises
    ------
    DataError
        If a file cannot be read, a wanted label is missing or absurd, a split would be empty, or
        the validation set holds an element that the training set lacks.
    """
    train, valid, provenance = _read(config)
    elements = sorted({int(z) for atoms in train for z in atoms.numbers})
    foreign = {s for atoms in valid for s, z in _symbols(atoms) if z not in elements}
    if foreign:
        raise DataError(
            f"the validation set holds {', '.join(sorted(foreign))}, absent from the training set"
        )
    cutoff, properties = config.model.cutoff, config.loss.properties
    graphs = graphs_of(train, cutoff, properties)
    return TrainingData(
        train=graphs,
        valid=graphs_of(valid, cutoff, properties),
        elements=elements,
        reference=_reference(graphs),
        energy_scale=_root_mean_square_force(graphs),
        average_neighbours=max(1.0, average_neighbours(graphs)),
        provenance=provenance,
    )


def read_labelled(path: Path, properties: Sequence[Property]) -> list[Atoms]:
    """Structures of a file after a check that they bear the labels of ``properties``."""
    frames = read_structures(path)
    try:
        check_labels(frames, set(properties))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return frames


def graphs_of(
    frames: Sequence[Atoms], cutoff: float, properties: Sequence[Property]
) -> list[Data]:
    """Graphs with all neighbours within ``cutoff`` (Å) and the labels of ``properties``."""
    return [to_graph(atoms, cutoff, labels_of(atoms).only(properties)) for atoms in frames]


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(config: TrainConfig) -> tuple[list[Atoms], list[Atoms], dict[str, Any]]:
    """Training and validation frames and where they came from."""
    data, properties = config.data, config.loss.properties
    frames = read_labelled(data.train, properties)
    source = data.train
    if data.valid is not None:
        source = data.valid
        train, valid = frames, read_labelled(data.valid, properties)
    else:
        assert data.valid_fraction is not None
        held_out = max(1, round(data.valid_fraction * len(frames)))
        if held_out >= len(frames):
            raise DataError(f"{data.train}: {len(frames)} structures are too few to split")
        chosen, rest = split(len(frames), [held_out, len(frames) - held_out], data.seed)
        valid, train = [frames[i] for i in chosen], [frames[i] for i in rest]
    provenance = {
        name: {"name": path.name, "sha256": file_sha256(path), "structures": len(part)}
        for name, path, part in (("train", data.train, train), ("valid", source, valid))
    }
    return train, valid, provenance


def _symbols(atoms: Atoms) -> set[tuple[str, int]]:
    return set(zip(atoms.symbols, map(int, atoms.numbers), strict=True))


def _reference(graphs: Sequence[Data]) -> ReferenceFit | None:
    if not all(fields.ENERGY in graph for graph in graphs):
        return None
    species = [graph[fields.SPECIES].numpy() for graph in graphs]
    return fit_reference_energies(species, [float(graph[fields.ENERGY]) for graph in graphs])


def _root_mean_square_force(graphs: Sequence[Data]) -> float:
    if not all(fields.FORCES in graph for graph in graphs):
        return 1.0
    forces = torch.cat([graph[fields.FORCES] for graph in graphs])
    return max(SMALLEST_ENERGY_SCALE, float(forces.square().mean().sqrt()))
