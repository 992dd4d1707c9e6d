"""Errors of a model against labelled structures."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.data.reference import fit_reference_energies
from phicalc.geometric import Data
from phicalc.serving.metadata import ErrorSummary
from phicalc.train.losses import atoms_per_structure, residuals

Graph = dict[str, Tensor]

ENERGY_PER_ATOM = "energy_per_atom"
WORST_LISTED = 5
UNITS = {ENERGY_PER_ATOM: "eV/atom", **{row.name: row.unit for row in fields.PROPERTIES}}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`compare` found.

    Attributes
    ----------
    structures, atoms
        How many were evaluated.
    labelled
        By property: how many of the structures have a label, over which the errors are.
    errors
        By property, in :data:`UNITS`; ``energy_per_atom`` stands beside ``energy`` (totals).
    force_errors
        Error of the force components on the atoms of each element, by chemical symbol.
    worst
        Number (from 0) and force RMSE in eV/Å of the five structures with the worst forces: one
        with a broken label stands out here.
    values
        By property: reference and predicted components, flat; energies per atom. Empty unless
        they were asked for.
    composition_energies
        In eV per atom, of each structure with an energy: what the elements alone explain of the
        reference energies, by least squares. Empty unless values were asked for.
    """

    structures: int
    atoms: int
    errors: dict[str, ErrorSummary]
    force_errors: dict[str, ErrorSummary]
    worst: list[tuple[int, float]] = field(default_factory=list)
    values: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict, repr=False
    )
    composition_energies: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(0), repr=False, compare=False
    )
    labelled: dict[str, int] = field(default_factory=dict)


class ErrorSums:
    """Running sums of |r| and r²; additive over batches and over processes.

    ``table`` has one row per property and one per element, of columns count, Σ|r| and Σr².
    """

    ROWS = (ENERGY_PER_ATOM, *fields.LABELS)

    def __init__(self, device: torch.device) -> None:
        rows = len(self.ROWS) + len(chemical_symbols)
        self.table = torch.zeros(rows, 3, dtype=torch.float64, device=device)
        self.size = torch.zeros(2, dtype=torch.float64, device=device)  # structures, atoms

    def add(self, differences: Mapping[str, Tensor], graph: Graph) -> None:
        """Take in the residuals (:func:`phicalc.train.losses.residuals`) of one batch.

        Those of absent labels, NaN in the graph, do not count.
        """
        atoms = atoms_per_structure(graph)
        self.size += torch.stack([torch.ones_like(atoms).sum(), atoms.sum()])
        for name, difference in differences.items():
            known = ~graph[name].isnan()
            if name == fields.ENERGY:
                self._add_row(self.ROWS.index(ENERGY_PER_ATOM), difference[known])
                difference = difference * atoms
            self._add_row(self.ROWS.index(name), difference[known])
        if fields.FORCES in differences:
            r, known = differences[fields.FORCES], ~graph[fields.FORCES].isnan().any(1)
            self._add_forces_by_element(r[known], graph[fields.SPECIES][known])

    def _add_row(self, row: int, r: Tensor) -> None:
        self.table[row] += torch.stack([torch.ones_like(r).sum(), r.abs().sum(), r.square().sum()])

    def _add_forces_by_element(self, r: Tensor, species: Tensor) -> None:
        sums = torch.stack([torch.full_like(r[:, 0], 3), r.abs().sum(1), r.square().sum(1)], dim=1)
        self.table.index_add_(0, species + len(self.ROWS), sums)

    def errors(self) -> tuple[dict[str, ErrorSummary], dict[str, ErrorSummary]]:
        """Errors by property and, for forces, by element."""
        rows = self.table.tolist()
        by_property = {
            name: _error(row, UNITS[name])
            for name, row in zip(self.ROWS, rows, strict=False)
            if row[0] > 0
        }
        by_element = {
            symbol: _error(row, UNITS[fields.FORCES])
            for symbol, row in zip(chemical_symbols, rows[len(self.ROWS) :], strict=True)
            if row[0] > 0
        }
        return by_property, by_element


def _error(row: Sequence[float], unit: str) -> ErrorSummary:
    count, absolute, square = row
    return ErrorSummary(absolute / count, (square / count) ** 0.5, round(count), unit)


def batches(
    graphs: Sequence[Data],
    batch_size: int,
    device: torch.device | str,
) -> Iterator[tuple[Graph, int]]:
    """Consecutive batches as dictionaries on ``device``, each with its number of structures."""
    for start in range(0, len(graphs), batch_size):
        part = [graphs[i] for i in range(start, min(start + batch_size, len(graphs)))]
        yield graph_dict(collate(part).to(device)), len(part)


def compare(
    pairs: Iterable[tuple[Graph, Graph]],
    *,
    keep_values: bool = False,
    advance: Callable[[int], None] = lambda structures: None,
) -> Evaluation:
    """Errors of predictions, batch by batch.

    Parameters
    ----------
    pairs
        What was predicted, and a labelled graph (SPECIES, BATCH, CELL and labels; those that a
        structure lacks are NaN). Compared is what stands in both.
    keep_values
        Also return all reference and predicted values, for parity plots.
    advance
        Called with the number of structures after each batch.
    """
    sums: ErrorSums | None = None
    values: dict[str, list[tuple[Tensor, Tensor]]] = {}
    by_structure: list[float] = []
    counts: Counter[str] = Counter()
    energies: list[float] = []
    species: list[NDArray[np.int64]] = []
    for prediction, graph in pairs:
        names = [name for name in fields.LABELS if name in prediction and name in graph]
        sums = sums or ErrorSums(graph[fields.SPECIES].device)
        differences = residuals(prediction, graph, names)
        sums.add(differences, graph)
        counts.update({name: int(labelled_in(graph, name).sum()) for name in names})
        if fields.FORCES in differences:
            by_structure += force_errors_by_structure(differences[fields.FORCES], graph)
        if keep_values:
            _keep(values, prediction, graph, names)
        if keep_values and fields.ENERGY in names:
            sizes = torch.bincount(graph[fields.BATCH]).tolist()
            species += [part.cpu().numpy() for part in graph[fields.SPECIES].split(sizes)]
            energies += graph[fields.ENERGY].tolist()
        advance(graph[fields.CELL].shape[0])
    assert sums is not None
    count, atoms = sums.size.tolist()
    counts = +counts  # without what no structure has a label of
    known_errors = [(number, rmse) for number, rmse in enumerate(by_structure) if rmse == rmse]
    return Evaluation(
        round(count),
        round(atoms),
        *sums.errors(),
        worst=sorted(known_errors, key=lambda pair: -pair[1])[:WORST_LISTED],
        values={
            name: (_flat(r for r, _ in kept), _flat(p for _, p in kept))
            for name, kept in values.items()
            if name in counts
        },
        composition_energies=_composition_energies(species, energies),
        labelled=dict(counts),
    )


def _composition_energies(
    species: Sequence[NDArray[np.int64]], energies: Sequence[float]
) -> NDArray[np.float64]:
    """Energies per atom (eV) of the elements alone, fitted to the labels; NaN is none."""
    known = [pair for pair in zip(species, energies, strict=True) if not math.isnan(pair[1])]
    if not known:
        return np.zeros(0)
    fit = fit_reference_energies([numbers for numbers, _ in known], [e for _, e in known])
    return np.array([np.mean([fit.energies[int(z)] for z in numbers]) for numbers, _ in known])


def labelled_in(graph: Graph, name: str) -> Tensor:
    """Of each structure of a batch, whether it has a label, which NaN is not; (B,) bool."""
    unknown = graph[name].isnan().flatten(1).any(1) if graph[name].ndim > 1 else graph[name].isnan()
    if fields.PROPERTY[name].per == "atom":
        rows = torch.zeros(graph[fields.CELL].shape[0], device=unknown.device)
        unknown = rows.index_add(0, graph[fields.BATCH], unknown.to(rows.dtype)) > 0
    return ~unknown


def force_errors_by_structure(difference: Tensor, graph: Graph) -> list[float]:
    """Root-mean-square force error of each structure of a batch, eV/Å; NaN without forces."""
    atoms = atoms_per_structure(graph)
    known = torch.where(graph[fields.FORCES].isnan(), torch.nan, difference)
    squares = torch.zeros_like(atoms).index_add(0, graph[fields.BATCH], known.square().sum(1))
    rmse: list[float] = (squares / (3 * atoms)).sqrt().tolist()
    return rmse


def _keep(
    pairs: dict[str, list[tuple[Tensor, Tensor]]],
    prediction: Mapping[str, Tensor],
    graph: Graph,
    properties: Iterable[str],
) -> None:
    for name in properties:
        reference, predicted = graph[name], prediction[name]
        if name == fields.ENERGY:
            atoms = atoms_per_structure(graph)
            reference, predicted = reference / atoms, predicted / atoms
        known = ~reference.isnan()
        pairs.setdefault(name, []).append((reference[known], predicted[known]))


def _flat(tensors: Iterable[Tensor]) -> NDArray[np.float64]:
    joined = torch.cat([t.reshape(-1).double().cpu() for t in tensors])
    array: NDArray[np.float64] = joined.numpy()
    return array
