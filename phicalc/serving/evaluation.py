"""The one way from a structure to a result: checks, graphs, caches, the model, finiteness.

The calculator, `predict`, `eval`, `bench`, engines and the check of an export are doors to it. Here
are batches; one structure after another, and what is reused from step to step, is `evaluator.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.checks.conditions import external_field, total_charge
from phicalc.checks.structure import check_separation, check_structure, frames_of
from phicalc.checks.support import check_support
from phicalc.data.tensors import grouped, joined, on_device, structure_tensors
from phicalc.errors import (
    ConvergenceError,
    DataError,
    StructureError,
    UnsupportedError,
)
from phicalc.serving.metadata import ModelMetadata
from phicalc.serving.result import Result, results_of
from phicalc.serving.transfer import brought_back

Graph = dict[str, Tensor]
Array = NDArray[np.float64]


class Model(Protocol):
    """A function from graphs to tensors, and what may be asked of it."""

    @property
    def metadata(self) -> ModelMetadata:
        """What it says about itself."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, graph: Graph) -> Graph:
        """Energies, forces and the rest by the names of :mod:`phicalc.fields`."""

    def response(self, graph: Graph) -> Graph:
        """MOMENT, BORN_CHARGES and POLARISABILITY of one structure."""

    def features(self, graph: Graph) -> list[Tensor]:
        """Features (N, F) of the atoms after each message step."""

    def inverse(self, graph: Graph) -> Tensor:
        """INVERSE (N, N) of a structure, of a model that keeps one."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a structure is in: total charge | e and electric field (3,) | V/Å."""

    charge: float
    field: Array

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Conditions)
            and self.charge == other.charge
            and np.array_equal(self.field, other.field)
        )


def conditions_of(
    atoms: Atoms, charge: float | None = None, field: Array | None = None
) -> Conditions:
    """Those that a structure names, else those given, else none."""
    return Conditions(total_charge(atoms, charge), external_field(atoms, field))


def admit(models: Sequence[Model], atoms: Atoms, conditions: Conditions) -> None:
    """A sound structure that each of the models may be asked about.

    Raises
    ------
    StructureError
        It is unsound.
    UnsupportedError
        Unknown elements; a total charge, periodicity or field that a model was not made for.
    """
    elements = set.intersection(*(set(model.metadata.elements) for model in models))
    check_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, elements)
    for model in models:
        known = model.metadata
        check_support(
            conditions.charge,
            atoms.pbc,
            known.capabilities.total_charge,
            known.capabilities.partial_pbc,
            len(atoms),
            known.charge_range,
        )
    if conditions.field.any():
        reason = field_obstacle(models, atoms, conditions.charge)
        if reason is not None:
            raise UnsupportedError(f"no electric field for this model and structure: {reason}")


def field_obstacle(models: Sequence[Model], atoms: Atoms, charge: float) -> str | None:
    """Why one of the models has no polarisation to speak of for this structure."""
    for model in models:
        able = model.metadata.capabilities
        reason = able.field_obstacle(atoms.numbers.tolist(), bool(atoms.pbc.any()), charge)
        if reason is not None:
            return reason
    return None


@contextmanager
def naming(numbers: Sequence[int]) -> Iterator[None]:
    """Errors inside are about these frames, which follow one another; they say so."""
    try:
        yield
    except (StructureError, UnsupportedError, ConvergenceError, DataError) as error:
        raise type(error)(f"{frames_of(numbers)}: {error}") from error


def evaluate_many(
    model: Model,
    frames: Sequence[Atoms],
    conditions: Sequence[Conditions],
    batch_size: int,
    features: bool = False,
) -> Iterator[list[Result]]:
    """Results of structures that were admitted, a batch at a time.

    Large structures are evaluated one by one where the model has a head that is faster so.

    Raises
    ------
    StructureError, ConvergenceError, UnsupportedError
        The message names the frames, from 0.
    """
    run: list[list[int]] = []
    # heads that cannot feel a field refuse a batch in which one structure is in one
    for number, own in enumerate(conditions):
        if not run or bool(own.field.any()) != bool(conditions[run[-1][-1]].field.any()):
            run.append([])
        run[-1].append(number)
    for numbers in run:
        sizes = [len(frames[number]) for number in numbers]
        for group in grouped(sizes, batch_size, model.metadata.capabilities.alone_above):
            yield _evaluate_batch(
                model, frames, conditions, numbers[group.start : group.stop], features
            )


def _evaluate_batch(
    model: Model,
    frames: Sequence[Atoms],
    conditions: Sequence[Conditions],
    numbers: Sequence[int],
    features: bool,
) -> list[Result]:
    graphs = []
    for number in numbers:
        with naming([number]):
            charge = conditions[number].charge
            graph = structure_tensors(frames[number], model.metadata.cutoff, charge)
            if conditions[number].field.any():
                graph[fields.FIELD] = torch.from_numpy(conditions[number].field[None])
            if graph[fields.EDGE_VECTORS].numel():
                distances = graph[fields.EDGE_VECTORS].norm(dim=1)
                sender, receiver = graph[fields.EDGE_INDEX][:, int(distances.argmin())].tolist()
                check_separation(float(distances.min()), (sender, receiver))
            graphs.append(graph)
    batch = on_device(joined(graphs), model.device)
    with naming(numbers):
        output = brought_back(model(batch))
        steps = [step.cpu() for step in model.features(batch)] if features else []
    results = results_of([frames[number] for number in numbers], output)
    found: list[Result] = []
    first = 0
    for number in numbers:
        with naming([number]):
            result = next(results)
        rows = slice(first, first + len(frames[number]))
        first = rows.stop
        if features:
            result = replace(result, features=tuple(step[rows].numpy() for step in steps))
        found.append(result)
    return found
