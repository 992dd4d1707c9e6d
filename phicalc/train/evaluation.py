"""A saved model against a file of structures: the ground under ``phicalc eval``."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from phicalc import fields
from phicalc.checks.settings import BATCH_SIZE
from phicalc.data.graph import label_tensors
from phicalc.data.read import Labels, check_labels
from phicalc.data.tensors import float_tensor, joined
from phicalc.errors import ConvergenceError, DataError, StructureError, UnsupportedError
from phicalc.machine.archive import holds_program, read_whole, sound_parts
from phicalc.machine.device import resolve_device
from phicalc.machine.files import file_sha256, prepare_folder
from phicalc.machine.modes import own_modes
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.serving.eager import EagerModel
from phicalc.serving.evaluation import Conditions, Model, admit, evaluate_many, naming
from phicalc.serving.export import describe
from phicalc.serving.metadata import Provenance
from phicalc.serving.model_file import load_model
from phicalc.serving.result import Result
from phicalc.train.config import Property
from phicalc.train.dataset import read_without
from phicalc.train.labels import labels_somewhere, require_defined
from phicalc.train.metrics import Evaluation, Graph, compare
from phicalc.train.report import write_errors, write_parity_plot


def open_model(path: str | Path, device: str = "auto") -> Model:
    """Open an exported model file or a training checkpoint.

    A checkpoint is given the ions that it may have been trained on, told of their charge or not.

    Raises
    ------
    ModelFileError
        If it is neither.
    """
    path, target = Path(path), resolve_device(device)
    kind = "a phicalc model or checkpoint"
    if holds_program(sound_parts(read_whole(path, kind), str(path), kind)):
        return load_model(path, target)
    checkpoint = load_checkpoint(path)
    noted = checkpoint.extra.get("provenance") or {}
    charges = noted.get("charges") if checkpoint.config.total_charge else None
    known = describe(checkpoint.potential, Provenance(charges=charges))
    able = known.capabilities.model_copy(update={"total_charge": True})
    module = Differentiated(checkpoint.potential).to(target).eval().requires_grad_(False)
    return EagerModel(module, known.model_copy(update={"capabilities": able}), target)


def evaluate_file(
    model: str | Path | Model,
    data: str | Path,
    directory: str | Path | None = None,
    *,
    properties: Sequence[Property] | None = None,
    skip: Sequence[int] = (),
    keys: Mapping[str, str] | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda structures: None,
) -> Evaluation:
    """Errors of a model on the labelled structures of a file.

    Parameters
    ----------
    model
        An exported model or a training checkpoint, or what was opened of one.
    data
        Structures, extxyz(.gz) or any ASE format.
    directory
        Where to write ``parity.png`` and ``errors.json``; None: nowhere.
    properties
        What to compare, on the structures that have it; by default all that some structure has
        and the model predicts.
    skip
        Frames to leave out, counted from 0.
    keys
        Columns to read labels from, by our names (:func:`phicalc.data.keys.take_names`).
    advance
        Called with the number of structures after each batch.

    Raises
    ------
    DataError
        If labels are missing or absurd.
    UnsupportedError, StructureError
        If the model was not made for one of the structures, or the structure is broken, or the
        model gives NaN for it.
    ConvergenceError
        If an electrostatic solve did not converge.
    ModelFileError
        If the model cannot be loaded.
    """
    path = Path(data)
    frames = read_without(path, skip, keys)
    try:
        result = evaluate_structures(
            model,
            frames,
            properties=properties,
            device=device,
            batch_size=batch_size,
            keep_values=directory is not None,
            advance=advance,
        )
    except (DataError, StructureError, UnsupportedError, ConvergenceError) as error:
        note = f" ({len(set(skip))} skipped frames are not counted)" if skip else ""
        raise type(error)(f"{path}{note}: {error}") from None
    if directory is not None:
        about: dict[str, object] = {
            "data": path.name,
            "data_sha256": file_sha256(path),
        }
        if isinstance(model, str | Path):
            about = {"model": Path(model).name, **about}
        if skip:
            about["skipped"] = sorted(set(skip))
        if keys:
            about["keys"] = dict(keys)
        directory = prepare_folder(directory)
        write_errors(result, directory / "errors.json", about)
        write_parity_plot(result, directory / "parity.png")
    return result


@own_modes()
def evaluate_structures(
    model: str | Path | Model,
    frames: Sequence[Atoms],
    *,
    properties: Sequence[Property] | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    keep_values: bool = False,
    advance: Callable[[int], None] = lambda structures: None,
) -> Evaluation:
    """Errors of a model on labelled structures; see :func:`evaluate_file`.

    Parameters
    ----------
    frames
        Structures with their labels in ``calc``, ``info`` or ``arrays``.
    keep_values
        Also return all reference and predicted values.
    """
    opened = open_model(model, device) if isinstance(model, str | Path) else model
    wanted = tuple(properties) if properties is not None else labels_somewhere(frames)
    if not wanted:
        raise DataError("no label is present in any frame, so nothing can be compared")
    labels = check_labels(frames, set(wanted), partial=wanted)
    require_defined(frames, labels, wanted)
    conditions = [Conditions(of_one.total_charge, np.zeros(3)) for of_one in labels]
    for number, (atoms, own) in enumerate(zip(frames, conditions, strict=True)):
        with naming([number]):
            admit([opened], atoms, own)
    results = evaluate_many(opened, frames, conditions, batch_size)
    pairs = _beside_labels(results, frames, labels, wanted, required=properties is not None)
    return compare(pairs, keep_values=keep_values, advance=advance)


def _beside_labels(
    results: Iterable[list[Result]],
    frames: Sequence[Atoms],
    labels: Sequence[Labels],
    names: Sequence[str],
    required: bool,
) -> Iterator[tuple[Graph, Graph]]:
    """What a model says of each batch, and what the labels say; of what it predicts at all."""
    done = 0
    for batch in results:
        rows = slice(done, done + len(batch))
        done = rows.stop
        part, known = frames[rows], labels[rows]
        said = [labels_from(result, names) for result in batch]
        lacking = {
            name
            for label, answer in zip(known, said, strict=True)
            for name in label.present - answer.present
        }
        if lacking and required:
            raise UnsupportedError(f"this model does not predict {', '.join(sorted(lacking))}")
        names = [name for name in names if name not in lacking]
        yield _joined(part, said, names), _joined(part, known, names)


def labels_from(result: Result, names: Sequence[str]) -> Labels:
    """What a model says of a structure, in the shapes of labels."""
    values: dict[str, Any] = {name: result.properties.get(name) for name in names}
    if values.get(fields.STRESS) is not None:
        values[fields.STRESS] = voigt_6_to_full_3x3_stress(values[fields.STRESS])
    return Labels(**values)


def _joined(frames: Sequence[Atoms], labels: Sequence[Labels], names: Sequence[str]) -> Graph:
    """Labels of a batch; those that a structure lacks are NaN."""
    return joined(
        [
            {
                fields.SPECIES: torch.tensor(atoms.numbers, dtype=torch.long),
                fields.CELL: float_tensor(atoms.cell.array[None]),
                **label_tensors(own.only(names).filled(names, len(atoms))),
            }
            for atoms, own in zip(frames, labels, strict=True)
        ]
    )
