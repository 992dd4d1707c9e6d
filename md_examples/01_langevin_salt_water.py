"""Langevin MD of sodium chloride in water: energies, forces, stress and charges, 300 K.

    python md_examples/01_langevin_salt_water.py [--steps 1000] [--output md_examples/output]

Builds a box of 31 water molecules and one ion pair, relaxes its worst contacts, and runs Langevin
dynamics with the shipped model: some 40 seconds on one CPU thread. Leaves in the output
folder the trajectory with forces, stress and charges (langevin.traj, opens with ``ase gui``), a
log (langevin.log), and langevin.png with temperature, energy and the radial distribution functions
g(r) of O–O, and of the ions and the water around them. Half a picosecond of one ion pair is for a
look; tests/benchmarks/salt_water_md.py runs for long.
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
from phicalc.data.boxes import salt_water

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
TEMPERATURE = 300.0  # K
TIMESTEP = 0.5  # fs
FRICTION = 0.02  # 1/fs: strong, so that a short run reaches its temperature
XRAY_PEAK = 2.80  # Å, O–O in water at 295 K, doi:10.1063/1.4790861
SHELLS = {("O", "O"): 3.4, ("Na", "O"): 3.2, ("Cl", "H"): 3.0, ("Na", "Cl"): 3.7}  # outer radius, Å


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


def coordination(frames, first, second, radius):
    """Mean number of atoms of the second species closer than a radius (Å) to one of the first."""
    count = 0
    for atoms in frames:
        i, j = atoms.symbols == first, atoms.symbols == second
        distances = atoms.get_all_distances(mic=True)[np.ix_(i, j)]
        count += np.count_nonzero((distances > 1e-6) & (distances < radius)) / i.sum()
    return count / len(frames)


def plot(times, temperatures, energies, curves, path):
    """Temperature, energy and g(r), side by side."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(times, temperatures, color="tab:red", linewidth=1.2)
    left.axhline(TEMPERATURE, color="grey", linestyle=":", label="thermostat")
    left.legend(frameon=False, loc="lower right")
    left.set(xlabel="time / ps", ylabel="temperature / K")
    relative = 1e3 * (np.array(energies) - energies[0])
    middle.plot(times, relative, color="tab:blue", linewidth=1.2)
    middle.set(xlabel="time / ps", ylabel="potential energy − start\n/ meV per atom")
    for label, (distances, g) in curves.items():
        right.plot(distances, g, linewidth=1.3, label=label)
    right.axvline(XRAY_PEAK, color="grey", linestyle=":", label="O–O by X-rays")
    right.axhline(1.0, color="lightgrey", linewidth=0.8, zorder=0)
    right.legend(frameon=False, fontsize=8, handlelength=1.0)
    right.set(xlabel="r / Å", ylabel="g(r)", xlim=(1.5, distances[-1]), ylim=(0.0, None))
    figure.savefig(path, dpi=110)


def main(steps: int, output: Path) -> None:
    """Build, run, report and draw."""
    output.mkdir(parents=True, exist_ok=True)

    # A starting structure, without its worst contacts and with velocities of 300 K.
    atoms = salt_water(n_water=31, n_pairs=1, seed=1)
    atoms.calc = PhiCalculator(MODEL)
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=60)
    atoms.set_constraint(FixCom())
    thermalize_momenta(atoms, TEMPERATURE, rng=np.random.default_rng(0))

    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP * units.fs,
        temperature_K=TEMPERATURE,
        friction=FRICTION / units.fs,
        fixcm=False,  # the constraint holds the centre of mass
        rng=np.random.default_rng(1),
    )
    print(f"{len(atoms)} atoms, {steps} steps of {TIMESTEP} fs at {TEMPERATURE:.0f} K")

    # What is recorded on the way.
    frames, times, temperatures, energies = [], [], [], []

    def record():
        frames.append(atoms.copy())
        times.append(dynamics.get_time() / (1000 * units.fs))
        temperatures.append(atoms.get_temperature())
        energies.append(atoms.get_potential_energy() / len(atoms))

    def report():
        step, energy = dynamics.get_number_of_steps(), atoms.get_potential_energy()
        print(f"step {step:5d}  {atoms.get_temperature():4.0f} K  {energy:.3f} eV", flush=True)

    dynamics.attach(record, interval=5)
    dynamics.attach(report, interval=100)
    logger = MDLogger(dynamics, atoms, output / "langevin.log", stress=True, mode="w")
    dynamics.attach(logger, interval=20)
    properties = ["energy", "forces", "stress", "charges"]
    with Trajectory(output / "langevin.traj", "w", atoms, properties=properties) as trajectory:
        dynamics.attach(trajectory.write, interval=10)
        dynamics.run(steps)

    # Every property of the last step comes from one evaluation of the model.
    half = len(frames) // 2
    charges = atoms.get_charges()
    forces = np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1)
    pressure = -np.trace(atoms.get_stress(voigt=False)) / 3 / units.GPa
    print(f"mean temperature of the second half {np.mean(temperatures[half:]):.0f} K")
    print(f"energy {atoms.get_potential_energy():.3f} eV, largest force {forces.max():.2f} eV/Å")
    print(f"stress {np.array2string(atoms.get_stress(), precision=5)} eV/Å³")
    print(f"pressure without the atoms' motion {pressure:+.2f} GPa")
    for symbol in ("Na", "Cl", "O", "H"):
        print(f"mean charge of {symbol:2s} {charges[atoms.symbols == symbol].mean():+.3f} e")
    print(f"sum of charges {charges.sum():+.1e} e")

    curves = {}
    for (first, second), radius in SHELLS.items():
        r, g = radial_distribution(frames[half:], first, second, 0.5 * min(atoms.cell.lengths()))
        number = coordination(frames[half:], first, second, radius)
        curves[f"{first}–{second}: {number:.1f} within {radius} Å"] = r, g
        print(f"around {first:2s} {number:4.1f} {second:2s} within {radius} Å")
        if first == second == "O":
            print(f"first peak of the O–O g(r) at {r[np.argmax(g * (r < 3.4))]:.2f} Å")
    plot(times, temperatures, energies, curves, output / "langevin.png")
    print(f"wrote langevin.traj, langevin.log and langevin.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="MD steps of 0.5 fs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
