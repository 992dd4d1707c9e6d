"""What a simulation of water saves by keeping its electrostatics from step to step.

    python md_examples/08_reuse_between_steps.py [--molecules 216] [--turns 5]

Charges that flow are found anew at every step, by iterations that each cost a Coulomb sum over all
atoms. PhiCalculator starts them from the charges of the last steps, and a model file that was
exported since then also keeps the inverse of an earlier geometry's equations, which is nearly that
of the present one. The example exports the shipped model once more, with the same weights, and runs
the same molecular dynamics in three ways in turns, a few steps each: nothing kept (cache=False),
starts alone (the shipped file, which is older), starts and inverse. It prints the time of whole
steps, as ratios within each turn. The forces agree to what the iterations are converged to.

Leaves nacl-water-again.pt in the output folder; half a minute on one CPU thread. Where keeping
pays and where it does not: reuse.md, beside this file.
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
from phicalc.serving.export import export

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
    """Export, run in turns, report."""
    output.mkdir(parents=True, exist_ok=True)
    again = output / "nacl-water-again.pt"
    export(MODEL, again)
    calculators = {
        "nothing kept": PhiCalculator(again, cache=False, threads=1),
        "starts": PhiCalculator(MODEL, threads=1),
        "starts and inverse": PhiCalculator(again, threads=1),
    }

    atoms = water_box(molecules, seed=0)
    atoms.calc = calculators["nothing kept"]
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=20)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    runs = {name: dynamics_of(atoms, calculator) for name, calculator in calculators.items()}
    before = {name: calculator.cache_info() for name, calculator in calculators.items()}
    seconds = {name: [] for name in runs}
    for turn in range(turns):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(seconds_per_step(runs[name]))

    print(f"{len(atoms)} atoms, {turns} turns of {STEPS} steps each")
    for name, calculator in calculators.items():
        info = calculator.cache_info()
        ratios = np.array(seconds[name]) / np.array(seconds["nothing kept"])
        line = f"{name + ':':20s}{1e3 * min(seconds[name]):6.0f} ms a step, "
        line += f"{np.median(ratios):.2f} times that of nothing kept"
        if info["solver_steps"]:
            count = info["solver_iterations"] - before[name]["solver_iterations"]
            line += f", {count / (turns * STEPS):.1f} iterations ({info['solver_mode']})"
        print(line)

    moved = runs["starts and inverse"].atoms
    forces = moved.get_forces()
    difference = np.abs(forces - calculators["nothing kept"].get_forces(moved)).max()
    print(f"largest difference of a force from one with nothing kept: {difference:.1e} eV/Å")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=216)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.molecules, arguments.turns, arguments.output)
