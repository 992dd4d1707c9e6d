"""Water with quantum nuclei: i-PI moves 8 beads, and two clients compute them.

    pip install ipi
    python md_examples/09_path_integrals.py [--steps 300] [--output md_examples/output]

Writes i-PI's input, starts its server and two clients, as one would in three terminals:

    i-pi input.xml
    phicalc ipi model.pt water.xyz --unix NAME --threads 1
    phicalc ipi model.pt water.xyz --unix NAME --threads 1

Near the end one client is ended (`kill`): the other takes its beads over, and the run goes on. A
proton in water has some 145 meV of kinetic energy, not the 39 meV of a classical one: its zero
point. Eight beads would give little more than three quarters of that; the Suzuki-Chin
factorisation, whose error is of fourth order in the length of an imaginary time step, needs no more
than them.

A box of 8 molecules for a tenth of a picosecond: enough for an energy that the stiffest
vibrations dominate, not for the liquid's structure. Leaves input.xml, init.xyz, water.xyz,
i-PI's output and path-integrals.png in the output folder; most of a minute on two cores.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.io import write
from ase.optimize import FIRE
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "nacl-water-phi.pt"
MOLECULES, BEADS, TEMPERATURE = 8, 8, 300

# meV at 300 K: neutron scattering 143 ± 3 (Pantalei et al., Phys. Rev. Lett. 100, 177801 (2008)),
# path integrals up to some 150 (Ramírez and Herrero, Phys. Rev. B 84, 064130 (2011))
PUBLISHED = (140, 153)

INPUT = """
<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='1' filename='energies' flush='1'>
      [time{{femtosecond}}, conserved{{millielectronvolt}}, temperature{{kelvin}},
       kinetic_tdsc(H){{millielectronvolt}}, kinetic_tdsc(O){{millielectronvolt}}]
    </properties>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffsocket name='phicalc' mode='unix' pbc='false'>
    <address> {address} </address> <batch_size> 4 </batch_size>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz'> init.xyz </file>
      <velocities mode='thermal' units='kelvin'> {temperature} </velocities>
    </initialize>
    <forces> <force forcefield='phicalc' fd_epsilon='0.001'/> </forces>
    <motion mode='dynamics'>
      <dynamics mode='sc' splitting='baoab'>
        <timestep units='femtosecond'> 0.5 </timestep>
        <thermostat mode='pile_l'> <tau units='femtosecond'> 50 </tau> </thermostat>
      </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> {temperature} </temperature> </ensemble>
  </system>
</simulation>
"""


def prepare(steps, address, folder):
    """A relaxed box, for phicalc as extended XYZ and for i-PI as its own, and i-PI's input."""
    atoms = water_box(MOLECULES, seed=3)
    atoms.calc = PhiCalculator(MODEL, device="cpu")
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=60)
    atoms.calc = None
    write(folder / "water.xyz", atoms, format="extxyz")
    cell = " ".join(f"{number:.8f}" for number in atoms.cell.cellpar())
    comment = f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}"
    write(folder / "init.xyz", atoms, format="xyz", comment=comment)
    numbers = {"steps": steps, "beads": BEADS, "temperature": TEMPERATURE}
    (folder / "input.xml").write_text(INPUT.format(address=address, **numbers))


def run(steps, address, folder):
    """The server and its two clients; returns what each client said, and when one was ended."""
    for old in folder.glob("run.*"):
        old.unlink()
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [shutil.which("i-pi", path=places), "input.xml"], cwd=folder, stdout=log, stderr=log
    )
    command = [sys.executable, "-m", "phicalc.cli", "ipi", str(MODEL), "water.xyz"]
    clients = [
        subprocess.Popen(
            [*command, "--unix", address, "--threads", "1", "--device", "cpu"],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    while server.poll() is None and len(energies(folder)) < 0.8 * steps:
        time.sleep(0.1)
    ended = len(energies(folder))
    clients[0].terminate()
    said = [client.communicate()[0] for client in clients]
    log.close()
    if server.wait() != 0:
        raise SystemExit((folder / "server.log").read_text()[-1000:])
    return said, ended


def energies(folder):
    """i-PI's table so far: time | fs, conserved | meV, temperature | K, kinetic H and O | meV."""
    path = folder / "run.energies"
    text = path.read_text() if path.exists() else ""
    lines = text.rpartition("\n")[0].splitlines()  # the last may be half written
    rows = [line.split() for line in lines if not line.startswith("#")]
    return np.array(rows, dtype=float).reshape(-1, 5)


def plot(table, ended, path):
    """Kinetic energy per proton as the run goes, and its running mean."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    protons = table[:, 3] / (2 * MOLECULES)
    begin = len(protons) // 3
    mean = np.cumsum(protons[begin:]) / np.arange(1, len(protons) - begin + 1)
    axes.plot(table[:, 0], protons, color="tab:blue", alpha=0.4, label="a proton, at each step")
    axes.plot(table[begin:, 0], mean, color="tab:blue", label="its mean so far")
    axes.axhspan(*PUBLISHED, color="tab:green", alpha=0.2, label="published, 300 K")
    classical = 1.5 * units.kB * TEMPERATURE * 1e3
    axes.axhline(classical, color="black", linestyle=":", label="classical")
    axes.axvline(table[min(ended, len(table) - 1), 0], color="tab:red", label="a client is ended")
    axes.set(xlabel="time / fs", ylabel="kinetic energy / meV", ylim=(0, None))
    axes.legend(loc="lower right", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def main(steps: int, output: Path) -> None:
    """Prepare, run, report and draw."""
    if importlib.util.find_spec("ipi") is None:
        raise SystemExit("i-PI is not installed: pip install ipi")
    output.mkdir(parents=True, exist_ok=True)
    address = f"phicalc-{os.getpid()}"
    prepare(steps, address, output)
    said, ended = run(steps, address, output)
    table = energies(output)
    print(f"client 1 was ended after {ended} of {steps} steps")
    print(f"client 2: {re.search(r'[0-9]+ structures', said[1])[0]}")
    judged = table[len(table) // 3 :]
    print(f"{len(table)} steps at {judged[:, 2].mean():.0f} K")
    for element, column, number in (("H", 3, 2 * MOLECULES), ("O", 4, MOLECULES)):
        print(f"kinetic energy of {element}: {judged[:, column].mean() / number:.1f} meV")
    print(f"published for H: {PUBLISHED[0]} to {PUBLISHED[1]} meV")
    plot(table, ended, output / "path-integrals.png")
    print(f"wrote run.energies and path-integrals.png to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of 0.5 fs")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
