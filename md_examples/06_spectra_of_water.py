"""Vibrations of liquid water from its motion: density of states and infrared.

    python md_examples/06_spectra_of_water.py [--steps 1600] [--output md_examples/output]

Equilibrates a small box of water, lets it go on without a thermostat, which would broaden the
lines, and correlates the velocities of what was recorded. On the command line:

    phicalc md model.pt water.xyz -n 1600 --ensemble nve --timestep 0.5 --every 2 \
        --property polarization -o nve
    phicalc spectra nve/md.traj --correlation-time 400

The infrared spectrum of a liquid takes the polarisation, which models with the phi-coulomb head
give. Both spectra are classical, so that stretching comes out too high for want of quantum
mechanics (some 200 cm⁻¹; more than that is the model's), and a picosecond of 12 molecules is for a
look, no more.

Leaves water-spectra.png, tables of the spectra and the trajectory in the output folder; under a
minute on one CPU thread.
"""

import argparse
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box
from phicalc.workflows.md import MDSettings, MolecularDynamics
from phicalc.workflows.spectra import Spectra, SpectraSettings

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
MOLECULES = 12
MEASURED = {"libration": 590, "bending": 1645, "stretching": 3400}  # cm⁻¹, infrared of the liquid


def record(atoms, steps, folder):
    """A short run with a thermostat, then one without it that is recorded: the trajectory."""
    warm = MDSettings(steps=max(1, steps // 3), temperature=300.0, timestep=0.5, thermostat_time=20)
    atoms = MolecularDynamics(atoms, warm).run().atoms
    settings = MDSettings(
        steps=steps,
        ensemble="nve",
        timestep=0.5,
        trajectory_every=2,
        properties=("polarization",),
    )
    result = MolecularDynamics(atoms, settings, folder).run()
    return result.trajectories[0]


def plot(result, path):
    """The spectra, with the measured bands."""
    drawn = {"density of states": result.density, "infrared": result.infrared}
    figure = Figure(figsize=(8, 6), layout="constrained")
    rows = figure.subplots(2, 1, sharex=True)
    for axes, (title, spectrum) in zip(rows, drawn.items(), strict=True):
        axes.plot(spectrum.wavenumbers, spectrum.intensity, color="black", linewidth=1.2)
        for symbol, part in spectrum.parts.items():
            axes.fill_between(spectrum.wavenumbers, part, alpha=0.4, label=symbol)
        axes.set(ylabel=f"{title}\n/ {spectrum.unit}", xlim=(0, 4200), ylim=(0, None))
        for name, place in MEASURED.items():
            axes.axvline(place, color="tab:red", linestyle=":", linewidth=1.0)
            axes.text(place + 30, 0.92 * axes.get_ylim()[1], name, color="tab:red", fontsize=8)
    rows[0].legend(frameon=False, loc="center right")
    rows[-1].set_xlabel("wavenumber / cm⁻¹ (dotted: bands measured in the liquid)")
    figure.savefig(path, dpi=110)


def main(steps: int, output: Path) -> None:
    """Run, correlate, report and draw."""
    folder = output / "water-spectra"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call of this example
    atoms = water_box(MOLECULES, seed=3)
    atoms.calc = PhiCalculator(MODEL)
    trajectory = record(atoms, steps, folder)
    settings = SpectraSettings(correlation_time=400.0, maximum=4500.0)
    result = Spectra(trajectory, settings, folder).run()
    density = result.density
    print(f"{result.density.description}, resolution {density.resolution:.0f} cm⁻¹")
    for name, low, high in (("bending", 1400, 2000), ("stretching", 2800, 4200)):
        inside = (density.wavenumbers > low) & (density.wavenumbers < high)
        peak = density.wavenumbers[inside][density.intensity[inside].argmax()]
        print(f"{name} at {peak:.0f} cm⁻¹, measured near {MEASURED[name]} cm⁻¹")
    spacing = density.wavenumbers[1] - density.wavenumbers[0]
    states = density.intensity.sum() * spacing
    print(f"{states:.1f} states for {3 * len(atoms)} degrees of freedom")
    plot(result, output / "water-spectra.png")
    print(f"wrote water-spectra.png and the folder water-spectra to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600, help="recorded MD steps of 0.5 fs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
