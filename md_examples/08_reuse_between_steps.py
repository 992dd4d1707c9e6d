"""What a simulation of water saves by keeping its electrostatics from step to step.

    python md_examples/08_reuse_between_steps.py [--molecules 216] [--turns 5]

Charges that flow are found anew at every step, by iterations that each cost a Coulomb sum over all
atoms. PhiCalculator starts them from the charges of the last steps, and keeps the inverse of an
earlier geometry's equations, which is nearly that of the present one. The example runs the same
molecular dynamics with nothing kept (cache=False) and with both, in turns of a few steps. It prints
the time of whole steps, as ratios within each turn. The forces agree to what the iterations are
converged to.

Leaves seconds.csv in the output folder; half a minute on one CPU thread. Where keeping pays and
where it does not: reuse.md, beside this file.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
SETTLING = 16  # steps in which the cache finds out what pays
STEPS = 4  # of each way in each turn


def dynamics_of(atoms, calculator):
    """The same start under another calculator, some steps on."""
    copy = atoms.copy()
    copy.calc = calculator
    dynamics = VelocityVerlet(copy, 0.5 * units.fs)
    dynamics.run(SETTLING)
    return dynamics


def seconds_per_step(dynamics):
    """Wall time of whole steps."""
    start = time.perf_counter()
    dynamics.run(STEPS)
    return (time.perf_counter() - start) / STEPS


def main(molecules: int, turns: int, output: Path) -> None:
    """Run in turns, report."""
    output.mkdir(parents=True, exist_ok=True)
    cold, warm = PhiCalculator(MODEL, cache=False, threads=1), PhiCalculator(MODEL, threads=1)

    atoms = water_box(molecules, seed=0)
    atoms.calc = cold
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=20)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    runs = {"nothing kept": dynamics_of(atoms, cold), "kept": dynamics_of(atoms, warm)}
    before = warm.cache_info()["solver_iterations"]
    seconds = {name: [] for name in runs}
    for turn in range(turns):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(seconds_per_step(runs[name]))

    info = warm.cache_info()
    iterations = (info["solver_iterations"] - before) / (turns * STEPS)
    again = PhiCalculator(MODEL, threads=1)  # has nothing to start from
    moved = runs["kept"].atoms
    difference = np.abs(moved.get_forces() - again.get_forces(moved)).max()

    table = np.array(list(seconds.values())).T
    np.savetxt(output / "seconds.csv", table, delimiter=",", header=",".join(seconds))
    print(f"{len(atoms)} atoms, {turns} turns of {STEPS} steps each")
    for name, times in zip(seconds, table.T, strict=True):
        ratio = np.median(times / table[:, 0])
        print(f"{name + ':':14s}{1e3 * times.min():6.0f} ms a step, ratio {ratio:.2f}")
    print(f"iterations from nothing: {again.cache_info()['solver_last_iterations']}")
    print(f"iterations with what is kept: {iterations:.1f} ({info['solver_mode']})")
    print(f"largest difference of a force: {difference:.1e} eV/Å")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=216)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.molecules, arguments.turns, arguments.output)
