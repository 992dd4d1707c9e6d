"""One box of water in a process of its own: MD with a model, and its rivals step by step.

`python -m phicalc.bench.box` reads a `BoxRequest` as JSON and writes a `BoxResult` as JSON, so
that the peak memory it reports is that of this box alone.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin

import phicalc.errors
from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.engines.ase import PhiCalculator
from phicalc.errors import PhicalcError, UnsupportedError
from phicalc.model.config import ModelConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.evaluation import conditions_of
from phicalc.serving.evaluator import Evaluation, Evaluator
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes

WARM_UP_STEPS = 16
"""Steps after which the eigenbasis cache has decided and the allocator has seen every size."""

LEAST_STEPS = 3

_SMALL_BOX, _LARGE_BOX = 64, 1000
"""Molecules of a box to repeat, and beyond which it is."""


@dataclass(frozen=True)
class BoxRequest:
    """What to measure: `steps` MD steps, but none begun after `seconds`."""

    path: str
    molecules: int
    steps: int
    seconds: float
    device: str
    threads: int | None
    seed: int


@dataclass(frozen=True)
class BoxResult:
    """Seconds per MD step of one box of water, and its peak memory.

    ``parts`` splits the step: neighbours, backbone (forward, with readout and core repulsion),
    autograd (the backbone's gradient), electrostatics (all that the heads add: forward, gradient,
    upkeep of their cache) and ase (integrator, checks, copies). Evaluations and their differences
    are medians over the steps; neighbours and upkeep, where a few steps do the work of many, are
    means.
    """

    atoms: int
    edges: int
    steps: int
    parts: dict[str, float]
    uncached_electrostatics: float
    """Seconds of the heads with neither basis nor warm start."""
    solver_iterations: float
    uncached_solver_iterations: float
    neighbour_reuse: float
    """Share of the steps on which the neighbour list was reused."""
    peak_memory: float
    """MB: largest resident size of the process; on a GPU, largest allocation."""
    base_memory: float
    """MB before the first evaluation: Python, torch and the model."""

    @property
    def step_seconds(self) -> float:
        """Wall seconds per MD step."""
        return sum(self.parts.values())

    @property
    def steps_per_second(self) -> float:
        """MD steps per second of wall time."""
        return 1.0 / self.step_seconds

    @property
    def electrostatics_share(self) -> float:
        """Time of the heads over that of the backbone and its gradient."""
        return self.parts["electrostatics"] / (self.parts["backbone"] + self.parts["autograd"])

    @property
    def uncached_share(self) -> float:
        """`electrostatics_share` without the cache."""
        return self.uncached_electrostatics / (self.parts["backbone"] + self.parts["autograd"])


def untrained_model(
    config: ModelConfig, elements: Sequence[int], device: str | torch.device = "cpu", seed: int = 0
) -> LoadedModel:
    """A model of this configuration with random weights, as fast as a trained one.

    Torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = Potential(config, elements)
    data = model_bytes(Differentiated(potential), describe(potential))
    return load_model(data, device)


def measure(request: BoxRequest) -> BoxResult:
    """Run MD on the box, timing each step and the rivals' evaluations of the same geometry."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    model = load_model(request.path, device)
    atoms = box_of_water(request.molecules, request.seed)
    calculator = PhiCalculator(model, device=request.device)
    base_memory = peak_memory(device)
    dynamics = langevin(atoms, calculator, request.seed)
    dynamics.run(WARM_UP_STEPS)
    peak = peak_memory(device)

    rivals = Rivals(model)
    for _ in range(2):
        last = rivals.evaluate(atoms)
    before = calculator.cache_info()
    samples: dict[str, list[float]] = defaultdict(list)
    start = time.perf_counter()
    for step in range(request.steps):
        if step >= LEAST_STEPS and time.perf_counter() - start > request.seconds:
            break
        last = rivals.evaluate(atoms)
        for name, seconds in {**last.seconds, **_timed_step(dynamics, calculator)}.items():
            samples[name].append(seconds)
        samples["uncached_iterations"].append(last.iterations)
    after = calculator.cache_info()
    steps = len(samples["model"])
    done = {name: float(after[name]) - float(before[name]) for name in _COUNTS}
    has_heads = bool(model.metadata.heads)
    heads = _typical_difference(samples["model"], samples["bare"]) + mean(samples["upkeep"])
    uncached_heads = _typical_difference(samples["uncached"], samples["bare"])
    return BoxResult(
        atoms=len(atoms),
        edges=last.edges,
        steps=steps,
        parts={
            "neighbours": mean(samples["neighbours"]),
            "backbone": median(samples["forward"]),
            "autograd": _typical_difference(samples["bare"], samples["forward"]),
            "electrostatics": heads if has_heads else 0.0,
            "ase": median(samples["ase"]),
        },
        uncached_electrostatics=uncached_heads if has_heads else 0.0,
        solver_iterations=done["solver_iterations"] / steps,
        uncached_solver_iterations=mean(samples["uncached_iterations"]),
        neighbour_reuse=1.0 - done["neighbour_rebuilds"] / steps,
        peak_memory=peak,
        base_memory=base_memory,
    )


def _typical_difference(longer: Sequence[float], shorter: Sequence[float]) -> float:
    """Median over the steps of the difference on the same step, which a busy machine shifts less
    than the difference of the medians."""
    return median(a - b for a, b in zip(longer, shorter, strict=True))


_COUNTS = ("solver_iterations", "neighbour_rebuilds")


def box_of_water(molecules: int, seed: int) -> Atoms:
    """Liquid water; large boxes that are cubes of a small one are made of it, in a second."""
    copies = round((molecules / _SMALL_BOX) ** (1 / 3))
    if molecules > _LARGE_BOX and molecules == _SMALL_BOX * copies**3:
        repeated: Atoms = water_box(_SMALL_BOX, seed=seed) * (copies, copies, copies)
        return repeated
    return water_box(molecules, seed=seed)


def langevin(atoms: Atoms, calculator: PhiCalculator, seed: int) -> Langevin:
    """Dynamics at 300 K in steps of 0.5 fs."""
    random = np.random.default_rng(seed)
    atoms.calc = calculator
    widths = np.sqrt(atoms.get_masses() * units.kB * 300.0)
    atoms.set_momenta(widths[:, None] * random.standard_normal((len(atoms), 3)))
    return Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=300.0,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=random,
    )


def _timed_step(dynamics: Langevin, calculator: PhiCalculator) -> dict[str, float]:
    """Seconds of one MD step: neighbours, model, upkeep of the cache, and the rest."""
    before = calculator.timings()
    start = time.perf_counter()
    dynamics.step()
    seconds = time.perf_counter() - start
    after = calculator.timings()
    spent = {
        name: after["evaluations"] * after[part] - before["evaluations"] * before[part]
        for name, part in (
            ("neighbours", "neighbours"),
            ("model", "model"),
            ("upkeep", "electrostatics"),
        )
    }
    return {**spent, "ase": seconds - sum(spent.values())}


@dataclass(frozen=True)
class RivalResult:
    """Seconds of the rivals on one geometry: uncached, bare, and bare without gradient."""

    seconds: dict[str, float]
    iterations: int
    edges: int


class Rivals:
    """Evaluations beside an MD run: the model without its cache, and its network without heads."""

    def __init__(self, model: LoadedModel) -> None:
        config = ModelConfig.stored(model.metadata.config)
        bare = config.model_copy(update={"heads": [], "charge_feedback": False})
        # The weights do not matter for the time it takes.
        self._bare_model = untrained_model(bare, model.metadata.elements, model.device)
        self._bare = Evaluator([self._bare_model], 1.0, cache=False, threads=None)
        self._uncached = Evaluator([model], 1.0, cache=False, threads=None)

    def evaluate(self, atoms: Atoms) -> RivalResult:
        """Evaluate one geometry three times."""
        seconds = {}
        seconds["uncached"], uncached = _timed_evaluation(self._uncached, atoms)
        seconds["bare"], bare = _timed_evaluation(self._bare, atoms)
        vectors = bare.graph[fields.EDGE_VECTORS].detach().requires_grad_(True)
        recorded = {**bare.graph, fields.EDGE_VECTORS: vectors}
        start = time.perf_counter()
        self._bare_model.energy(recorded).detach().cpu()
        seconds["forward"] = time.perf_counter() - start
        counts = (fields.SOLVER_ITERATIONS, fields.CHARGE_ITERATIONS)
        iterations = sum(int(uncached.output[name]) for name in counts if name in uncached.output)
        return RivalResult(seconds, iterations, vectors.shape[0])


def _timed_evaluation(evaluator: Evaluator, atoms: Atoms) -> tuple[float, Evaluation]:
    """Seconds inside the model, and what it gave."""
    count, before = evaluator.timings()
    (evaluation,) = evaluator(atoms, conditions_of(atoms))
    now, after = evaluator.timings()
    return now * after["model"] - count * before["model"], evaluation


def peak_memory(device: torch.device) -> float:
    """MB: largest allocation so far on a GPU, else largest resident size; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_own_process(module: str, request: BoxRequest) -> dict[str, Any]:
    """What a module measures of one box, in a fresh interpreter, which gives its memory back.

    Raises
    ------
    PhicalcError
        That of the process, or UnsupportedError with its last words.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        finished = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(asdict(request)),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    kind: type[PhicalcError] = UnsupportedError
    if finished.returncode < 0:
        reason = f"its process was ended by signal {-finished.returncode}; out of memory?"
    elif finished.returncode > 0:
        reason = lines[-1] if lines else f"its process ended with status {finished.returncode}"
        raised = re.match(r"phicalc\.errors\.(\w+): (.*)", reason)
        if raised is not None:
            kind, reason = getattr(phicalc.errors, raised[1]), raised[2]
    else:
        found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return found
    raise kind(f"the box of {3 * request.molecules} atoms could not be run: {reason}")


if __name__ == "__main__":
    result = measure(BoxRequest(**json.load(sys.stdin)))
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
