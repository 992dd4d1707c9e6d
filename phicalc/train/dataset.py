"""From the data section of a configuration to graphs in memory."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from phicalc import fields
from phicalc.data.graph import to_graph
from phicalc.data.graph_file import GraphFile, Record, record_of, tensors_of
from phicalc.data.keys import take_names
from phicalc.data.read import (
    Labels,
    check_labels,
    is_defined,
    labels_of,
    read_structures,
    require_file,
)
from phicalc.data.reference import ReferenceFit, fit_reference_energies, isolated_energies
from phicalc.data.splits import split
from phicalc.errors import DataError
from phicalc.geometric import Data
from phicalc.machine.cores import on_all_cores
from phicalc.machine.files import file_sha256
from phicalc.train.config import DataConfig, Property, TrainConfig
from phicalc.train.graph_cache import GraphSource, graphs_from
from phicalc.train.labels import labelled_structures, labels_somewhere, require_defined

ATOMS_WORTH_A_PROCESS = 200_000
"""Their graphs take a core about as long as a process takes to start."""

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


class Labelled(NamedTuple):
    """A structure with the labels that were found on it."""

    atoms: Atoms
    labels: Labels


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
    sources
        Lines on where the graphs come from and how long that took.
    provenance
        Name, sha256 and number of structures of either set; also the frames that were skipped,
        and share and seed of the split where there was one; what labels and what periodicity they
        had, and the columns that labels were read from.
    """

    train: Sequence[Data]
    valid: Sequence[Data]
    elements: list[int]
    reference: Reference | None
    energy_scale: float
    average_neighbours: float
    charge_scale: float
    charges: dict[str, Any]
    ignored: dict[Property, int]
    sources: tuple[str, ...]
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
    train, valid, provenance, sources = read_graphs(config)
    elements = _elements(train)
    foreign = sorted(chemical_symbols[z] for z in set(_elements(valid)) - set(elements))
    if foreign:
        raise DataError(
            f"the validation set holds {', '.join(foreign)}, absent from the training set"
        )
    properties = config.loss.properties
    for use, graphs in (("train", train), ("valid", valid)):
        provenance[use] |= {
            "labels": labelled_structures(graphs, properties),
            "periodicity": _periodicity(graphs),
        }
    for name, count in provenance["train"]["labels"].items():
        if count == 0:
            raise DataError(
                f"{config.data.train}: no {name} among the {len(train)} structures that the split "
                "leaves to train on; choose another data.seed or valid file"
            )
    charges, charge_scale = _charges(train)
    return TrainingData(
        train=train,
        valid=valid,
        elements=elements,
        reference=_reference(train, elements, config.data),
        energy_scale=_root_mean_square_force(train),
        average_neighbours=max(1.0, int(train.edges.sum()) / int(train.sizes.sum())),
        charge_scale=charge_scale,
        charges=charges,
        ignored=_ignored(train, properties),
        sources=sources,
        provenance=provenance,
    )


def read_labelled(
    path: Path,
    properties: Sequence[Property],
    skip: Sequence[int] = (),
    keys: Mapping[str, str] | None = None,
) -> list[Labelled]:
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
    return _checked(read_without(path, skip, keys), path, properties, skip)


def read_validation(
    path: Path, properties: Sequence[Property], skip: Sequence[int], keys: Mapping[str, str]
) -> list[Labelled]:
    """Structures of a validation file, which may lack labels of some properties altogether.

    Raises
    ------
    DataError
        As :func:`read_labelled` of those properties that it has labels of; or it has none.
    """
    frames = read_without(path, skip, keys, all_columns=False)
    try:
        present = labels_somewhere(frames, properties)
    except DataError:  # said below, with all that is wrong
        present = tuple(properties)
    return _checked(frames, path, present or properties, skip)


def _checked(
    frames: Sequence[Atoms], path: Path, properties: Sequence[Property], skip: Sequence[int]
) -> list[Labelled]:
    """The frames with their labels of these properties."""
    try:
        labels = check_labels(frames, set(properties), partial=properties)
        require_defined(frames, labels, properties)
    except DataError as error:
        note = f" ({len(set(skip))} skipped frames are not counted)" if skip else ""
        raise DataError(f"{path}{note}: {error}") from None
    if fields.CHARGES in properties:
        _check_sums(labels, path)
    return [Labelled(*pair) for pair in zip(frames, labels, strict=True)]


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


def _check_sums(found: Sequence[Labels], path: Path) -> None:
    """Charges that the structures' total charges allow: heads give no others."""
    for number, labels in enumerate(found):
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
    defined = [[name for name in properties if is_defined(name, atoms)] for atoms in frames]
    pairs = zip(frames, map(labels_of, frames, defined), strict=True)
    return [labelled_graph(Labelled(*pair), cutoff, properties) for pair in pairs]


def labelled_graph(structure: Labelled, cutoff: float, properties: Sequence[Property]) -> Data:
    """As `graphs_of`, of one structure whose labels of ``properties`` were found already."""
    atoms, labels = structure
    return to_graph(atoms, cutoff, labels.filled(properties, len(atoms)))


def _record(structure: Labelled, cutoff: float, properties: Sequence[Property]) -> Record:
    return record_of(labelled_graph(structure, cutoff, properties))


def read_frames(config: TrainConfig) -> tuple[list[Atoms], list[Atoms]]:
    """Training and validation frames of a configuration."""
    data, properties, keys = config.data, config.loss.properties, config.data.keys.given
    frames = [a for a, _ in read_labelled(data.train, properties, data.skip_train, keys)]
    if data.valid is not None:
        valid_frames = read_validation(data.valid, properties, data.skip_valid, keys)
        return frames, [atoms for atoms, _ in valid_frames]
    train, valid = _parted(len(frames), data)
    return [frames[i] for i in train], [frames[i] for i in valid]


def read_graphs(
    config: TrainConfig,
) -> tuple[GraphFile, GraphFile, dict[str, Any], tuple[str, ...]]:
    """Training and validation graphs, their origin, and a line on each file they come from."""
    data, keys = config.data, config.data.keys.given
    sha256, graphs, said = _graphs_of_file(config, data.train, data.skip_train, read_labelled)
    sources = [said]
    parted: dict[str, Any] = {}
    if data.valid is not None:
        train = graphs
        valid_sha256, valid, said = _graphs_of_file(
            config, data.valid, data.skip_valid, read_validation
        )
        sources.append(said)
        origin = _origin(data.valid, valid_sha256, valid, data.skip_valid)
    else:
        train, valid = map(graphs.only, _parted(len(graphs), data))
        parted = {"split": {"valid_fraction": data.valid_fraction, "seed": data.seed}}
        origin = _origin(data.train, sha256, valid, data.skip_train)
    named = {"keys": keys} if keys else {}
    of_training = _origin(data.train, sha256, train, data.skip_train)
    provenance = {"train": of_training | parted | named, "valid": origin | parted | named}
    return train, valid, provenance, tuple(sources)


def _parted(number: int, data: DataConfig) -> tuple[list[int], list[int]]:
    """Numbers of the structures of one file that train, and that validate."""
    assert data.valid_fraction is not None
    held_out = max(1, round(data.valid_fraction * number))
    if held_out >= number:
        raise DataError(f"{data.train}: {number} structures are too few to split")
    valid, train = split(number, [held_out, number - held_out], data.seed)
    return list(train), list(valid)


def _graphs_of_file(
    config: TrainConfig, path: Path, skip: Sequence[int], read: Callable[..., list[Labelled]]
) -> tuple[str, GraphFile, str]:
    """sha256 of a file of structures, its graphs, and where those come from."""
    properties, keys, cutoff = config.loss.properties, config.data.keys.given, config.model.cutoff
    require_file(path)

    def make(frames: list[Labelled], notes: dict[str, Any]) -> Iterator[Record]:
        notes |= {"ignored": {name: [] for name in properties}, "isolated": []}
        one = partial(_record, cutoff=cutoff, properties=properties)
        atoms = sum(len(structure.atoms) for structure in frames)
        graphs = on_all_cores(one, frames, atoms // ATOMS_WORTH_A_PROCESS)
        for number, (structure, graph) in enumerate(zip(frames, graphs, strict=True)):
            for name in structure.labels.ignored:
                notes["ignored"][name].append(number)
            for z, energy in isolated_energies([structure.atoms]).items():
                notes["isolated"].append([number, z, energy])
            yield graph

    sha256 = file_sha256(path)
    identity = {
        "file": [path.name, sha256],
        "skipped": sorted(set(skip)),
        "read": read.__name__,
        "keys": keys,
        "labels": properties,
        "cutoff": cutoff,
    }
    source = GraphSource(path, identity, lambda: read(path, properties, skip, keys), make)
    graphs, said = graphs_from(source, config.data.cache)
    return sha256, graphs, said


def _origin(
    path: Path, sha256: str, graphs: Sequence[Data], skipped: Sequence[int]
) -> dict[str, Any]:
    origin = {"name": path.name, "sha256": sha256, "structures": len(graphs)}
    return {**origin, "skipped": sorted(set(skipped))} if skipped else origin


def _periodicity(graphs: Sequence[Data]) -> dict[str, int]:
    """Number of structures by the number of their periodic directions."""
    counts = Counter(int(pbc.sum()) for pbc in tensors_of(graphs, fields.PBC))
    return {str(directions): counts[directions] for directions in sorted(counts)}


def _elements(graphs: Sequence[Data]) -> list[int]:
    """Atomic numbers, ascending."""
    found: set[int] = set()
    for species in tensors_of(graphs, fields.SPECIES):
        found.update(species.unique().tolist())
    return sorted(found)


def _ignored(graphs: GraphFile, properties: Sequence[Property]) -> dict[Property, int]:
    """By property: labels that mean nothing for the periodicity of their structure."""
    own = set(graphs.numbers.tolist())
    counts = {name: len(own & set(graphs.notes["ignored"][name])) for name in properties}
    return {name: count for name, count in counts.items() if count > 0}


def _isolated(graphs: GraphFile) -> dict[int, float]:
    """As :func:`phicalc.data.reference.isolated_energies` of the frames of the graphs."""
    own, found = set(graphs.numbers.tolist()), dict[int, float]()
    for number, z, energy in graphs.notes["isolated"]:
        if number in own:
            found[z] = min(energy, found.get(z, math.inf))
    return found


def _reference(graphs: GraphFile, elements: Sequence[int], config: DataConfig) -> Reference | None:
    """Reference energies as configured; None without energy labels.

    Raises
    ------
    DataError
        Isolated atoms are asked for, and an element has no frame of one.
    """
    if fields.ENERGY not in graphs.names:
        return None
    known = [float(energy) for energy in tensors_of(graphs, fields.ENERGY)]
    labelled = [number for number, energy in enumerate(known) if not math.isnan(energy)]
    if not labelled:
        return None
    wanted = config.reference_energies
    isolated = {} if wanted == "fit" or isinstance(wanted, dict) else _isolated(graphs)
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
    species = [graphs.tensor(number, fields.SPECIES).numpy() for number in labelled]
    energies = [known[number] for number in labelled]
    fit = fit_reference_energies(species, energies, given, elements)
    return Reference(fit, source, () if wanted is None else fit.given)


def _root_mean_square_force(graphs: GraphFile) -> float:
    if fields.FORCES not in graphs.names:
        return 1.0
    forces = torch.cat(list(tensors_of(graphs, fields.FORCES)))
    return max(SMALLEST_ENERGY_SCALE, float(forces.square().nanmean().sqrt()))


def _charges(graphs: GraphFile) -> tuple[dict[str, Any], float]:
    """Total charges of structures for the record, and the RMS of Q/N over the charged ones."""
    charges = [float(charge) for charge in tensors_of(graphs, fields.TOTAL_CHARGE)]
    per_atom = [q / atoms for q, atoms in zip(charges, graphs.sizes.tolist(), strict=True)]
    counts = Counter(f"{charge:g}" for charge in charges)
    seen = {
        "structures": dict(sorted(counts.items(), key=lambda item: float(item[0]))),
        "per_atom": [min(per_atom), max(per_atom)],
    }
    charged = [q * q for q in per_atom if q != 0.0]
    return seen, math.sqrt(sum(charged) / len(charged)) if charged else 1.0
