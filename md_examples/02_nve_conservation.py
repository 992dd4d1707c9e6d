"""Is the energy conserved? Velocity Verlet of salt water with nothing to hold its temperature.

    python md_examples/02_nve_conservation.py [--steps 1000] [--timestep 0.5]

Forces that are the exact gradient of a smooth energy conserve the total energy: what kinetic
energy gains, potential energy loses, and all that is left is the integrator's own ripple, which
shrinks with the square of the time step (try --timestep 0.25). The example warms a box of salt
water up with a short Langevin run, switches the thermostat off, and prints how far the total
energy wanders. The list of neighbours is reused until atoms have moved half its skin; the last
lines say how often that was.

Leaves nve.traj and nve.png in the output folder; half a minute on one CPU thread.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.constraints import FixCom
from ase.io import Trajectory
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
TEMPERATURE = 300.0  # K


def warmed_up(atoms, steps):
    """Relax the worst contacts, then a short Langevin run at 300 K."""
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=60)
    atoms.set_constraint(FixCom())
    thermalize_momenta(atoms, TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = Langevin(
        atoms,
        timestep=0.5 * units.fs,
        temperature_K=TEMPERATURE,
        friction=0.05 / units.fs,
        fixcm=False,  # the constraint holds the centre of mass
        rng=np.random.default_rng(1),
    )
    dynamics.run(steps)
    atoms.set_constraint()


def plot(times, kinetic, potential, slope, path):
    """Energies per atom relative to the start; the total once more on a scale of its own."""
    total = kinetic + potential
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(times, kinetic - kinetic[0], color="tab:red", linewidth=1.0, label="kinetic")
    left.plot(times, potential - potential[0], color="tab:blue", linewidth=1.0, label="potential")
    left.plot(times, total - total[0], color="black", linewidth=1.5, label="total")
    left.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    left.set(xlabel="time / ps", ylabel="energy − start / meV per atom")
    right.plot(times, total - total[0], color="black", linewidth=0.8, label="total")
    fit = slope * (times - times.mean()) + (total - total[0]).mean()
    right.plot(times, fit, color="tab:orange", label=f"drift {slope:+.3f} meV/atom/ps")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    right.set(xlabel="time / ps", ylabel="total energy − start / meV per atom")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=6)
    figure.savefig(path, dpi=110)


def main(steps: int, timestep: float, equilibration: int, output: Path) -> None:
    """Warm up, run, report and draw."""
    output.mkdir(parents=True, exist_ok=True)
    atoms = salt_water(n_water=31, n_pairs=1, seed=1)
    atoms.calc = PhiCalculator(MODEL)
    print(f"{len(atoms)} atoms, {equilibration} steps of Langevin dynamics first", flush=True)
    warmed_up(atoms, equilibration)

    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    times, kinetic, potential = [], [], []

    def record():
        times.append(dynamics.get_time() / (1000 * units.fs))
        kinetic.append(1e3 * atoms.get_kinetic_energy() / len(atoms))
        potential.append(1e3 * atoms.get_potential_energy() / len(atoms))

    def report():
        energy, temperature = kinetic[-1] + potential[-1], atoms.get_temperature()
        moved = energy - kinetic[0] - potential[0]
        step = dynamics.get_number_of_steps()
        print(f"step {step:5d}  {temperature:4.0f} K  {moved:+.4f} meV/atom", flush=True)

    dynamics.attach(record, interval=2)
    dynamics.attach(report, interval=100)
    with Trajectory(output / "nve.traj", "w", atoms, properties=["energy"]) as trajectory:
        dynamics.attach(trajectory.write, interval=2)
        dynamics.run(steps)

    times, kinetic, potential = np.array(times), np.array(kinetic), np.array(potential)
    total = kinetic + potential
    slope, offset = np.polyfit(times, total, 1)
    ripple = np.std(total - (slope * times + offset))
    print(f"velocity Verlet, {steps} steps of {timestep} fs, in meV per atom:")
    print(f"  kinetic energy varies by {np.std(kinetic):.3f}")
    print(f"  total energy varies by   {ripple:.3f} about its drift")
    print(f"  drift {slope:+.4f} per ps")
    print("cache_info():")
    for name, value in atoms.calc.cache_info().items():
        print(f"  {name:22s} {value:.4g}" if isinstance(value, float) else f"  {name:22s} {value}")
    plot(times, kinetic, potential, slope, output / "nve.png")
    print(f"wrote nve.traj and nve.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="steps without thermostat")
    parser.add_argument("--timestep", type=float, default=0.5, help="of these steps, fs")
    parser.add_argument("--equilibration", type=int, default=400, help="Langevin steps first")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.timestep, arguments.equilibration, arguments.output)
