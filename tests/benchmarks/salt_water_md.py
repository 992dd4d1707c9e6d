"""Is the shipped salt-water model fit for MD? Long runs, and what they are judged by.

    python tests/benchmarks/salt_water_md.py langevin --ps 25 --pairs 2 -o langevin.json
    python tests/benchmarks/salt_water_md.py nve --ps 20 --model nacl-water-float64.pt -o nve.json

``langevin`` samples 31 H2O and NaCl at 300 K with steps of 0.5 fs: temperature, g(r) of O–O, Na–O,
Cl–H and Na–Cl with coordination numbers up to the first minimum, hydrogens further than 1.3 Å from
their oxygen at any recorded time, the closest hydrogens of different molecules, charges by species,
their spread and whether they move from the first half of the run to the second, and the growth of
resident memory after the first 2,000 steps. ``nve`` equilibrates for 2 ps and fits the drift of
the total energy over the run, and that of the energy which velocity Verlet itself conserves to the
next order in the time step. Both write JSON and a PNG beside it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import psutil
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water
from phicalc.serving.model_file import load_model

MODEL = Path(__file__).resolve().parents[2] / "models" / "nacl-water.pt"
TIMESTEP = 0.5 * units.fs
TEMPERATURE = 300.0
BROKEN = 1.3  # Å
SPECIES = ("Na", "Cl", "O", "H")


def equilibrated(calculator: PhiCalculator, pairs: int, steps: int) -> Atoms:
    """A box of salt water at 300 K."""
    atoms = salt_water(n_water=31, n_pairs=pairs, seed=1)
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=200)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    langevin(atoms, friction=0.05).run(steps)
    return atoms


def langevin(atoms: Atoms, friction: float) -> Langevin:
    """ASE's Langevin integrator, the centre of mass held by a constraint."""
    atoms.set_constraint(FixCom())
    return Langevin(
        atoms,
        TIMESTEP,
        temperature_K=TEMPERATURE,
        friction=friction / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    )


def broken_bonds(atoms: Atoms) -> int:
    """Hydrogens that left the oxygen they started on (O H H, O H H, … in the file)."""
    oxygen = np.flatnonzero(atoms.numbers == 8)
    distances = [atoms.get_distance(o, o + h, mic=True) for o in oxygen for h in (1, 2)]
    return int((np.array(distances) > BROKEN).sum())


def closest_contact(atoms: Atoms, distances: np.ndarray) -> float:
    """Shortest distance between hydrogens of different molecules; below 1.5 Å is a hole."""
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    molecule = np.arange(len(hydrogen)) // 2
    other = molecule[:, None] != molecule[None, :]
    return float(distances[np.ix_(hydrogen, hydrogen)][other].min())


class PairDistribution:
    """g(r) between two species and the number of the second around the first, frame by frame."""

    def __init__(self, first: int, second: int, r_max: float, bins: int = 120) -> None:
        self.first, self.second = first, second
        self.edges = np.linspace(0.0, r_max, bins + 1)
        self.counts = np.zeros(bins)
        self.density = 0.0
        self.centres = 0

    def add(self, atoms: Atoms, distances: np.ndarray) -> None:
        i, j = atoms.numbers == self.first, atoms.numbers == self.second
        found = distances[np.ix_(i, j)]
        self.counts += np.histogram(found[found > 1e-6], self.edges)[0]
        self.centres += int(i.sum())
        self.density += i.sum() * (j.sum() - (self.first == self.second)) / atoms.get_volume()

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        shells = 4 / 3 * np.pi * np.diff(self.edges**3)
        return 0.5 * (self.edges[1:] + self.edges[:-1]), self.counts / (shells * self.density)

    @property
    def neighbours(self) -> np.ndarray:
        """Mean number of the second species closer than the outer edge of each bin."""
        return np.cumsum(self.counts) / self.centres

    def first_shell(self) -> dict[str, float]:
        """Position and height of the first peak, and the number of neighbours up to the minimum.

        The first peak is the highest of the first 1.2 Å beyond the closest pair; the minimum, of
        g smoothed over five bins, is looked for in the 1.5 Å that follow it.
        """
        r, g = self.curve
        begin = r[np.argmax(g > 0)]
        peak = int(np.argmax(np.where(r < begin + 1.2, g, 0.0)))
        smooth = np.convolve(g, np.ones(5) / 5, mode="same")
        beyond = (r > r[peak]) & (r < min(r[peak] + 1.5, r[-3]))
        end = int(np.argmin(np.where(beyond, smooth, np.inf)))
        return {
            "peak_A": float(r[peak]),
            "height": float(g[peak]),
            "minimum_A": float(r[end]),
            "coordination": float(self.neighbours[end]),
        }


def run_langevin(calculator: PhiCalculator, pairs: int, picoseconds: float, png: Path) -> dict:
    atoms = equilibrated(calculator, pairs, 2000)
    dynamics = langevin(atoms, friction=0.01)
    steps = round(picoseconds * 1000 / 0.5)
    r_max = atoms.cell.lengths().min() / 2
    species = {"O-O": (8, 8), "Na-O": (11, 8), "Cl-H": (17, 1), "Na-Cl": (11, 17)}
    curves = {name: PairDistribution(*numbers, r_max) for name, numbers in species.items()}
    rows, memory, contacts = [], [], []
    process = psutil.Process()

    def record() -> None:
        charges = atoms.get_charges()
        distances = atoms.get_all_distances(mic=True)
        contacts.append(closest_contact(atoms, distances))
        rows.append(
            [atoms.get_temperature(), atoms.get_potential_energy(), broken_bonds(atoms)]
            + [charges[atoms.numbers == z].mean() for z in (11, 17, 8, 1)]
        )
        for curve in curves.values():
            curve.add(atoms, distances)
        memory.append(process.memory_info().rss / 1e6)

    dynamics.attach(record, interval=20)
    start = time.perf_counter()
    dynamics.run(steps)
    seconds = time.perf_counter() - start
    table = np.array(rows)
    half = len(table) // 2
    moved = table[half:, 3:].mean(0) - table[:half, 3:].mean(0)
    settled = memory[min(len(memory) - 1, 2000 // 20)]
    at_20k = memory[min(len(memory) - 1, 22000 // 20)]
    plot_langevin(table, curves, png)
    info = calculator.cache_info()
    return {
        "atoms": len(atoms),
        "steps": steps,
        "ps": picoseconds,
        "ms_per_step": 1e3 * seconds / steps,
        "temperature_K": table[:, 0].mean(),
        "broken_bonds_max": int(table[:, 2].max()),
        "closest_HH_contact_A": min(contacts),
        "first_shells": {name: curve.first_shell() for name, curve in curves.items()},
        "charges_mean": dict(zip(SPECIES, table[:, 3:].mean(0).tolist(), strict=True)),
        "charges_std": dict(zip(SPECIES, table[:, 3:].std(0).tolist(), strict=True)),
        "charges_second_half_less_first": dict(zip(SPECIES, moved.tolist(), strict=True)),
        "memory_growth_20000_steps_MB": at_20k - settled,
        "memory_growth_whole_run_MB": memory[-1] - settled,
        "topology_unchanged": info["neighbour_reuse"],
    }


def plot_langevin(table: np.ndarray, curves: dict[str, PairDistribution], png: Path) -> None:
    times = np.arange(len(table)) * 20 * 0.5e-3
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].plot(times, table[:, 0], linewidth=0.5)
    axes[0, 0].set(xlabel="time / ps", ylabel="temperature / K")
    axes[0, 1].plot(times, table[:, 1], linewidth=0.5)
    axes[0, 1].set(xlabel="time / ps", ylabel="potential energy / eV")
    for column, name in enumerate(SPECIES, start=3):
        axes[1, 0].plot(times, table[:, column], label=name, linewidth=0.8)
    axes[1, 0].set(xlabel="time / ps", ylabel="mean charge / e")
    axes[1, 0].legend()
    numbers = axes[1, 1].twinx()
    for name, curve in curves.items():
        r, g = curve.curve
        (line,) = axes[1, 1].plot(r, g, linewidth=1.0)
        shell = curve.first_shell()
        label = f"{name}: {shell['coordination']:.1f} within {shell['minimum_A']:.2f} Å"
        numbers.plot(r, curve.neighbours, "--", color=line.get_color(), linewidth=0.8, label=label)
    axes[1, 1].set(xlabel="r / Å", ylabel="g(r)", ylim=(0.0, None))
    numbers.set(ylabel="neighbours (dashed)", ylim=(0.0, 12.0))
    numbers.legend(frameon=False, fontsize=8)
    figure.savefig(png, dpi=120)


def run_nve(
    calculator: PhiCalculator, pairs: int, picoseconds: float, png: Path, settling: int = 4000
) -> dict:
    atoms = equilibrated(calculator, pairs, settling)
    atoms.set_constraint()
    dynamics = VelocityVerlet(atoms, TIMESTEP)
    energies, forces, velocities, temperatures = [], [], [], []

    def record() -> None:
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())
        forces[:] = [*forces[-2:], atoms.get_forces()]
        velocities[:] = [*velocities[-2:], atoms.get_velocities()]
        if len(forces) == 3:
            shadow.append(energies[-2] + shadow_term(atoms, forces, velocities[1]))

    shadow: list[float] = []
    dynamics.attach(record)
    start = time.perf_counter()
    dynamics.run(round(picoseconds * 1000 / 0.5))
    seconds = time.perf_counter() - start
    times = np.arange(len(energies)) * 0.5e-3
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    slopes = {}
    for name, t, values in (
        ("total energy", times, np.array(energies)),
        ("energy that velocity Verlet conserves", times[1:-1], np.array(shadow)),
    ):
        slope, offset = np.polyfit(t, values, 1)
        slopes[name] = 1e3 * slope, 1e3 * float(np.std(values - slope * t - offset))
        axes.plot(t[::10], 1e3 * (values[::10] - values.mean()), linewidth=0.5, label=name)
    axes.set(xlabel="time / ps", ylabel="energy − mean / meV per atom")
    axes.legend()
    figure.savefig(png, dpi=120)
    (drift, ripple), (shadow_drift, shadow_ripple) = slopes.values()
    return {
        "atoms": len(atoms),
        "ps": picoseconds,
        "ms_per_step": 1e3 * seconds / max(1, round(picoseconds * 1000 / 0.5)),
        "temperature_K": float(np.mean(temperatures)),
        "drift_meV_per_atom_per_ps": drift,
        "fluctuation_meV_per_atom": ripple,
        "shadow_drift_meV_per_atom_per_ps": shadow_drift,
        "shadow_fluctuation_meV_per_atom": shadow_ripple,
    }


def shadow_term(atoms: Atoms, forces: list[np.ndarray], velocities: np.ndarray) -> float:
    """What velocity Verlet's conserved energy has beyond the total, to order Δt²; eV per atom.

    Δt² (vᵀ V″ v/12 − Fᵀ M⁻¹ F/24) at the middle of three steps, V″ v from the forces on either
    side: its slow part, energy wandering in and out of the stiff bonds, is not a drift.
    """
    before, here, after = forces
    curvature = -(velocities * (after - before)).sum() / (2 * TIMESTEP)
    kick = (here**2 / atoms.get_masses()[:, None]).sum()
    return float(TIMESTEP**2 * (curvature / 12 - kick / 24) / len(atoms))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ensemble", choices=["langevin", "nve"])
    parser.add_argument("--ps", type=float, default=20.0, help="duration")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--pairs", type=int, default=1, help="of Na and Cl")
    parser.add_argument("--settling", type=int, default=4000, help="steps before an NVE run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("salt_water_md.json"))
    arguments = parser.parse_args()
    calculator = PhiCalculator(arguments.model, threads=arguments.threads)
    png = arguments.output.with_suffix(".png")
    if arguments.ensemble == "langevin":
        result = run_langevin(calculator, arguments.pairs, arguments.ps, png)
    else:
        result = run_nve(calculator, arguments.pairs, arguments.ps, png, arguments.settling)
    result["dtype"] = load_model(arguments.model).metadata.dtype
    arguments.output.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))
