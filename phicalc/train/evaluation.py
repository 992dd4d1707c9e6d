"""A saved model against a file of structures: the ground under ``phicalc eval``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms
from torch import Tensor

from phicalc.checks.structure import check_structure
from phicalc.checks.support import ChargeRange, check_support
from phicalc.data.read import check_labels, total_charge_of
from phicalc.errors import ConvergenceError, DataError, StructureError, UnsupportedError
from phicalc.machine.archive import holds_program, read_whole, sound_parts
from phicalc.machine.device import resolve_device
from phicalc.machine.files import file_sha256, prepare_folder
from phicalc.machine.modes import own_modes
from phicalc.model.checkpoint import Checkpoint, load_checkpoint
from phicalc.model.config import alone_above, sums_coulomb
from phicalc.model.derivatives import Differentiated
from phicalc.serving.metadata import ChargesSeen, charge_range
from phicalc.serving.model_file import load_model
from phicalc.train.config import PROPERTIES, Property
from phicalc.train.dataset import graphs_of, read_without
from phicalc.train.labels import labels_somewhere, require_defined
from phicalc.train.metrics import Evaluation, Graph, Predict, evaluate
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
    alone_above
        Atoms above which a structure is best evaluated by itself; None: never.
    supports_total_charge, supports_partial_pbc
        Whether it may be given ions, and slabs and wires.
    charges
        Total charges that it was trained on and is told of; None: any.
    """

    predict: Predict
    cutoff: float
    elements: Sequence[int]
    device: torch.device
    name: str
    alone_above: int | None = None
    supports_total_charge: bool = True
    supports_partial_pbc: bool = True
    charges: ChargeRange | None = None


def open_evaluable(path: str | Path, device: str = "auto") -> Evaluable:
    """Open an exported model file or a training checkpoint.

    A checkpoint is given the ions that it may have been trained on, told of their charge or not.

    Raises
    ------
    ModelFileError
        If it is neither.
    """
    path, target = Path(path), resolve_device(device)
    kind = "a phicalc model or checkpoint"
    if not holds_program(sound_parts(read_whole(path, kind), str(path), kind)):
        checkpoint = load_checkpoint(path)
        module = Differentiated(checkpoint.potential).to(target).eval().requires_grad_(False)
        config = checkpoint.config
        return Evaluable(
            module,
            config.cutoff,
            checkpoint.elements,
            target,
            path.name,
            alone_above([head.kind for head in config.heads]),
            supports_partial_pbc=not any(map(sums_coulomb, config.heads)),
            charges=_charges_of(checkpoint) if config.total_charge else None,
        )
    model = load_model(path, target)
    about = model.metadata
    return Evaluable(
        model,
        about.cutoff,
        about.elements,
        target,
        path.name,
        model.alone_above,
        about.supports_total_charge,
        about.supports_partial_pbc,
        about.charge_range,
    )


def _charges_of(checkpoint: Checkpoint) -> ChargeRange | None:
    """What the record of a checkpoint's training allows; None where there is none."""
    noted = (checkpoint.extra.get("provenance") or {}).get("charges")
    seen = None if noted is None else ChargesSeen.model_validate(noted)
    return charge_range(seen, checkpoint.config.charge_embedding)


def evaluate_file(
    model: str | Path | Evaluable,
    data: str | Path,
    directory: str | Path | None = None,
    *,
    properties: Sequence[Property] | None = None,
    skip: Sequence[int] = (),
    keys: Mapping[str, str] | None = None,
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
            "model": model.name if isinstance(model, Evaluable) else Path(model).name,
            "data": path.name,
            "data_sha256": file_sha256(path),
        }
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
    wanted = tuple(properties) if properties is not None else labels_somewhere(frames)
    if not wanted:
        raise DataError("no label is present in any frame, so nothing can be compared")
    check_labels(frames, set(wanted), partial=wanted)
    require_defined(frames, wanted)
    _check_structures(frames, evaluable)
    return evaluate(
        _finite(evaluable.predict),
        graphs_of(frames, evaluable.cutoff, wanted),
        properties=properties,
        batch_size=batch_size,
        alone_above=evaluable.alone_above,
        device=evaluable.device,
        keep_values=keep_values,
        advance=advance,
    )


def _finite(predict: Predict) -> Predict:
    """The same, but for NaN and infinity, which no table of errors should hold."""

    def checked(graph: Graph) -> Mapping[str, Tensor]:
        output = predict(graph)
        bad = [n for n in PROPERTIES if n in output and not bool(output[n].isfinite().all())]
        if bad:
            raise StructureError(
                f"the model gives NaN or infinity for {', '.join(bad)}; look for atoms much too "
                "close to each other, or leave the frame out with --skip"
            )
        return output

    return checked


def _check_structures(frames: Sequence[Atoms], model: Evaluable) -> None:
    for number, atoms in enumerate(frames):
        try:
            cell, pbc = atoms.cell.array, atoms.pbc
            check_structure(atoms.numbers, atoms.positions, cell, pbc, model.elements)
            charge = total_charge_of(atoms)
            check_support(
                charge,
                pbc,
                model.supports_total_charge,
                model.supports_partial_pbc,
                len(atoms),
                model.charges,
            )
        except (StructureError, UnsupportedError) as error:
            raise type(error)(f"frame {number}: {error}") from None
