"""What the charge heads cost per MD step, from 192 to 10,000 atoms of water.

    python tests/benchmarks/coulomb_heads.py -o heads.json --plot heads.png   # 15 minutes

PaiNN 64 × 3, r_c 5 Å, float32, random weights, one thread, Langevin dynamics in steps of 0.5 fs.
Every head on every box has a process of its own. In it the geometry of each step is also evaluated
by the same network without heads, so that shares are of one run: time that the head adds over the
time of the step without it. Times are CPU seconds of the process, medians over the steps;
iterations are those of conjugate gradients, cold (the first step) and warm (the mean after four);
memory is the largest resident size.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.bench.box import langevin, peak_memory, untrained_model
from phicalc.data.boxes import water_box
from phicalc.model.config import ModelConfig

SIZES = (192, 648, 3000, 10_000)
HEADS: dict[str, list[dict]] = {
    "none": [],
    "phi": [{"kind": "phi"}],
    "qeq": [{"kind": "qeq"}],
    "phi-coulomb": [{"kind": "phi-coulomb"}],
    "local": [{"kind": "local"}],
}
SETTLING = 4  # steps until the start of a solve is extrapolated from three others


@dataclass
class HeadResult:
    """One head on one box of water."""

    head: str
    atoms: int
    steps: int
    step_ms: float
    head_ms: float
    share: float
    """Time of the head over that of the step without it."""
    cold_iterations: int
    warm_iterations: float
    peak_memory_MB: float


class Stopwatch:
    """Runs a function and keeps the CPU seconds of each call."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.seconds: list[float] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        before = time.process_time()
        result = self.function(*arguments, **named)
        self.seconds.append(time.process_time() - before)
        return result


def measure(head: str, size: int, steps: int, seconds: float) -> HeadResult:
    """MD with one head; at least three steps count, and none is begun after ``seconds``."""
    torch.set_num_threads(1)
    calculator = PhiCalculator(untrained_model(ModelConfig(heads=HEADS[head]), [1, 8]))
    bare = PhiCalculator(untrained_model(ModelConfig(heads=[]), [1, 8]))
    atoms = water_box(size // 3, seed=0)
    dynamics = langevin(atoms, calculator, 0)
    evaluate = calculator.calculate = Stopwatch(calculator.calculate)
    step, without = Stopwatch(dynamics.step), Stopwatch(bare.calculate)
    iterations = []
    start = time.perf_counter()
    atoms.get_forces()  # cold
    cold = int(calculator.cache_info()["solver_last_iterations"])
    evaluate.seconds.clear()
    while len(iterations) < steps + SETTLING:
        if len(iterations) >= SETTLING + 3 and time.perf_counter() - start > seconds:
            break
        step()
        iterations.append(float(calculator.cache_info()["solver_last_iterations"]))
        without(atoms, ["energy", "forces"], ["positions"])
    added = differences(evaluate.seconds, without.seconds) if head != "none" else 0.0
    total = median(step.seconds[SETTLING:])
    return HeadResult(
        head=head,
        atoms=len(atoms),
        steps=len(iterations) - SETTLING,
        step_ms=1e3 * total,
        head_ms=1e3 * added,
        share=added / (total - added),
        cold_iterations=cold,
        warm_iterations=mean(iterations[SETTLING:]),
        peak_memory_MB=peak_memory(torch.device("cpu")),
    )


def differences(longer: Sequence[float], shorter: Sequence[float]) -> float:
    """Median of what one took longer than the other on the same geometry, once settled."""
    pairs = list(zip(longer, shorter, strict=True))[SETTLING:]
    return median(a - b for a, b in pairs)


def in_own_process(head: str, size: int, steps: int, seconds: float) -> HeadResult:
    """The same in a fresh interpreter, for its memory."""
    command = [sys.executable, __file__, "--one", head, str(size), str(steps), str(seconds)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return HeadResult(**json.loads(finished.stdout.splitlines()[-1]))


def draw(results: Sequence[HeadResult], path: Path) -> None:
    """Share of the step, iterations and memory against the number of atoms."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    shares, counts, memory = figure.subplots(1, 3)
    for head in HEADS:
        rows = [row for row in results if row.head == head]
        atoms = [row.atoms for row in rows]
        memory.loglog(atoms, [row.peak_memory_MB / 1e3 for row in rows], "o-", label=head)
        if head == "none" or not rows:
            continue
        (line,) = shares.semilogx(atoms, [1e2 * row.share for row in rows], "o-", label=head)
        if any(row.cold_iterations for row in rows):
            cold = [row.cold_iterations for row in rows]
            warm = [row.warm_iterations for row in rows]
            counts.semilogx(atoms, cold, "o:", color=line.get_color(), label=f"{head}, cold")
            counts.semilogx(atoms, warm, "o-", color=line.get_color(), label=f"{head}, warm")
    shares.axhline(30.0, ls=":", color="grey")
    shares.set(xlabel="atoms", ylabel="% of the step without head", title="cost of the heads")
    counts.set(xlabel="atoms", ylabel="iterations", title="conjugate gradients")
    memory.set(xlabel="atoms", ylabel="GB", title="peak memory")
    for axes in (shares, counts, memory):
        axes.set_ylim(bottom=0) if axes is not memory else None
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path, default=Path("coulomb_heads.json"))
    parser.add_argument("--plot", type=Path, default=Path("coulomb_heads.png"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, *numbers = arguments.one
        row = measure(name, int(numbers[0]), int(numbers[1]), float(numbers[2]))
        print(json.dumps(asdict(row)))
        sys.exit()
    results = []
    for size in arguments.sizes:
        for name in arguments.heads:
            row = in_own_process(name, size, arguments.steps, arguments.seconds)
            results.append(row)
            print(
                f"{row.atoms:>6} atoms {name:<12} {row.step_ms:8.1f} ms per step, head "
                f"{row.head_ms:7.1f} ms = {row.share:6.1%}, iterations "
                f"{row.cold_iterations:>3} cold {row.warm_iterations:5.1f} warm, "
                f"{row.peak_memory_MB:6.0f} MB",
                flush=True,
            )
            arguments.output.write_text(json.dumps([asdict(row) for row in results], indent=2))
    draw(results, arguments.plot)
