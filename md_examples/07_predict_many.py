"""Many structures through one model at once: a map of the energy of a water molecule.

    python md_examples/07_predict_many.py [--points 15] [--output md_examples/output]

Bends and stretches one molecule of water over a grid of geometries and predicts them all in a few
batches: energies, forces, charges and dipoles, the same numbers that the calculator gives for
each, without its bookkeeping of one simulation. On the command line:

    phicalc predict model.pt scan.xyz -o predicted.xyz

The model knows water in the liquid, so that a molecule alone is extrapolation, and it was trained
on no charges: a demonstration of many structures at once, not of the molecule's dipole.
Leaves scan.xyz, predicted.xyz (``ase.io.read`` finds the results in ``atoms.calc``) and predict.png
in the output folder; some seconds on one CPU thread.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from matplotlib.figure import Figure

from phicalc.serving.prediction import predict_file

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
GAS = (0.9572, 104.52)  # Å, degrees: measured in the gas phase


def bent_water(length, angle):
    """Both O–H bonds of one length (Å) at an angle (degrees)."""
    half = np.deg2rad(angle / 2)
    arm = length * np.array([np.sin(half), np.cos(half), 0.0])
    return Atoms("OH2", [[0.0, 0.0, 0.0], arm, arm * [-1, 1, 1]], info={"length": length})


def plot(lengths, angles, energies, dipoles, path):
    """Energy and dipole over the grid."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    relative = energies - energies.min()
    for axes, values, label, levels in (
        (figure.add_subplot(1, 2, 1), relative, "energy − minimum / eV", np.linspace(0, 2, 21)),
        (figure.add_subplot(1, 2, 2), dipoles, "dipole / e·Å", 20),
    ):
        drawn = axes.contourf(lengths, angles, values.T, levels, cmap="viridis", extend="max")
        figure.colorbar(drawn, label=label)
        axes.plot(*GAS, "w+", markersize=12, markeredgewidth=2)
        axes.set(xlabel="O–H / Å", ylabel="H–O–H / degrees")
    figure.axes[0].set_title("+ measured in the gas phase", fontsize="small", loc="left")
    figure.savefig(path, dpi=110)


def main(points: int, output: Path) -> None:
    """Build, predict, report and draw."""
    output.mkdir(parents=True, exist_ok=True)
    lengths, angles = np.linspace(0.85, 1.15, points), np.linspace(85.0, 125.0, points)
    write(output / "scan.xyz", [bent_water(r, a) for r in lengths for a in angles])
    found = predict_file(
        MODEL, output / "scan.xyz", output / "predicted.xyz", overwrite=True, batch_size=32
    )
    print(f"{len(found)} structures predicted")

    frames = read(output / "predicted.xyz", ":")  # as anyone would who gets the file
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    dipoles = np.array([np.linalg.norm(atoms.get_dipole_moment()) for atoms in frames])
    lowest = frames[int(energies.argmin())]
    angle = lowest.get_angle(1, 0, 2)
    print(f"lowest at O–H {lowest.info['length']:.3f} Å, H–O–H {angle:.1f}°")
    print(f"largest force there {np.abs(lowest.get_forces()).max():.2f} eV/Å")
    shape = (points, points)
    plot(lengths, angles, energies.reshape(shape), dipoles.reshape(shape), output / "predict.png")
    print(f"wrote scan.xyz, predicted.xyz and predict.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=15, help="along each axis of the grid")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.points, arguments.output)
