"""A saved model against a file of structures: the ground under ``phicalc eval``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from torch import Tensor

from phicalc import fields
from phicalc.checks.settings import BATCH_SIZE
from phicalc.data.read import check_labels
from phicalc.errors import ConvergenceError, DataError, StructureError, UnsupportedError
from phicalc.machine.archive import holds_program, read_whole, sound_parts
from phicalc.machine.device import resolve_device
from phicalc.machine.files import file_sha256, prepare_folder
from phicalc.machine.modes import own_modes
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.serving.eager import EagerModel
from phicalc.serving.evaluation import Conditions, Model, admit, naming
from phicalc.serving.export import describe
from phicalc.serving.metadata import Provenance
from phicalc.serving.model_file import load_model
from phicalc.train.config import Property
from phicalc.train.dataset import Labelled, labelled_graph, read_without
from phicalc.train.labels import labels_somewhere, require_defined
from phicalc.train.metrics import Evaluation, Graph, Predict, evaluate
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
    structures = [Labelled(*pair) for pair in zip(frames, labels, strict=True)]
    for number, (atoms, of_one) in enumerate(structures):
        with naming([number]):
            admit([opened], atoms, Conditions(of_one.total_charge, np.zeros(3)))
    return evaluate(
        _finite(opened),
        [labelled_graph(one, opened.metadata.cutoff, wanted) for one in structures],
        properties=properties,
        batch_size=batch_size,
        alone_above=opened.metadata.capabilities.alone_above,
        device=opened.device,
        keep_values=keep_values,
        advance=advance,
    )


def _finite(predict: Predict) -> Predict:
    """The same, but for NaN and infinity, which no table of errors should hold."""

    def checked(graph: Graph) -> Mapping[str, Tensor]:
        output = predict(graph)
        bad = [n for n in fields.LABELS if n in output and not bool(output[n].isfinite().all())]
        if bad:
            raise StructureError(
                f"the model gives NaN or infinity for {', '.join(bad)}; look for atoms much too "
                "close to each other, or leave the frame out with --skip"
            )
        return output

    return checked
