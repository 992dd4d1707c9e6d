"""Molecular dynamics that is broken off and taken up again, on the same trajectory.

    python md_examples/05_restart.py [--steps 400] [--output md_examples/output]

Runs salt water with a Nosé–Hoover chain twice: once without a break, and once killed on the way,
as if the machine had gone down, then restarted from its last checkpoint. On one CPU thread both
trajectories are the same to the last bit. On the command line the second run is

    phicalc md model.pt box.xyz -n 400 -T 300 --ensemble nose-hoover --timestep 0.5
    phicalc md model.pt box.xyz -n 400 -T 300 --ensemble nose-hoover --timestep 0.5 --restart

Leaves the folders restart-whole and restart-broken, each with trajectory, log, checkpoint and
md.png, and restart.png in the output folder; half a minute on one CPU thread.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from ase.io import read
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water
from phicalc.workflows.md import MDSettings, MolecularDynamics, read_log
from phicalc.workflows.relax import Relaxation, RelaxSettings

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"


class PowerFailure(BaseException):
    """No error that a program could handle: the run is gone, wherever it was."""


class Unreliable(PhiCalculator):
    """The calculator of a machine that goes down after some evaluations."""

    evaluations_left = 0

    def calculate(self, *args, **kwargs):
        self.evaluations_left -= 1
        if self.evaluations_left == 0:
            raise PowerFailure
        super().calculate(*args, **kwargs)


def start_structure():
    """A small box of salt water without its worst contacts."""
    atoms = salt_water(n_water=14, n_pairs=1, seed=1)
    atoms.calc = PhiCalculator(MODEL, threads=1)
    return Relaxation(atoms, RelaxSettings(optimizer="fire", max_force=1.0)).run().atoms


def run(atoms, settings, folder, calculator, restart=False):
    """Run in a folder of its own."""
    atoms.calc = calculator
    return MolecularDynamics(atoms, settings, folder).run(restart=restart)


def plot(whole, before, after, path):
    """The energies of the run without a break, and of the two halves on top of it."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label in (
        (left, "temperature_K", "temperature / K"),
        (right, "conserved_eV", "conserved energy − start / meV"),
    ):
        scale, shift = (1.0, 0.0) if axes is left else (1e3, whole[name][0])
        for rows, style, legend in (
            (whole, {"color": "lightgrey", "linewidth": 5.0}, "without a break"),
            (before, {"color": "tab:blue", "linewidth": 1.2}, "until it was killed"),
            (after, {"color": "tab:orange", "linewidth": 1.2}, "restarted"),
        ):
            values = scale * (rows[name] - shift)
            axes.plot(1e-3 * rows["time_fs"], values, label=legend, **style)
        axes.set(xlabel="time / ps", ylabel=label)
        axes.locator_params(axis="x", nbins=5)
    left.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(steps: int, output: Path) -> None:
    """Run without a break, run with one, compare."""
    folders = [output / "restart-whole", output / "restart-broken"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier call of this example
    atoms = start_structure()
    settings = MDSettings(
        steps=steps,
        ensemble="nose-hoover",
        temperature=300.0,
        timestep=0.5,
        trajectory_every=max(1, steps // 40),
        log_every=max(1, steps // 80),
        checkpoint_every=max(1, steps // 8),
    )
    whole = run(atoms, settings, folders[0], PhiCalculator(MODEL, threads=1))
    print(f"{steps} steps without a break: {whole.ns_per_day:.3f} ns/day")

    machine = Unreliable(MODEL, threads=1)
    machine.evaluations_left = int(0.7 * steps)
    try:
        run(atoms, settings, folders[1], machine)
    except PowerFailure:
        before = read_log(folders[1] / "md.log")
        print(f"killed after step {int(before['step'][-1])}")
    again = run(atoms, settings, folders[1], PhiCalculator(MODEL, threads=1), restart=True)
    resumed = settings.checkpoint_every * (int(before["step"][-1]) // settings.checkpoint_every)
    print(f"restarted from step {resumed}, done after step {again.steps}")

    frames, others = (read(folder / "md.traj", ":") for folder in folders)
    largest = max(
        np.abs(one.positions - two.positions).max() for one, two in zip(frames, others, strict=True)
    )
    print(f"{len(frames)} frames, largest difference of a position {largest:.1e} Å")
    after = again.log[again.log["step"] >= resumed]
    plot(whole.log, before, after, output / "restart.png")
    print(f"wrote restart.png and the folders restart-whole, restart-broken to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="MD steps of 0.5 fs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
