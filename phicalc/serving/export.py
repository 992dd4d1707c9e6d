"""From a checkpoint, or an older model file, to a model file seen to give the same numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from pydantic import ValidationError
from torch import Tensor

from phicalc import fields
from phicalc.checks.conditions import total_charge
from phicalc.checks.settings import mistake
from phicalc.data.tensors import Graph, joined, structure_tensors
from phicalc.errors import ConfigError, ConvergenceError, ModelFileError
from phicalc.machine.archive import holds_program, read_whole, sound_parts
from phicalc.machine.files import file_sha256, write_bytes
from phicalc.machine.modes import own_modes
from phicalc.model.checkpoint import Checkpoint, load_checkpoint, rebuild
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.capabilities import combined
from phicalc.serving.eager import EagerModel
from phicalc.serving.evaluation import Model
from phicalc.serving.metadata import ModelMetadata, Provenance
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes

TOLERANCES = {"float32": 1e-5, "float64": 1e-9}
"""Largest deviation of the file from the network, relative to the largest value of each output."""

NOT_COMPARED = (
    fields.SOLVER_ITERATIONS,
    fields.SOLVER_RESIDUAL,
    fields.CHARGE_ITERATIONS,
    fields.CHARGE_RESIDUAL,
)
"""What is reported of a solve, whose last digits are rounding."""


@own_modes()
def export(
    source_path: str | Path,
    out_path: str | Path,
    *,
    dtype: str | None = None,
    description: str | None = None,
    licence: str | None = None,
    data_licence: str | None = None,
    structures: Sequence[Atoms] | None = None,
) -> ModelMetadata:
    """Write the model file of a checkpoint, after comparing it with the network it came from.

    A model file is written anew, with its weights, provenance and texts: as this phicalc writes
    it, for devices that an older one did not know.

    Parameters
    ----------
    source_path, out_path
        Checkpoint or model file; an existing file at ``out_path`` is replaced, on failure it is
        left as it was.
    dtype
        ``"float32"`` or ``"float64"`` instead of the source's own, e.g. float64 for NVE runs.
    description
        What the model may and may not be used for, one or two sentences; None: as a model file
        says that is written anew.
    licence, data_licence
        Of the weights; of the training data, with its attribution.
    structures
        To compare on; by default random ones of the model's elements.

    Raises
    ------
    ModelFileError
        The source cannot be read, or the numbers of the file differ.
    OutputError
        The file cannot be written.
    """
    source = _source(Path(source_path), dtype)
    module = Differentiated(source.potential).eval()
    given = {"description": description, "licence": licence, "data_licence": data_licence}
    texts = {**source.texts, **{name: text for name, text in given.items() if text is not None}}
    metadata = describe(source.potential, source.provenance).model_copy(update=texts)
    data = model_bytes(module, metadata)
    elements = source.potential.elements
    samples = sample_structures(elements) if structures is None else structures
    verify(EagerModel(module, metadata, torch.device("cpu")), load_model(data), samples)
    write_bytes(Path(out_path), data)
    return metadata


@dataclass(frozen=True)
class _Source:
    """A potential to be exported, and what its file says about it."""

    potential: Potential
    provenance: Provenance
    texts: dict[str, str]


def _source(path: Path, dtype: str | None) -> _Source:
    kind = "a phicalc checkpoint or model"
    data = read_whole(path, kind)
    if not holds_program(sound_parts(data, str(path), kind)):
        checkpoint = load_checkpoint(path, dtype)
        return _Source(checkpoint.potential, _provenance(checkpoint, path), {})
    model = load_model(data)
    known = model.metadata
    prefix = "potential."
    state = {n.removeprefix(prefix): t for n, t in model.weights().items() if n.startswith(prefix)}
    try:
        potential = rebuild(known.config, known.elements, state, dtype)
    except (KeyError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        raise ModelFileError(
            f"{path}: expected a model whose network can be built from its file, got "
            f"{' '.join(str(error).split())}; export its checkpoint instead"
        ) from None
    names = ("description", "licence", "data_licence")
    texts = {name: getattr(known, name) for name in names}
    return _Source(potential, known.provenance, texts)


def describe(potential: Potential, provenance: Provenance | None = None) -> ModelMetadata:
    """Metadata of the model file of a potential."""
    config = potential.config
    return ModelMetadata(
        elements=list(potential.elements),
        cutoff=config.cutoff,
        dtype=config.dtype,
        backbone=config.backbone.kind,
        heads=[head.kind for head in config.heads],
        capabilities=combined(config),
        devices=["cpu", "cuda"],
        parameters=sum(parameter.numel() for parameter in potential.parameters()),
        config=config.model_dump(mode="json"),
        provenance=provenance or Provenance(),
    )


def verify(network: EagerModel, model: LoadedModel, structures: Sequence[Atoms]) -> None:
    """Compare a loaded model with the network it was made from, one by one and as a batch.

    In every output, with features and, where there is one, the response to a field.

    Raises
    ------
    ModelFileError
        They differ by more than rounding, or the network's own numbers are not finite, or do not
        converge.
    """
    tolerance = TOLERANCES[model.metadata.dtype]
    for graph in _graphs(structures, model.metadata.cutoff):
        try:
            expected, found = _all_of(network, graph), _all_of(model, graph)
        except ConvergenceError as error:
            raise ModelFileError(
                f"the network cannot be compared with its file on {len(graph[fields.SPECIES])} "
                f"atoms made up for it: {error}; train it anew; no file was written"
            ) from None
        for name, value in expected.items():
            if not bool(torch.isfinite(value).all()):
                raise ModelFileError(f"the network gives NaN or infinite {name}; train it anew")
            if name not in NOT_COMPARED:
                _compare(name, value, found[name], tolerance)


def _all_of(model: Model, graph: Graph) -> Graph:
    """Every output by name."""
    found = dict(model(graph))
    found |= {f"features {step}": value for step, value in enumerate(model.features(graph))}
    able, charge = model.metadata.capabilities, float(graph[fields.TOTAL_CHARGE][0])
    if graph[fields.TOTAL_CHARGE].shape[0] == 1:
        numbers, periodic = graph[fields.SPECIES].tolist(), bool(graph[fields.PBC].any())
        if able.field_obstacle(numbers, periodic, charge) is None:
            found |= model.response(graph)
    return found


def _compare(name: str, expected: Tensor, found: Tensor, tolerance: float) -> None:
    if expected.numel() == 0:  # edges of a single atom
        return
    scale = max(1.0, float(expected.abs().max()))
    deviation = float((expected - found).abs().max())
    if not deviation <= tolerance * scale:
        raise ModelFileError(
            f"the exported model gives {name} that differ from the network's by {deviation:.2g}, "
            f"expected at most {tolerance * scale:.2g}; no file was written"
        )


def _graphs(structures: Sequence[Atoms], cutoff: float) -> Iterator[Graph]:
    graphs = [structure_tensors(atoms, cutoff, total_charge(atoms)) for atoms in structures]
    for graph in graphs:
        yield joined([graph])
    yield joined(graphs)


def sample_structures(elements: Sequence[int], seed: int = 0) -> list[Atoms]:
    """Random structures of given elements at about bonding distance, to try a model on.

    A single atom, a small molecule and the same as an ion, a crystal of eight atoms, and a
    periodic one too large for a direct solve of the electrostatics.
    """
    generator = np.random.default_rng(seed)
    molecule = _jittered_lattice(elements, (3, 2, 2), generator)
    molecule.pbc = False
    ion = molecule.copy()
    ion.info["charge"] = 1.0
    return [
        Atoms([elements[0]], positions=[[0.0, 0.0, 0.0]]),
        molecule,
        ion,
        _jittered_lattice(elements, (2, 2, 2), generator),
        _jittered_lattice(elements, (8, 6, 6), generator),
    ]


def _jittered_lattice(
    elements: Sequence[int], counts: tuple[int, int, int], generator: np.random.Generator
) -> Atoms:
    """A cubic lattice of random elements, wide enough for the largest, off its sites by a tenth."""
    spacing = 2.2 * max(covalent_radii[number] for number in elements)
    sites = spacing * np.moveaxis(np.indices(counts), 0, -1).reshape(-1, 3)
    sites += generator.uniform(-0.1, 0.1, sites.shape) * spacing
    numbers = generator.choice(np.asarray(elements), len(sites))
    return Atoms(numbers, positions=sites, cell=spacing * np.array(counts), pbc=True)


def _provenance(checkpoint: Checkpoint, path: Path) -> Provenance:
    """What the trainer noted in the checkpoint; a checkpoint made by hand may hold nothing."""
    noted: Any = checkpoint.extra.get("provenance", {})
    content = dict(noted) if isinstance(noted, Mapping) else {}
    content["checkpoint_sha256"] = file_sha256(path)
    try:
        return Provenance.model_validate(content)
    except ValidationError as error:
        raise ModelFileError(f"{path}: its provenance: {mistake(error, content)}") from error
