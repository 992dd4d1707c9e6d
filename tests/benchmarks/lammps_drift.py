"""Drift of the energy in NVE, in LAMMPS and by our own integrator, from one state.

    python tests/benchmarks/lammps_drift.py [--steps 10000] [--pairs 1 --molecules 10]

Salt water, relaxed and warmed to 300 K, steps of 0.5 fs: the slope of the total energy, its
scatter about that line, and what the process's memory grew by after the first tenth.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.optimize import FIRE

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water
from phicalc.engines.lammps import attach, open_lammps
from phicalc.workflows.md import MDSettings, MolecularDynamics, read_log

MODEL = Path(__file__).resolve().parents[2] / "models" / "nacl-water.pt"
TIMESTEP = 0.5  # fs
EVERY = 20


def warm_box(molecules: int, pairs: int) -> Atoms:
    """Salt water at about 300 K."""
    atoms = salt_water(molecules, pairs, seed=3)
    atoms.calc = PhiCalculator(MODEL, device="cpu")
    FIRE(atoms, logfile=None).run(fmax=0.3, steps=80)
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    friction = 0.02 / units.fs
    bath = {"temperature_K": 300, "friction": friction, "rng": np.random.default_rng(1)}
    Langevin(atoms, TIMESTEP * units.fs, **bath).run(400)
    Stationary(atoms)
    return atoms


def memory() -> float:
    """MB that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def in_lammps(atoms: Atoms, steps: int, folder: Path) -> tuple[np.ndarray, float]:
    """Total energies | eV every so many steps, and growth of memory | MB."""
    write(
        folder / "box.data", atoms, format="lammps-data", masses=True, velocities=True,
        atom_style="charge", units="metal",
    )  # fmt: skip
    lmp = open_lammps(["-log", "none", "-screen", "none"])
    lmp.commands_string(
        f"units metal\natom_style charge\nread_data {folder / 'box.data'}\n"
        f"timestep {TIMESTEP / 1000}\nfix 1 all nve\n"
    )
    attach(lmp, MODEL, device="cpu")
    lmp.command("run 0 post no")
    energies, held = [lmp.get_thermo("etotal")], 0.0
    for block in range(steps // EVERY):
        lmp.command(f"run {EVERY} post no")
        energies.append(lmp.get_thermo("etotal"))
        if block == steps // EVERY // 10:
            held = memory()
    return np.array(energies), memory() - held


def in_our_own(atoms: Atoms, steps: int, folder: Path) -> np.ndarray:
    """The same by `phicalc md`, whose log has the energies."""
    held = atoms.copy()
    held.calc = PhiCalculator(MODEL, device="cpu")
    settings = MDSettings(ensemble="nve", steps=steps, timestep=TIMESTEP, log_every=EVERY)
    MolecularDynamics(held, settings, folder / "md").run()
    log = read_log(folder / "md" / "md.log")
    return np.asarray(log["potential_eV"] + log["kinetic_eV"])


def report(name: str, energies: np.ndarray, atoms: Atoms) -> str:
    """Slope and scatter."""
    per_atom = 1e3 * energies / len(atoms)
    times = np.arange(len(per_atom)) * EVERY * TIMESTEP / 1000
    line = np.polyfit(times, per_atom, 1)
    scatter = np.std(per_atom - np.polyval(line, times))
    return f"{name}: drift {line[0]:+.4f} meV/atom/ps, scatter {scatter:.4f} meV/atom"


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--molecules", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=1)
    arguments = parser.parse_args()
    atoms = warm_box(arguments.molecules, arguments.pairs)
    print(f"{len(atoms)} atoms, {arguments.steps} steps of {TIMESTEP} fs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        energies, growth = in_lammps(atoms, arguments.steps, folder)
        print(f"{report('LAMMPS', energies, atoms)}, memory {growth:+.1f} MB")
        print(report("phicalc md", in_our_own(atoms, arguments.steps, folder), atoms))


if __name__ == "__main__":
    main()
