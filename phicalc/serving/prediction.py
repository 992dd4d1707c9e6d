"""Many structures through one model, a batch at a time: the ground under ``phicalc predict``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.checks.conditions import external_field, name_spins, total_charge
from phicalc.checks.structure import (
    check_field,
    check_separation,
    check_structure,
    frames_of,
)
from phicalc.checks.support import check_support
from phicalc.data.graph import collate, graph_dict, grouped, to_graph
from phicalc.data.read import Labels, read_structures
from phicalc.errors import (
    ConvergenceError,
    DataError,
    OutputError,
    StructureError,
    UnsupportedError,
)
from phicalc.geometric import Data
from phicalc.machine.device import resolve_device
from phicalc.machine.files import prepare_folder, replacing
from phicalc.machine.modes import own_modes
from phicalc.serving.model_file import LoadedModel, load_model
from phicalc.serving.response import refuse_field

Array = NDArray[np.float64]

BATCH_SIZE = 8
"""Structures at a time: on a CPU more is no faster."""

FORMATS = (".xyz", ".extxyz")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one structure of N atoms; None where it is not defined.

    Attributes
    ----------
    energy
        eV.
    energies
        (N,) in eV, per atom.
    forces
        (N, 3) in eV/Å.
    stress
        (6,) in eV/Å³, ASE's order and sign; of cells periodic in three directions.
    charges
        (N,) in e; of models with an electrostatics head.
    dipole
        (3,) in e·Å about the centre of mass; of such models, not periodic.
    """

    energy: float
    energies: Array
    forces: Array
    stress: Array | None
    charges: Array | None
    dipole: Array | None

    def attached_to(self, atoms: Atoms) -> Atoms:
        """A copy of the structure that bears these results and no others.

        Labels under the names of ASE's properties, in ``info`` or ``arrays``, are left out:
        a file with both would not say which is which.
        """
        copy: Atoms = atoms.copy()
        for name in all_properties:
            copy.info.pop(name, None)
            copy.arrays.pop(name, None)
        known = {name: value for name, value in vars(self).items() if value is not None}
        copy.calc = SinglePointCalculator(copy, free_energy=self.energy, **known)
        return copy


@own_modes()
def predict(
    model: str | Path | LoadedModel,
    frames: Iterable[Atoms],
    *,
    device: str = "auto",
    charge: float | None = None,
    field: Sequence[float] | None = None,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda structures: None,
) -> list[Prediction]:
    """What a model says about many structures, the same as `PhiCalculator` one by one.

    Parameters
    ----------
    model
        A model file.
    frames
        Structures, of any size and periodicity; nothing of them is changed.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda[:n]"``.
    charge
        Total charge in e of structures without ``info["charge"]``; None: 0.
    batch_size
        Structures at a time; large ones are evaluated one by one where the model has a head that
        is faster so.
    advance
        Called with the number of structures after each batch.

    Raises
    ------
    StructureError, UnsupportedError
        A structure is unsound or not one for this model; the message names the frame, from 0.
        Unknown elements are found before anything is computed.
    ConvergenceError
        An electrostatic solve did not converge; the message names the frames of the batch.
    ModelFileError
        The model cannot be loaded.

    Examples
    --------
    >>> from phicalc import predict
    >>> [p.energy for p in predict("model.pt", ase.io.read("many.xyz", ":"))]  # doctest: +SKIP
    """
    model = _loaded(model, device)
    if isinstance(frames, Atoms):
        raise StructureError("expected a list of structures, got one Atoms; pass [atoms]")
    everything = list(frames)
    conditions = _checked(model, everything, charge, field)
    return _predict(model, everything, conditions, batch_size, advance)


@own_modes()
def predict_file(
    model: str | Path | LoadedModel,
    structures: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    charge: float | None = None,
    field: Sequence[float] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Predict the structures of a file and write them with their results, whole or not at all.

    Parameters
    ----------
    structures
        extxyz(.gz) or any format of ASE's.
    output
        Extended XYZ, ``.xyz`` or ``.extxyz``; ``ase.io.read`` finds the results in ``atoms.calc``.
    overwrite
        Replace an older file.
    progress
        Called with the number of structures done and of all.
    model, device, charge, field, batch_size
        As `predict`.

    Raises
    ------
    DataError
        The structures cannot be read.
    OutputError
        The output has another suffix, exists already or cannot be written.
    PhicalcError
        As `predict`.
    """
    path = Path(output)
    if path.suffix not in FORMATS:
        raise OutputError(f"expected an output {' or '.join(FORMATS)}, got {path}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; give another name, or overwrite it")
    frames = read_structures(structures)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(frames))

    try:
        model = _loaded(model, device)
        conditions = _checked(model, frames, charge, field)
        prepare_folder(path.parent)  # before the computation, after all that costs nothing
        found = _predict(model, frames, conditions, batch_size, advance)
    except (StructureError, UnsupportedError, ConvergenceError) as error:
        raise type(error)(f"{structures}: {error}") from error
    written = [p.attached_to(a) for p, a in zip(found, frames, strict=True)]
    for atoms, own in zip(written, conditions, strict=True):
        if charge is not None or own.charge:
            atoms.info["charge"] = own.charge
        if own.field.any():
            atoms.info["external_field"] = own.field
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        write_extxyz(file, written)
    return found


def _loaded(model: str | Path | LoadedModel, device: str) -> LoadedModel:
    target = resolve_device(device)
    if isinstance(model, LoadedModel):
        return model if model.device == target else load_model(model.data, target)
    return load_model(model, target)


class _Conditions(NamedTuple):
    """What a structure is in."""

    charge: float  # e
    field: Array  # (3,) | V/Å


def _checked(
    model: LoadedModel,
    frames: Sequence[Atoms],
    charge: float | None,
    field: Sequence[float] | None,
) -> list[_Conditions]:
    """Total charges and fields of the structures, all of which the model can compute."""
    conditions, known = [], model.metadata
    elsewhere = None if field is None else check_field(field)
    for number, atoms in enumerate(frames):
        try:
            cell, pbc = atoms.cell.array, atoms.pbc
            check_structure(atoms.numbers, atoms.positions, cell, pbc, known.elements)
            own = _Conditions(total_charge(atoms, charge), external_field(atoms, elsewhere))
            check_support(
                own.charge,
                pbc,
                known.supports_total_charge,
                known.supports_partial_pbc,
                len(atoms),
                known.charge_range,
            )
            if own.field.any():
                refuse_field([model], atoms, own.charge)
        except (StructureError, UnsupportedError) as error:
            raise type(error)(f"frame {number}: {error}") from error
        conditions.append(own)
    name_spins(frames, [own.charge for own in conditions])
    return conditions


def _predict(
    model: LoadedModel,
    frames: Sequence[Atoms],
    conditions: Sequence[_Conditions],
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Prediction]:
    """Results of structures that were checked, a batch at a time."""
    found: list[Prediction] = []
    # heads that cannot feel a field refuse a batch in which one structure is in one
    for _, run in groupby(range(len(frames)), lambda number: conditions[number].field.any()):
        numbers = list(run)
        sizes = [len(frames[number]) for number in numbers]
        for group in grouped(sizes, batch_size, model.alone_above):
            batch = numbers[group.start : group.stop]
            found += _predict_batch(model, frames, conditions, batch)
            advance(len(batch))
    return found


def _predict_batch(
    model: LoadedModel,
    frames: Sequence[Atoms],
    conditions: Sequence[_Conditions],
    batch: Sequence[int],
) -> list[Prediction]:
    """Results of the structures of these numbers, which follow one another."""
    graphs = [_graph(model, frames[number], conditions[number], number) for number in batch]
    graph = graph_dict(collate(graphs).to(model.device))
    shown = frames_of(batch)
    try:
        output = {name: value.cpu() for name, value in model(graph).items()}
    except (StructureError, UnsupportedError, ConvergenceError) as error:  # the model's own code
        raise type(error)(f"{shown}: {error}") from None
    first, predictions = 0, []
    for position, number in enumerate(batch):
        rows = slice(first, first + len(frames[number]))
        first = rows.stop
        predictions.append(_prediction(output, position, rows, frames[number]))
        if not all(np.isfinite(v).all() for v in vars(predictions[-1]).values() if v is not None):
            raise StructureError(
                f"frame {number}: the model gives NaN or infinity for this structure; "
                "look for atoms much too close to each other"
            )
    return predictions


def _graph(model: LoadedModel, atoms: Atoms, conditions: _Conditions, number: int) -> Data:
    try:
        labels = Labels(total_charge=conditions.charge)
        graph = to_graph(atoms, model.metadata.cutoff, labels)
        if conditions.field.any():
            graph[fields.FIELD] = torch.from_numpy(conditions.field[None])
        if graph[fields.EDGE_VECTORS].numel():
            distances = graph[fields.EDGE_VECTORS].norm(dim=1)
            sender, receiver = graph[fields.EDGE_INDEX][:, int(distances.argmin())].tolist()
            check_separation(float(distances.min()), (sender, receiver))
        return graph
    except (StructureError, DataError) as error:
        raise type(error)(f"frame {number}: {error}") from error


def _prediction(output: dict[str, Tensor], position: int, rows: slice, atoms: Atoms) -> Prediction:
    """The part of a batch's output that is one structure's."""
    optional: dict[str, Any] = {"stress": None, "charges": None, "dipole": None}
    if atoms.pbc.all():
        optional["stress"] = full_3x3_to_voigt_6_stress(output[fields.STRESS][position].numpy())
    if fields.CHARGES in output:
        optional["charges"] = output[fields.CHARGES][rows].numpy()
    if fields.DIPOLE in output and not atoms.pbc.any():
        optional["dipole"] = output[fields.DIPOLE][position].numpy()
    return Prediction(
        energy=float(output[fields.ENERGY][position]),
        energies=output[fields.ENERGIES][rows].numpy(),
        forces=output[fields.FORCES][rows].numpy(),
        **optional,
    )
