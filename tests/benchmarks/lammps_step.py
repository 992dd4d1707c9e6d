"""One MD step in LAMMPS beside one of `phicalc md`, of the same box, in turns in one run.

    python tests/benchmarks/lammps_step.py [--model models/nacl-water.pt] [--atoms 648] [--blocks 8]

NVE of liquid water, a block of steps each in turn, each going on from where it was; medians over
blocks of the processor's time, on which other work of the machine hardly tells. `phicalc md`
writes its log and a last frame; it begins every block anew, with one more evaluation and a new
neighbour list, so that ASE's velocity Verlet with our calculator, which goes on as LAMMPS does, is
the sharper measure of what LAMMPS adds to a step.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from ase import units
from ase.io import write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box
from phicalc.engines.lammps import attach, open_lammps
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings

MODEL = Path(__file__).resolve().parents[2] / "models" / "nacl-water.pt"
TIMESTEP = 0.25  # fs
WARM_UP = 1  # blocks


def lammps_steps(box, model, folder):
    """A function that runs so many steps in LAMMPS."""
    write(
        folder / "box.data", box, format="lammps-data", masses=True, velocities=True,
        specorder=["H", "O"], atom_style="charge", units="metal",
    )  # fmt: skip
    lmp = open_lammps(["-log", "none", "-screen", "none"])
    lmp.commands_string(
        f"units metal\natom_style charge\nread_data {folder / 'box.data'}\n"
        f"timestep {TIMESTEP / 1000}\nfix 1 all nve\n"
    )
    attach(lmp, model)
    lmp.command("run 0")
    return lambda steps: lmp.command(f"run {steps} pre no post no")


def ase_steps(box, model):
    """The same with ASE's integrator."""
    box.calc = PhiCalculator(model)
    return VelocityVerlet(box, TIMESTEP * units.fs).run


def md_steps(box, model, folder):
    """The same by `phicalc md`."""
    box.calc = PhiCalculator(model)
    folders = (folder / f"md-{number}" for number in range(10**6))

    def run(steps):
        settings = MDSettings(
            steps=steps, ensemble="nve", timestep=TIMESTEP, trajectory_every=steps, log_every=10
        )
        MolecularDynamics(box, settings, next(folders)).run()

    return run


def main(model, atoms, blocks, steps):
    """Measure and print."""
    box = water_box(atoms // 3, seed=0)
    thermalize_momenta(box, 300.0, rng=np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        rivals = {
            "LAMMPS": lammps_steps(box.copy(), model, Path(name)),
            "ASE's velocity Verlet": ase_steps(box.copy(), model),
            "phicalc md": md_steps(box.copy(), model, Path(name)),
        }
        seconds = {rival: [] for rival in rivals}
        for _ in range(blocks + WARM_UP):
            for rival, run in rivals.items():
                start = time.process_time()
                run(steps)
                seconds[rival].append((time.process_time() - start) / steps)
    found = {rival: median(values[WARM_UP:]) for rival, values in seconds.items()}
    for rival, value in found.items():
        print(
            f"{rival}: {1e3 * value:.2f} ms per step, {1e6 * value / len(box):.1f} µs per atom; "
            f"LAMMPS takes {found['LAMMPS'] / value:.3f} of it"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--atoms", type=int, default=648)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    arguments = parser.parse_args()
    main(arguments.model, arguments.atoms, arguments.blocks, arguments.steps)
