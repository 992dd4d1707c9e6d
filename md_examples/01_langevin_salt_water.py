"""Langevin MD of sodium chloride in water: energies, forces, stress and charges, 300 K.

    python md_examples/01_langevin_salt_water.py [--steps 400]

Builds a box of 31 water molecules and one ion pair, relaxes its worst contacts, and runs Langevin
dynamics with the shipped model. Leaves in md_examples/output/: the trajectory with forces and
charges (langevin.traj, opens with ``ase gui``), a log (langevin.log), and langevin.png with
temperature, energy and the O–O radial distribution function g(r).
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.constraints import FixCom
from ase.io import Trajectory
from ase.md import MDLogger
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.workflows.structures import salt_water

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
TEMPERATURE = 300.0  # K
TIMESTEP = 0.5  # fs


def radial_distribution(frames, first, second, r_max, bins=60):
    """g(r) between two species, averaged over periodic frames: r (Å), g."""
    edges = np.linspace(0.0, r_max, bins + 1)
    counts = np.zeros(bins)
    pairs_per_volume = 0.0
    for atoms in frames:
        i = np.flatnonzero(atoms.symbols == first)
        j = np.flatnonzero(atoms.symbols == second)
        distances = atoms.get_all_distances(mic=True)[np.ix_(i, j)]
        counts += np.histogram(distances[distances > 1e-6], bins=edges)[0]
        number = len(i) * (len(j) - (first == second))
        pairs_per_volume += number / atoms.get_volume()
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    return 0.5 * (edges[1:] + edges[:-1]), counts / (shells * pairs_per_volume)


def main(steps: int, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    atoms = salt_water(n_water=31, n_pairs=1, seed=1)
    atoms.calc = PhiCalculator(MODEL)
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=60)
    atoms.set_constraint(FixCom())
    thermalize_momenta(atoms, TEMPERATURE, rng=np.random.default_rng(0))

    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP * units.fs,
        temperature_K=TEMPERATURE,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    )
    frames, times, temperatures, energies = [], [], [], []

    def record():
        frames.append(atoms.copy())
        times.append(dynamics.get_time() / (1000 * units.fs))
        temperatures.append(atoms.get_temperature())
        energies.append(atoms.get_potential_energy() / len(atoms))

    dynamics.attach(record, interval=5)
    logger = MDLogger(dynamics, atoms, output / "langevin.log", stress=True, mode="w")
    dynamics.attach(logger, interval=20)
    properties = ["energy", "forces", "stress", "charges"]
    with Trajectory(output / "langevin.traj", "w", atoms, properties=properties) as trajectory:
        dynamics.attach(trajectory.write, interval=10)
        dynamics.run(steps)

    charges = atoms.get_charges()
    print(f"{len(atoms)} atoms, {steps} steps of {TIMESTEP} fs at {TEMPERATURE:.0f} K")
    print(f"mean temperature of the second half {np.mean(temperatures[len(times) // 2 :]):.0f} K")
    print(f"energy {atoms.get_potential_energy():.3f} eV")
    print(f"stress {np.array2string(atoms.get_stress(), precision=5)} eV/Å³")
    for symbol in ("Na", "Cl", "O", "H"):
        print(f"mean charge of {symbol:2s} {charges[atoms.symbols == symbol].mean():+.3f} e")
    print(f"sum of charges {charges.sum():+.1e} e")

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(times, temperatures)
    left.axhline(TEMPERATURE, color="grey", linestyle=":")
    left.set(xlabel="time / ps", ylabel="temperature / K")
    middle.plot(times, energies)
    middle.set(xlabel="time / ps", ylabel="potential energy / eV per atom")
    r_max = 0.5 * min(atoms.cell.lengths())
    right.plot(*radial_distribution(frames[len(frames) // 2 :], "O", "O", r_max))
    right.set(xlabel="r / Å", ylabel="g(r) of O–O")
    figure.savefig(output / "langevin.png", dpi=120)
    print(f"wrote langevin.traj, langevin.log and langevin.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="MD steps of 0.5 fs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
