"""Plain MD steps of one network without a head and with each of some, and the memory they take.

`python -m phicalc.bench.steps` reads a `BoxRequest` as JSON and writes a `StepResult` as JSON, so
that the peak memory it reports is that of this box alone. Nothing is measured beside the steps:
where their time goes is what :mod:`phicalc.bench.box` tells.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from phicalc.bench.box import (
    LEAST_STEPS,
    WARM_UP_STEPS,
    BoxRequest,
    box_of_water,
    in_own_process,
    langevin,
    peak_memory,
    untrained_model,
)
from phicalc.engines.ase import PhiCalculator
from phicalc.machine.files import write_bytes
from phicalc.model.config import ModelConfig
from phicalc.serving.metadata import read_metadata
from phicalc.serving.model_file import load_model

HEADS = {"no head": (), "phi": ("phi",), "phi-coulomb": ("phi-coulomb",)}
"""Rows of the table: what stands on the network."""


@dataclass(frozen=True)
class StepResult:
    """Plain MD steps of one box of water.

    Attributes
    ----------
    atoms, steps
        N, and how many steps were measured.
    seconds
        Mean wall seconds per step, ASE's integrator and neighbour rebuilds included.
    memory
        MB that the steps needed at most, besides what was there before the first.
    solver_iterations, neighbour_reuse
        Iterations per step, and share of the steps on which the neighbour list was reused.
    heads
        Key of `HEADS`.
    """

    atoms: int
    steps: int
    seconds: float
    memory: float
    solver_iterations: float
    neighbour_reuse: float
    heads: str = ""

    @property
    def microseconds_per_atom(self) -> float:
        """µs of a step per atom."""
        return 1e6 * self.seconds / self.atoms

    @property
    def memory_per_atom(self) -> float:
        """MB per atom."""
        return self.memory / self.atoms


def measure_steps(request: BoxRequest) -> StepResult:
    """Run MD on the box."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    atoms = box_of_water(request.molecules, request.seed)
    calculator = PhiCalculator(load_model(request.path, device), device=request.device)
    before = peak_memory(device)
    dynamics = langevin(atoms, calculator, request.seed)
    dynamics.run(WARM_UP_STEPS)
    start_info, steps = calculator.cache_info(), 0
    start = time.perf_counter()
    while steps < request.steps:
        if steps >= LEAST_STEPS and time.perf_counter() - start > request.seconds:
            break
        dynamics.step()
        steps += 1
    seconds = (time.perf_counter() - start) / steps
    info = calculator.cache_info()
    done = {
        name: (float(info[name]) - float(start_info[name])) / steps
        for name in ("solver_iterations", "neighbour_rebuilds")
    }
    return StepResult(
        len(atoms),
        steps,
        seconds,
        peak_memory(device) - before,
        done["solver_iterations"],
        1.0 - done["neighbour_rebuilds"],
    )


def heads_table(
    model: str | Path,
    sizes: Sequence[int],
    *,
    steps: int = 100,
    seconds: float = 60.0,
    device: torch.device,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[StepResult], None] | None = None,
) -> list[StepResult]:
    """Steps of a model's network, with random weights, under each of `HEADS` at each size.

    Arguments and errors as of `phicalc.bench.report.run_bench`.
    """
    metadata = read_metadata(model)
    results: list[StepResult] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kinds in HEADS.items():
            path = Path(folder) / f"{name}.pt"
            stored = ModelConfig.stored(metadata.config).model_dump()
            config = ModelConfig.model_validate(
                {**stored, "heads": [{"kind": k} for k in kinds], "charge_feedback": False}
            )
            write_bytes(path, untrained_model(config, metadata.elements).data)
            for size in sizes:
                request = BoxRequest(
                    str(path), size // 3, steps, seconds, str(device), threads, seed
                )
                found = in_own_process(__name__, request)
                results.append(StepResult(**{**found, "heads": name}))
                if progress is not None:
                    progress(results[-1])
    return results


if __name__ == "__main__":
    result = measure_steps(BoxRequest(**json.load(sys.stdin)))
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
