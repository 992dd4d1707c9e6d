"""One structure after another, as in a simulation: what is reused from step to step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.checks.structure import check_separation
from phicalc.data.device_neighbours import DeviceNeighbourList, DeviceNeighbours
from phicalc.data.lattice import periodic_cell
from phicalc.data.neighbours import NeighbourList, Neighbours
from phicalc.data.tensors import cpu_entries
from phicalc.electrostatics.solvers.cache import INVERSE, SolverCache, eigenbasis
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors
from phicalc.errors import (
    ConvergenceError,
    UnsupportedError,
)
from phicalc.machine.allocator import keep_freed_memory
from phicalc.machine.modes import own_modes, torch_threads
from phicalc.machine.threads import OneThread
from phicalc.serving.evaluation import Array, Conditions, Graph, Model, admit
from phicalc.serving.result import Result, results_of
from phicalc.serving.transfer import Sent, brought_back


@dataclass
class _Member:
    """One model and where its next electrostatic solve may start from."""

    model: Model
    cache: SolverCache
    charges: SolverCache
    """Of charges that are equilibrated, where the other is of the potential φ."""

    @classmethod
    def of(cls, model: Model) -> "_Member":
        """With what is worth keeping for this model."""
        able, aid = model.metadata.capabilities, None
        if able.basis_size:
            aid = eigenbasis(able.basis_size)
        if able.keeps_inverse and model.device.type == "cpu":  # elsewhere it is not measured
            aid = INVERSE
        return cls(model, SolverCache(aid), SolverCache())

    def restart(self) -> None:
        """Forget the last structure."""
        self.cache.restart()
        self.charges.restart()


@dataclass(frozen=True)
class Evaluation:
    """Input and output of one model for one structure.

    On the CPU, except for the graph and for outputs per edge (`phicalc.serving.transfer`).
    """

    graph: Graph
    output: Graph
    result: Result


class Evaluator:
    """Evaluates one or several models on a sequence of structures.

    Parameters
    ----------
    models
        All on one device; those of one cutoff share a neighbour list.
    skin
        Å added to the cutoff when a neighbour list is built.
    cache
        Start each electrostatic solve from what the last one left.
    threads
        CPU threads of an evaluation; the process's setting is restored after each.

    Raises
    ------
    UnsupportedError
        A number of threads below 1.
    """

    def __init__(
        self, models: Sequence[Model], skin: float, cache: bool, threads: int | None
    ) -> None:
        if threads is not None and threads < 1:
            raise UnsupportedError(f"expected threads=None or a number ≥ 1, got {threads}")
        self.models = list(models)
        self.device = models[0].device
        self.cache = cache
        self.threads = threads
        self._members = [_Member.of(model) for model in models]
        self._on_cpu = self.device.type == "cpu"
        kind = NeighbourList if self._on_cpu else DeviceNeighbourList
        self._lists: dict[float, NeighbourList | DeviceNeighbourList] = {
            cutoff: kind(cutoff, skin) for cutoff in {model.metadata.cutoff for model in models}
        }
        self._species: NDArray[np.int64] | None = None
        self._per_atom: Graph = {}
        self._sent = Sent(self.device)
        self._seconds = dict.fromkeys(("neighbours", "electrostatics", "model"), 0.0)
        self._evaluations = 0
        self._thread = OneThread()

    def __call__(self, atoms: Atoms, conditions: Conditions) -> list[Evaluation]:
        """Evaluate every model on one structure.

        Raises
        ------
        StructureError, UnsupportedError
            The structure is unsound, or not one for these models; or another thread is evaluating;
            or a model gives NaN for it.
        ConvergenceError
            The electrostatic solve did not converge.
        """
        if self._evaluations == 0 and self.device.type == "cpu":
            keep_freed_memory()
        admit(self.models, atoms, conditions)
        with self._working():
            self._set_species(atoms)
            shared = self._structure_tensors(atoms, conditions)
            edges = {
                cutoff: self._neighbours(cutoff, atoms, shared[fields.POSITIONS])
                for cutoff in self._lists
            }
            evaluations = [
                self._evaluate(member, atoms, {**shared, **edges[member.model.metadata.cutoff]})
                for member in self._members
            ]
        self._evaluations += 1
        return evaluations

    def responses(self, evaluations: Sequence[Evaluation]) -> list[Graph]:
        """Each model's MOMENT, BORN_CHARGES and POLARISABILITY of what was just evaluated."""
        with self._working():
            pairs = zip(self.models, evaluations, strict=True)
            outputs = [model.response(done.graph) for model, done in pairs]
        return [{name: value.cpu() for name, value in output.items()} for output in outputs]

    def features(self, evaluation: Evaluation) -> tuple[Array, ...]:
        """The first model's features (N, F) after each message step of what was evaluated."""
        with self._working():
            return tuple(step.cpu().numpy() for step in self.models[0].features(evaluation.graph))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One thread, with the number of torch threads that was asked for, in our own modes.

        Inference mode, for one, would make tensors that no gradient can ever be taken through.
        """
        with self._thread.working(), torch_threads(self.threads), own_modes():
            yield

    def forget(self) -> None:
        """Drop neighbour lists and solver history: the next result depends on its input alone."""
        for item in self._lists.values():
            item.forget()
        for member in self._members:
            member.restart()

    def _set_species(self, atoms: Atoms) -> None:
        """Tensors that stay the same as long as the atoms do."""
        numbers = atoms.numbers
        if self._species is not None and np.array_equal(numbers, self._species):
            return
        self._species = numbers.copy()
        species = torch.from_numpy(self._species).long()
        self._per_atom = {
            fields.SPECIES: species.to(self.device),
            fields.BATCH: torch.zeros_like(species).to(self.device),
        }
        for member in self._members:
            member.restart()

    def _structure_tensors(self, atoms: Atoms, conditions: Conditions) -> Graph:
        cell = periodic_cell(atoms.cell.array, atoms.pbc)[None]
        tensors = {
            **self._per_atom,
            fields.POSITIONS: torch.from_numpy(atoms.positions.copy()).to(self.device),
            fields.CELL: self._sent(fields.CELL, cell),
            fields.PBC: self._sent(fields.PBC, atoms.pbc[None]),
            fields.TOTAL_CHARGE: self._sent(fields.TOTAL_CHARGE, np.array([conditions.charge])),
        }
        if conditions.field.any():
            tensors[fields.FIELD] = self._sent(fields.FIELD, conditions.field[None])
        return tensors

    def _neighbours(self, cutoff: float, atoms: Atoms, positions: Tensor) -> Graph:
        start = time.perf_counter()
        listed, cell, pbc = self._lists[cutoff], atoms.cell.array, atoms.pbc
        edges: Graph = {}
        found: Neighbours | DeviceNeighbours
        if isinstance(listed, DeviceNeighbourList):
            found = listed.update(positions, cell, pbc)
            cpu_cell = torch.from_numpy(periodic_cell(cell, pbc)[None])
            edges = cpu_entries(cpu_cell, torch.from_numpy(pbc[None].copy()), found.counts)
        else:
            found = listed.update(atoms.positions, cell, pbc)
        check_separation(found.closest_distance, found.closest_pair)
        edges[fields.EDGE_INDEX] = found.edge_index
        edges[fields.EDGE_VECTORS] = found.edge_vectors
        self._seconds["neighbours"] += time.perf_counter() - start
        return edges

    def _evaluate(self, member: _Member, atoms: Atoms, graph: Graph) -> Evaluation:
        start = time.perf_counter()
        graph.update(self._electrostatics_state(member, graph))
        prepared = time.perf_counter()
        try:
            found = member.model(graph)
            output = brought_back(found)
        except ConvergenceError:
            member.restart()  # what the next solve starts from may be the reason
            raise
        evaluated = time.perf_counter()
        self._learn(member, graph, found, output)
        self._seconds["model"] += evaluated - prepared
        self._seconds["electrostatics"] += time.perf_counter() - evaluated + prepared - start
        (result,) = results_of([atoms], output)
        return Evaluation(graph, output, result)

    def _electrostatics_state(self, member: _Member, graph: Graph) -> Graph:
        """Where the electrostatic solve may start from: entries that speed it up, no more."""
        if not self.cache:
            return {}
        aid, held = member.cache.aid, member.cache.held(graph[fields.SPECIES].shape[0])
        entries = {
            fields.POTENTIAL_GUESS: member.cache.guess(),
            fields.CHARGE_GUESS: member.charges.guess(),
        }
        if aid is not None:
            entries[aid.entry] = held
        return {name: value for name, value in entries.items() if value is not None}

    def _learn(self, member: _Member, graph: Graph, found: Graph, output: Graph) -> None:
        """Show the caches the finished solves, as they are on the device and on the CPU."""
        if not self.cache:
            return

        def make(last: Tensor | None) -> Tensor:
            if member.model.metadata.capabilities.keeps_inverse:
                return member.model.inverse(graph)
            weights, edge_index = found[fields.LAPLACIAN_WEIGHTS], graph[fields.EDGE_INDEX]
            size = member.model.metadata.capabilities.basis_size
            num_atoms = graph[fields.SPECIES].shape[0]
            return lowest_eigenvectors(weights, edge_index, num_atoms, size, last)[1]

        for cache, solution, iterations, residual in (
            (
                member.cache,
                fields.POTENTIAL,
                fields.SOLVER_ITERATIONS,
                fields.SOLVER_RESIDUAL,
            ),
            (
                member.charges,
                fields.EQUILIBRATED_CHARGES,
                fields.CHARGE_ITERATIONS,
                fields.CHARGE_RESIDUAL,
            ),
        ):
            if residual not in output:
                continue
            cache.observe(
                self._lists[member.model.metadata.cutoff].topology,
                make,
                found[solution],
                int(output[iterations]),
                float(output[residual]),
            )

    def cache_info(self) -> dict[str, float | str]:
        """What was reused so far: neighbour lists, and the first model's electrostatics."""
        updates = sum(item.updates for item in self._lists.values())
        rebuilds = sum(item.rebuilds for item in self._lists.values())
        solver, charges = self._members[0].cache.info, self._members[0].charges.info
        if solver.steps == 0:
            solver = charges
        elif charges.steps > 0:
            solver = replace(
                solver,
                iterations=solver.iterations + charges.iterations,
                last_iterations=solver.last_iterations + charges.last_iterations,
                last_residual=max(solver.last_residual, charges.last_residual),
            )
        return {
            "neighbour_updates": updates,
            "neighbour_rebuilds": rebuilds,
            "neighbour_reuse": 1.0 - rebuilds / updates if updates else 0.0,
            **{f"solver_{name}": value for name, value in asdict(solver).items()},
        }

    def timings(self) -> tuple[int, dict[str, float]]:
        """Number of evaluations, and mean wall seconds of each by part."""
        count = max(1, self._evaluations)
        return self._evaluations, {name: total / count for name, total in self._seconds.items()}
