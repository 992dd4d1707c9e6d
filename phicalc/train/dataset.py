"""From the data section of a configuration to graphs in memory."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from phicalc import fields
from phicalc.data.graph import average_neighbours, to_graph
from phicalc.data.keys import take_names
from phicalc.data.read import check_labels, is_defined, labels_of, read_structures
from phicalc.data.reference import ReferenceFit, fit_reference_energies, isolated_energies
from phicalc.data.splits import split
from phicalc.errors import DataError
from phicalc.geometric import Data
from phicalc.machine.files import file_sha256
from phicalc.train.config import DataConfig, Property, TrainConfig
from phicalc.train.labels import (
    ignored_labels,
    labelled_structures,
    labels_somewhere,
    require_defined,
)

SMALLEST_ENERGY_SCALE = 1e-2
LARGEST_EXCESS = 0.1
"""e, of the sum of charge labels over the total charge: more than rounding of any population."""


@dataclass(frozen=True)
class Reference:
    """Reference energies, how well they fit, and where they come from, in words.

    Those of the elements ``configured`` are as the configuration asks, in numbers or for isolated
    atoms, whatever an initial checkpoint has.
    """

    fit: ReferenceFit
    source: str
    configured: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """Graphs, and what a new potential is normalised by.

    Attributes
    ----------
    train, valid
        Labelled graphs; labels that a structure lacks are NaN.
    elements
        Atomic numbers in the training set, ascending.
    reference
        Energy per element, and how well it fits; None without energy labels.
    energy_scale
        Root mean square of the training forces in eV/Å (times 1 Å: an energy); 1 without forces.
    average_neighbours
        Mean number of neighbours within the cutoff.
    charge_scale
        Root mean square charge per atom in e of the charged training structures; 1 without any.
    charges
        Total charges of the training structures, as `phicalc.serving.metadata.ChargesSeen`.
    ignored
        By property: labels of the training set that mean nothing for their structure's
        periodicity.
    provenance
        Name, sha256 and number of structures of either set; also the frames that were skipped,
        and share and seed of the split where there was one; what labels and what periodicity they
        had, and the columns that labels were read from.
    """

    train: list[Data]
    valid: list[Data]
    elements: list[int]
    reference: Reference | None
    energy_scale: float
    average_neighbours: float
    charge_scale: float
    charges: dict[str, Any]
    ignored: dict[Property, int]
    provenance: dict[str, Any]


def load_training_data(config: TrainConfig) -> TrainingData:
    """Read, check and convert the structures that a configuration names.

    Raises
    ------
    DataError
        If a file cannot be read, a wanted label is missing in all structures or absurd, a split
        would be empty, the validation set holds an element that the training set lacks, or
        reference energies of isolated atoms are not there.
    """
    train, valid, provenance = read_frames(config)
    elements = sorted({int(z) for atoms in train for z in atoms.numbers})
    foreign = {s for atoms in valid for s, z in _symbols(atoms) if z not in elements}
    if foreign:
        raise DataError(
            f"the validation set holds {', '.join(sorted(foreign))}, absent from the training set"
        )
    cutoff, properties = config.model.cutoff, config.loss.properties
    graphs, held_out = (graphs_of(frames, cutoff, properties) for frames in (train, valid))
    for use, frames, part in (("train", train, graphs), ("valid", valid, held_out)):
        provenance[use] |= {
            "labels": labelled_structures(part, properties),
            "periodicity": _periodicity(frames),
        }
    for name, count in provenance["train"]["labels"].items():
        if count == 0:
            raise DataError(
                f"{config.data.train}: no {name} among the {len(graphs)} structures that the split "
                "leaves to train on; choose another data.seed or valid file"
            )
    charges, charge_scale = _charges(graphs)
    return TrainingData(
        train=graphs,
        valid=held_out,
        elements=elements,
        reference=_reference(train, graphs, elements, config.data),
        energy_scale=_root_mean_square_force(graphs),
        average_neighbours=max(1.0, average_neighbours(graphs)),
        charge_scale=charge_scale,
        charges=charges,
        ignored=ignored_labels(train, properties),
        provenance=provenance,
    )


def read_labelled(
    path: Path,
    properties: Sequence[Property],
    skip: Sequence[int] = (),
    keys: Mapping[str, str] | None = None,
) -> list[Atoms]:
    """Structures of a file after a check that they bear labels of ``properties``.

    Any of them may lack any label, but not all of them the same. A stress of structures that are
    not periodic in three directions, or a dipole of periodic ones, counts as lacking.

    Parameters
    ----------
    skip
        Frames to leave out, counted from 0; they may be as wrong as they like.
    keys
        Names of columns to read labels from (:func:`phicalc.data.keys.take_names`).

    Raises
    ------
    DataError
        As ``check_labels`` and ``take_names``; or a frame to skip does not exist; or no frame has
        a label of a property that is defined for it.
    """
    frames = read_without(path, skip, keys)
    _check(frames, path, properties, skip)
    return frames


def read_validation(
    path: Path, properties: Sequence[Property], skip: Sequence[int], keys: Mapping[str, str]
) -> list[Atoms]:
    """Structures of a validation file, which may lack labels of some properties altogether.

    Raises
    ------
    DataError
        As :func:`read_labelled` of those properties that it has labels of; or it has none.
    """
    frames = read_without(path, skip, keys, all_columns=False)
    try:
        present = labels_somewhere(frames)
    except DataError:  # said below, with all that is wrong
        present = tuple(properties)
    _check(frames, path, [name for name in properties if name in present] or properties, skip)
    return frames


def _check(
    frames: Sequence[Atoms], path: Path, properties: Sequence[Property], skip: Sequence[int]
) -> None:
    try:
        check_labels(frames, set(properties), partial=properties)
        require_defined(frames, properties)
    except DataError as error:
        note = f" ({len(set(skip))} skipped frames are not counted)" if skip else ""
        raise DataError(f"{path}{note}: {error}") from None
    if fields.CHARGES in properties:
        _check_sums(frames, path)


def read_without(
    path: Path,
    skip: Sequence[int],
    keys: Mapping[str, str] | None = None,
    all_columns: bool = True,
) -> list[Atoms]:
    """Structures of a file without those at the positions ``skip``, counted from 0.

    Raises
    ------
    DataError
        The file cannot be read, a frame to skip does not exist, or as ``take_names``.
    """
    frames = read_structures(path)
    absent = sorted(set(skip) - set(range(len(frames))))
    if absent:
        raise DataError(f"{path}: expected frames 0 to {len(frames) - 1} to skip, got {absent}")
    chosen = [atoms for number, atoms in enumerate(frames) if number not in set(skip)]
    try:
        take_names(chosen, keys or {}, all_columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return chosen


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


def graphs_of(frames: Sequence[Atoms], cutoff: float, properties: Sequence[Property]) -> list[Data]:
    """Graphs with all neighbours within ``cutoff`` (Å) and the labels of ``properties``.

    Labels that a structure lacks, or that its periodicity leaves undefined, are NaN.
    """
    graphs = []
    for atoms in frames:
        defined = [name for name in properties if is_defined(name, atoms)]
        labels = labels_of(atoms, defined).filled(properties, len(atoms))
        graphs.append(to_graph(atoms, cutoff, labels))
    return graphs


def read_frames(config: TrainConfig) -> tuple[list[Atoms], list[Atoms], dict[str, Any]]:
    """Training and validation frames of a configuration, and where they came from."""
    data, properties, keys = config.data, config.loss.properties, config.data.keys.given
    frames = read_labelled(data.train, properties, data.skip_train, keys)
    if data.valid is not None:
        train = frames
        valid = read_validation(data.valid, properties, data.skip_valid, keys)
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
    if keys:
        origin, of_training = origin | {"keys": keys}, of_training | {"keys": keys}
    return train, valid, {"train": of_training, "valid": origin}


def _origin(path: Path, frames: Sequence[Atoms], skipped: Sequence[int]) -> dict[str, Any]:
    origin = {"name": path.name, "sha256": file_sha256(path), "structures": len(frames)}
    return {**origin, "skipped": sorted(set(skipped))} if skipped else origin


def _periodicity(frames: Sequence[Atoms]) -> dict[str, int]:
    """Number of structures by the number of their periodic directions."""
    counts = Counter(int(atoms.pbc.sum()) for atoms in frames)
    return {str(directions): counts[directions] for directions in sorted(counts)}


def _symbols(atoms: Atoms) -> set[tuple[str, int]]:
    return set(zip(atoms.symbols, map(int, atoms.numbers), strict=True))


def _reference(
    frames: Sequence[Atoms], graphs: Sequence[Data], elements: Sequence[int], config: DataConfig
) -> Reference | None:
    """Reference energies as configured; None without energy labels.

    Raises
    ------
    DataError
        Isolated atoms are asked for, and an element has no frame of one.
    """
    labelled = [g for g in graphs if fields.ENERGY in g and not bool(g[fields.ENERGY].isnan())]
    if not labelled:
        return None
    wanted = config.reference_energies
    isolated = {} if wanted == "fit" or isinstance(wanted, dict) else isolated_energies(frames)
    lacking = [chemical_symbols[z] for z in elements if z not in isolated]
    if wanted == "isolated" and lacking:
        raise DataError(
            "reference_energies: isolated: expected a training frame of a single neutral atom with "
            f"its energy for each element, got none for {', '.join(lacking)}; add it, or give the "
            "energies by symbol"
        )
    given: dict[int, float] = {}
    source = "least squares"
    if isinstance(wanted, dict):
        given = {atomic_numbers[symbol]: energy for symbol, energy in wanted.items()}
        source = "given"
    elif not lacking:
        given, source = isolated, "isolated atoms"
    species = [graph[fields.SPECIES].numpy() for graph in labelled]
    energies = [float(graph[fields.ENERGY]) for graph in labelled]
    fit = fit_reference_energies(species, energies, given, elements)
    return Reference(fit, source, () if wanted is None else fit.given)


def _root_mean_square_force(graphs: Sequence[Data]) -> float:
    if not all(fields.FORCES in graph for graph in graphs):
        return 1.0
    forces = torch.cat([graph[fields.FORCES] for graph in graphs])
    return max(SMALLEST_ENERGY_SCALE, float(forces.square().nanmean().sqrt()))


def _charges(graphs: Sequence[Data]) -> tuple[dict[str, Any], float]:
    """Total charges of structures for the record, and the RMS of Q/N over the charged ones."""
    charges = [float(graph[fields.TOTAL_CHARGE]) for graph in graphs]
    per_atom = [q / int(g.num_nodes or 1) for q, g in zip(charges, graphs, strict=True)]
    counts = Counter(f"{charge:g}" for charge in charges)
    seen = {
        "structures": dict(sorted(counts.items(), key=lambda item: float(item[0]))),
        "per_atom": [min(per_atom), max(per_atom)],
    }
    charged = [q * q for q in per_atom if q != 0.0]
    return seen, math.sqrt(sum(charged) / len(charged)) if charged else 1.0
