"""Whole MD steps with and without what is kept between them, in turns.

    python tests/benchmarks/reuse_between_steps.py water 216     # molecules
    python tests/benchmarks/reuse_between_steps.py salt 4        # cells of 8 KCl along each axis
    python tests/benchmarks/reuse_between_steps.py phi 216       # Φ alone, molecules of water

The shipped models with their own parameters, exported anew so that their files hold all that this
phicalc can do; one thread. Three ways: nothing kept, starting vectors alone, and the aid besides
(the inverse of an earlier geometry, Φ: the Laplacian's eigenbasis) whether it pays or not. Each
follows its own copy of one NVE trajectory. Ratios are medians over turns of the wall time, and of
the CPU time, which other work on the machine disturbs less.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box
from phicalc.serving.export import export

MODELS = Path(__file__).resolve().parents[2] / "models"
SYSTEMS = {"water": "nacl-water.pt", "salt": "kcl-crystal.pt", "phi": "nacl-water-phi.pt"}
WAYS = ("nothing", "starts", "aid")


def start_of(system: str, size: int, model: Path) -> tuple[Atoms, float]:
    """A structure at 300 K and the time step | fs."""
    if system == "salt":
        atoms = bulk("KCl", "rocksalt", a=6.4, cubic=True) * (size, size, size)
    else:
        atoms = water_box(size, seed=0)
        atoms.calc = PhiCalculator(model, threads=1)
        FIRE(atoms, logfile=None).run(fmax=1.0, steps=40)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    return atoms, 2.0 if system == "salt" else 0.5


def calculator_of(model: Path, way: str) -> PhiCalculator:
    calculator = PhiCalculator(model, cache=way != "nothing", threads=1)
    for member in calculator._evaluator._members:
        member.cache.policy = "always" if way == "aid" else "never"
    return calculator


def measure(system: str, size: int, turns: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / SYSTEMS[system]
        export(MODELS / SYSTEMS[system], model)
        atoms, time_step = start_of(system, size, model)
        runs, counts = {}, {}
        for way in WAYS:
            copy = atoms.copy()
            copy.calc = calculator_of(model, way)
            runs[way] = VelocityVerlet(copy, time_step * units.fs)
            runs[way].run(16)
            counts[way] = copy.calc.cache_info()
        wall, cpu = {way: [] for way in WAYS}, {way: [] for way in WAYS}
        for turn in range(turns):
            for way in WAYS[:: 1 if turn % 2 == 0 else -1]:
                start, spent = time.perf_counter(), time.process_time()
                runs[way].run(steps)
                wall[way].append((time.perf_counter() - start) / steps)
                cpu[way].append((time.process_time() - spent) / steps)
    print(f"{system}, {len(atoms)} atoms, {turns} turns of {steps} steps")
    for way in WAYS:
        info = runs[way].atoms.calc.cache_info()
        done = {n: info[n] - counts[way][n] for n in ("solver_iterations", "solver_refreshes")}
        ratios = [
            np.median(np.array(times[way]) / np.array(times["nothing"])) for times in (wall, cpu)
        ]
        print(
            f"  {way:8s}{1e3 * min(wall[way]):7.1f} ms, wall {ratios[0]:.3f}, CPU {ratios[1]:.3f}, "
            f"{done['solver_iterations'] / (turns * steps):5.1f} iterations a step, "
            f"{done['solver_refreshes']} times made",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("system", choices=list(SYSTEMS))
    parser.add_argument("size", type=int)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    measure(arguments.system, arguments.size, arguments.turns, arguments.steps)
