"""A saved model against a file of structures: the ground under ``phicalc eval``."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms

from phicalc.artifact import load_model, resolve_device
from phicalc.checks import check_structure
from phicalc.data.read import check_labels, labels_of
from phicalc.errors import DataError, StructureError, UnsupportedError
from phicalc.files import file_sha256, prepare_folder
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.train.config import PROPERTIES, Property
from phicalc.train.dataset import graphs_of, is_defined, read_without
from phicalc.train.metrics import Evaluation, Predict, evaluate
from phicalc.train.report import write_errors, write_parity_plot


@dataclass(frozen=True)
class Evaluable:
    """What an evaluation needs to know of a model.

    Attributes
    ----------
    predict
        From graph to outputs.
    cutoff
        r_c in Å.
    elements
        Atomic numbers that it knows.
    device
        Where it computes.
    name
        For the report.
    """

    predict: Predict
    cutoff: float
    elements: Sequence[int]
    device: torch.device
    name: str


def open_evaluable(path: str | Path, device: str = "auto") -> Evaluable:
    """Open an exported model file or a training checkpoint.

    Raises
    ------
    ModelFileError
        If it is neither.
    """
    path, target = Path(path), resolve_device(device)
    if _is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        module = Differentiated(checkpoint.potential).to(target).eval().requires_grad_(False)
        cutoff, elements = checkpoint.potential.cutoff, checkpoint.elements
        return Evaluable(module, cutoff, elements, target, path.name)
    model = load_model(path, target)
    return Evaluable(model, model.metadata.cutoff, model.metadata.elements, target, path.name)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file is what ``torch.save`` writes and no TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(n.endswith("/data.pkl") for n in names) and not any("/code/" in n for n in names)


def evaluate_file(
    model: str | Path | Evaluable,
    data: str | Path,
    directory: str | Path | None = None,
    *,
    properties: Sequence[Property] | None = None,
    skip: Sequence[int] = (),
    device: str = "auto",
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda structures: None,
) -> Evaluation:
    """Errors of a model on the labelled structures of a file.

    Parameters
    ----------
    model
        An exported model, a training checkpoint, or anything else as an :class:`Evaluable`.
    data
        Structures, extxyz(.gz) or any ASE format.
    directory
        Where to write ``parity.png`` and ``errors.json``; None: nowhere.
    properties
        What to compare; by default all that every structure has and the model predicts.
    skip
        Frames to leave out, counted from 0.
    advance
        Called with the number of structures after each batch.

    Raises
    ------
    DataError
        If labels are missing or absurd.
    UnsupportedError, StructureError
        If the model was not made for one of the structures, or the structure is broken.
    ModelFileError
        If the model cannot be loaded.
    """
    path = Path(data)
    frames = read_without(path, skip)
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
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if directory is not None:
        about: dict[str, object] = {
            "model": model.name if isinstance(model, Evaluable) else Path(model).name,
            "data": path.name,
            "data_sha256": file_sha256(path),
        }
        if skip:
            about["skipped"] = sorted(set(skip))
        directory = prepare_folder(directory)
        write_errors(result, directory / "errors.json", about)
        write_parity_plot(result, directory / "parity.png")
    return result


def evaluate_structures(
    model: str | Path | Evaluable,
    frames: Sequence[Atoms],
    *,
    properties: Sequence[Property] | None = None,
    device: str = "auto",
    batch_size: int = 8,
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
    evaluable = model if isinstance(model, Evaluable) else open_evaluable(model, device)
    wanted = tuple(properties) if properties is not None else shared_labels(frames)
    if not wanted:
        raise DataError("no label is present in every frame, so nothing can be compared")
    check_labels(frames, set(wanted))
    _check_structures(frames, evaluable.elements)
    return evaluate(
        evaluable.predict,
        graphs_of(frames, evaluable.cutoff, wanted),
        properties=properties,
        batch_size=batch_size,
        device=evaluable.device,
        keep_values=keep_values,
        advance=advance,
    )


def shared_labels(frames: Sequence[Atoms]) -> tuple[Property, ...]:
    """Properties that every structure has a label for and that are defined for all of them."""
    present = [labels_of(atoms).present for atoms in frames]
    return tuple(
        name
        for name in PROPERTIES
        if all(name in labels for labels in present) and all(is_defined(name, a) for a in frames)
    )


def _check_structures(frames: Sequence[Atoms], elements: Sequence[int]) -> None:
    for number, atoms in enumerate(frames):
        try:
            check_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, elements)
        except (StructureError, UnsupportedError) as error:
            raise type(error)(f"frame {number}: {error}") from None
