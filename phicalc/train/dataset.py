"""From the data section of a configuration to graphs in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from phicalc import fields
from phicalc.data.graph import average_neighbours, to_graph
from phicalc.data.read import check_labels, labels_of, read_structures
from phicalc.data.reference import ReferenceFit, fit_reference_energies
from phicalc.data.splits import split
from phicalc.errors import DataError
from phicalc.files import file_sha256
from phicalc.geometric import Data
from phicalc.train.config import Property, TrainConfig

SMALLEST_ENERGY_SCALE = 1e-2
LARGEST_EXCESS = 0.1
"""e, of the sum of charge labels over the total charge: more than rounding of any population."""


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
        Name, sha256 and number of structures of either set; also the frames that were skipped,
        and share and seed of the split where there was one.
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
    train, valid, provenance = read_frames(config)
    elements = sorted({int(z) for atoms in train for z in atoms.numbers})
    foreign = {s for atoms in valid for s, z in _symbols(atoms) if z not in elements}
    if foreign:
        raise DataError(
            f"the validation set holds {', '.join(sorted(foreign))}, absent from the training set"
        )
    cutoff, properties = config.model.cutoff, config.loss.properties
    graphs = graphs_of(train, cutoff, properties, config.data.partial)
    return TrainingData(
        train=graphs,
        valid=graphs_of(valid, cutoff, properties),
        elements=elements,
        reference=_reference(graphs),
        energy_scale=_root_mean_square_force(graphs),
        average_neighbours=max(1.0, average_neighbours(graphs)),
        provenance=provenance,
    )


def read_labelled(
    path: Path,
    properties: Sequence[Property],
    skip: Sequence[int] = (),
    partial: Sequence[Property] = (),
) -> list[Atoms]:
    """Structures of a file after a check that they bear the labels of ``properties``.

    Parameters
    ----------
    skip
        Frames to leave out, counted from 0; they may be as wrong as they like.
    partial
        Properties whose labels some of them, but not all, may lack.

    Raises
    ------
    DataError
        As ``check_labels``; or a frame to skip does not exist; or stress is wanted of structures
        that are not periodic in three directions, or a dipole of periodic ones.
    """
    frames = read_without(path, skip)
    try:
        check_labels(frames, set(properties), partial=set(partial) & set(properties))
    except DataError as error:
        note = f" ({len(set(skip))} skipped frames are not counted)" if skip else ""
        raise DataError(f"{path}{note}: {error}") from None
    if fields.CHARGES in properties:
        _check_sums(frames, path)
    for name in properties:
        undefined = [number for number, atoms in enumerate(frames) if not is_defined(name, atoms)]
        if undefined:
            shown = ", ".join(map(str, undefined[:10])) + (", …" if len(undefined) > 10 else "")
            raise DataError(
                f"{path}: no {name} is defined for the periodicity of frames {shown}; "
                f"train without {name} or leave them out"
            )
    return frames


def read_without(path: Path, skip: Sequence[int]) -> list[Atoms]:
    """Structures of a file without those at the positions ``skip``, counted from 0.

    Raises
    ------
    DataError
        The file cannot be read, or a frame to skip does not exist.
    """
    frames = read_structures(path)
    absent = sorted(set(skip) - set(range(len(frames))))
    if absent:
        raise DataError(f"{path}: expected frames 0 to {len(frames) - 1} to skip, got {absent}")
    return [atoms for number, atoms in enumerate(frames) if number not in set(skip)]


def _check_sums(frames: Sequence[Atoms], path: Path) -> None:
    """Charges that the structures' total charges allow: heads give no others."""
    for number, atoms in enumerate(frames):
        labels = labels_of(atoms, [fields.CHARGES])
        if labels.charges is None:
            continue
        total = float(labels.charges.sum())
        if abs(total - labels.total_charge) > LARGEST_EXCESS:
            raise DataError(
                f"{path}: expected charges that sum to the total charge, got {total:.3g} e for "
                f"{labels.total_charge:g} e in frame {number}; "
                'set info["charge"], or train without charges'
            )


def is_defined(name: Property, atoms: Atoms) -> bool:
    """Whether a property means anything: stress of bulk only, dipole of molecules only."""
    if name == fields.STRESS:
        return bool(atoms.pbc.all())
    return name != fields.DIPOLE or not atoms.pbc.any()


def graphs_of(
    frames: Sequence[Atoms],
    cutoff: float,
    properties: Sequence[Property],
    partial: Sequence[Property] = (),
) -> list[Data]:
    """Graphs with all neighbours within ``cutoff`` (Å) and the labels of ``properties``.

    Labels of ``partial`` properties that a structure lacks are NaN.
    """
    blank = set(partial) & set(properties)
    graphs = []
    for atoms in frames:
        labels = labels_of(atoms, properties).filled(blank, len(atoms))
        graphs.append(to_graph(atoms, cutoff, labels))
    return graphs


def read_frames(config: TrainConfig) -> tuple[list[Atoms], list[Atoms], dict[str, Any]]:
    """Training and validation frames of a configuration, and where they came from."""
    data, properties = config.data, config.loss.properties
    frames = read_labelled(data.train, properties, data.skip_train, data.partial)
    if data.valid is not None:
        train, valid = frames, read_labelled(data.valid, properties, data.skip_valid)
        origin, parted = _origin(data.valid, valid, data.skip_valid), {}
    else:
        assert data.valid_fraction is not None
        held_out = max(1, round(data.valid_fraction * len(frames)))
        if held_out >= len(frames):
            raise DataError(f"{data.train}: {len(frames)} structures are too few to split")
        chosen, rest = split(len(frames), [held_out, len(frames) - held_out], data.seed)
        valid, train = [frames[i] for i in chosen], [frames[i] for i in rest]
        parted = {"split": {"valid_fraction": data.valid_fraction, "seed": data.seed}}
        origin = _origin(data.train, valid, data.skip_train) | parted
    of_training = _origin(data.train, train, data.skip_train) | parted
    return train, valid, {"train": of_training, "valid": origin}


def _origin(path: Path, frames: Sequence[Atoms], skipped: Sequence[int]) -> dict[str, Any]:
    origin = {"name": path.name, "sha256": file_sha256(path), "structures": len(frames)}
    return {**origin, "skipped": sorted(set(skipped))} if skipped else origin


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
    return max(SMALLEST_ENERGY_SCALE, float(forces.square().nanmean().sqrt()))
