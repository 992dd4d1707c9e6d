"""Geometry optimisation of a small cluster: one ion pair and five molecules of water, NaCl(H2O)5.

    python md_examples/03_relax_cluster.py [--fmax 0.03] [--output md_examples/output]

Builds the cluster by hand, sodium in the middle of an octahedron of five oxygens and the chloride,
and relaxes it with BFGS. Prints energy, largest force, distances, charges and dipole, and leaves
cluster.traj, cluster.xyz and cluster.png in the output folder; a few seconds on one CPU thread.

The shipped model was trained on periodic salt water at 300 K. A cluster in vacuum is outside of
that: take it as a demonstration of an optimisation, not as a prediction for this cluster. The
model knows neutral structures only, which is why an ion pair and not a single ion is built here.
Its charges were trained on no charges: they began as those of a point-charge model of water, and
energies and forces moved them a little. So did the dipole that they add up to.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import Trajectory
from ase.optimize import BFGS
from ase.visualize.plot import plot_atoms
from matplotlib.figure import Figure

from phicalc import PhiCalculator

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
OH_LENGTH, HOH_ANGLE = 0.9572, 104.52  # Å, degrees: water in the gas phase
NA_O, NA_CL = 2.7, 3.1  # Å, stretched, so that there is something to relax


def water(oxygen, outward, sideways):
    """O, H, H with the hydrogens pointing ``outward`` and spread in the plane of ``sideways``."""
    sideways = sideways - (sideways @ outward) * outward
    sideways /= np.linalg.norm(sideways)
    half = np.deg2rad(HOH_ANGLE / 2)
    along, across = OH_LENGTH * np.cos(half) * outward, OH_LENGTH * np.sin(half) * sideways
    return [oxygen, oxygen + along + across, oxygen + along - across]


def salt_cluster(seed=0):
    """NaCl(H2O)5: chloride on one corner of an octahedron about sodium, oxygens on five."""
    random = np.random.default_rng(seed)
    positions = [np.zeros(3), np.array([NA_CL, 0.0, 0.0])]
    for direction in ([-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]):
        outward = np.array(direction, dtype=float)
        positions += water(NA_O * outward, outward, random.normal(size=3))
    atoms = Atoms(["Na", "Cl"] + ["O", "H", "H"] * 5, positions)
    atoms.rattle(0.01, seed=seed)  # off the symmetric place, which may be a saddle point
    return atoms


def largest_force(atoms):
    """Norm of the largest force on an atom, eV/Å."""
    return np.linalg.norm(atoms.get_forces(), axis=1).max()


def describe(title, atoms):
    """Energy, force and the distances from sodium, in a line or two."""
    oxygens = np.flatnonzero(atoms.symbols == "O")
    distances = np.sort(atoms.get_distances(0, oxygens))
    print(f"{title}: energy {atoms.get_potential_energy():.4f} eV, fmax {largest_force(atoms):.4f}")
    print(
        f"  Na–O {np.array2string(distances, precision=2)} Å, Na–Cl {atoms.get_distance(0, 1):.2f}"
    )


def plot(start, end, energies, forces, path):
    """How energy and force converged, and the cluster before and after."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    left, before, after = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    left.semilogy(forces, color="tab:red", marker=".", label="largest force")
    left.set(xlabel="step", ylabel="largest force / eV Å⁻¹")
    left.yaxis.label.set_color("tab:red")
    right = left.twinx()
    right.plot(1e3 * (np.array(energies) - energies[-1]), color="tab:blue", marker=".")
    right.set_ylabel("energy − end / meV", color="tab:blue")
    for axes, atoms, title in ((before, start, "start"), (after, end, "relaxed")):
        plot_atoms(atoms, axes, rotation="-70x,20y,-10z", radii=0.5)
        axes.set(title=title, xlim=(-0.2, 7.4), ylim=(-0.2, 6.8))  # Å, one scale for both
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def main(fmax: float, output: Path) -> None:
    """Build, relax, report and draw."""
    output.mkdir(parents=True, exist_ok=True)
    atoms = salt_cluster()
    atoms.calc = PhiCalculator(MODEL)
    start = atoms.copy()
    print(f"{atoms.get_chemical_formula()}, not periodic")
    describe("start", atoms)

    energies, forces = [], []

    def record():
        energies.append(atoms.get_potential_energy())
        forces.append(largest_force(atoms))

    with Trajectory(output / "cluster.traj", "w", atoms) as trajectory:
        optimizer = BFGS(atoms, maxstep=0.1, logfile=None)
        optimizer.attach(record)
        optimizer.attach(trajectory.write)
        converged = optimizer.run(fmax=fmax, steps=300)
    describe(f"relaxed in {optimizer.get_number_of_steps()} steps", atoms)
    if not converged:
        print(f"not converged to {fmax} eV/Å: the model is far from what it was trained on")

    charges, dipole = atoms.get_charges(), atoms.get_dipole_moment()
    for symbol in ("Na", "Cl", "O", "H"):
        print(f"  mean charge of {symbol:2s} {charges[atoms.symbols == symbol].mean():+.3f} e")
    print(f"  sum of charges {charges.sum():+.1e} e")
    print(f"  dipole of these charges {np.linalg.norm(dipole):.3f} e·Å")
    print("the model was trained on salt water at 300 K: a cluster is outside of that")

    atoms.write(output / "cluster.xyz", columns=["symbols", "positions"])
    plot(start, atoms, energies, forces, output / "cluster.png")
    print(f"wrote cluster.traj, cluster.xyz and cluster.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fmax", type=float, default=0.03, help="largest force left, eV/Å")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.fmax, arguments.output)
