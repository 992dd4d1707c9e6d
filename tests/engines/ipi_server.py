"""The real i-PI for tests: its input, its server, and what it wrote."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.geometry import cellpar_to_cell
from ase.units import Bohr

BIN = str(Path(sys.executable).parent)
SEARCHED = os.pathsep.join([BIN, os.environ["PATH"]])

NVE = """
<motion mode='dynamics'>
  <dynamics mode='nve'> <timestep units='femtosecond'> 0.5 </timestep> </dynamics>
</motion>
<ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>"""

NVT = """
<motion mode='dynamics'>
  <dynamics mode='nvt'>
    <timestep units='femtosecond'> 0.5 </timestep>
    <thermostat mode='pile_l'> <tau units='femtosecond'> 50 </tau> </thermostat>
  </dynamics>
</motion>
<ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>"""


def stress(cell, gigapascal):
    """A cell of changing shape, three diagonal elements of the outer stress on it."""
    return f"""
<motion mode='dynamics'>
  <dynamics mode='nst'>
    <timestep units='femtosecond'> 0.5 </timestep>
    <thermostat mode='langevin'> <tau units='femtosecond'> 50 </tau> </thermostat>
    <barostat mode='anisotropic'>
      <tau units='femtosecond'> 20 </tau>
      <thermostat mode='langevin'> <tau units='femtosecond'> 20 </tau> </thermostat>
      <h0 units='angstrom' shape='(3, 3)'> {cell.array.T.ravel().tolist()} </h0>
    </barostat>
  </dynamics>
</motion>
<ensemble>
  <temperature units='kelvin'> 300 </temperature>
  <stress units='gigapascal'> {np.diag(gigapascal).ravel().tolist()} </stress>
</ensemble>"""


PROPERTIES = """step, conserved{electronvolt}, potential{electronvolt}, kinetic_md{electronvolt},
    volume{angstrom3}, stress_md{gigapascal}"""


def unix(address, options=""):
    """A forcefield that listens on a UNIX socket."""
    return (
        f"<ffsocket name='phi' mode='unix' pbc='false'> <address> {address} </address> {options} "
        "</ffsocket>"
    )


def write_input(folder, atoms, forcefield, motion=NVE, *, beads=1, steps=4, properties=PROPERTIES):
    """input.xml and the structure that it begins with."""
    write_structure(folder / "init.xyz", atoms)
    (folder / "input.xml").write_text(f"""
<simulation verbosity='low' threading='false'>
  {output(properties)}
  <total_steps> {steps} </total_steps>
  <prng> <seed> 7 </seed> </prng>
  {forcefield}
  {system(motion, beads)}
</simulation>""")


def write_replicas(folder, atoms, forcefield, temperatures, steps=6):
    """The same for a system at each temperature (K), which swap every other step."""
    write_structure(folder / "init.xyz", atoms)
    systems = [
        system(NVT.replace("> 300 <", f"> {temperature} <"), 1, f"prefix='{number}'")
        for number, temperature in enumerate(temperatures)
    ]
    (folder / "input.xml").write_text(f"""
<simulation verbosity='low'>
  {output(PROPERTIES)}
  <total_steps> {steps} </total_steps>
  <prng> <seed> 7 </seed> </prng>
  {forcefield}
  {"".join(systems)}
  <smotion mode='remd'> <remd> <stride> 2 </stride> </remd> </smotion>
</simulation>""")


def output(properties):
    return f"""
  <output prefix='out'>
    <properties stride='1' filename='properties'> [{properties}] </properties>
    <trajectory stride='1' filename='positions' cell_units='angstrom'>
      positions{{angstrom}}
    </trajectory>
    <trajectory stride='1' filename='forces'> forces{{ev/ang}} </trajectory>
  </output>"""


def system(motion, beads, prefix=""):
    return f"""
  <system {prefix}>
    <initialize nbeads='{beads}'>
      <file mode='xyz'> init.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='phi'/> </forces>
    {motion}
  </system>"""


def write_structure(path, atoms):
    """i-PI's own XYZ: cell lengths and angles in words."""
    cell = " ".join(f"{value:.10f}" for value in atoms.cell.cellpar())
    lines = [
        f"{s} {x:.10f} {y:.10f} {z:.10f}"
        for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
    ]
    title = f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}"
    path.write_text("\n".join([str(len(atoms)), title, *lines]) + "\n")


def start(folder):
    """The server, which writes to server.log."""
    command = shutil.which("i-pi", path=SEARCHED)
    with (folder / "server.log").open("w") as log:
        return subprocess.Popen(
            [command, "input.xml"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def ended(server, folder, seconds=60):
    """Wait for the end of a server, which must be a good one."""
    assert server.wait(seconds) == 0, (folder / "server.log").read_text()[-2000:]


def properties(folder, prefix="out"):
    """Columns of what i-PI wrote of each step, by name."""
    text = (folder / f"{prefix}.properties").read_text()
    names = re.findall(r"# (?:column|cols\.)\s+([\d-]+)\s+--> (\w+)", text)
    table = np.loadtxt(text.splitlines(), ndmin=2)
    found = {}
    for columns, name in names:
        first, _, last = columns.partition("-")
        found[name] = table[:, int(first) - 1 : int(last or first)].squeeze(1 if not last else ())
    return found


def trajectory(folder, name, bead=0, prefix="out"):
    """Cells (frames, 3, 3) and vectors (frames, N, 3) of one bead, as i-PI wrote them."""
    (path,) = [
        found
        for found in folder.glob(f"{prefix}.{name}_*.xyz")
        if int(found.stem.rpartition("_")[2]) == bead
    ]
    lines = path.read_text().splitlines()
    number = int(lines[0])
    frames = [lines[k : k + number + 2] for k in range(0, len(lines), number + 2)]
    cells = [
        cellpar_to_cell([float(w) for w in frame[1].split("CELL(abcABC):")[1].split()[:6]])
        for frame in frames
    ]
    rows = [[[float(w) for w in row.split()[1:4]] for row in frame[2:]] for frame in frames]
    return np.array(cells), np.array(rows)


def driven(field):
    """NVE in a static field (V/Å) that acts through the driver's Born charges."""
    amplitude = (np.array(field) / 51.422067).tolist()  # V/Å per atomic unit
    return f"""
<motion mode='driven_dynamics'>
  <driven_dynamics mode='eda-nve'>
    <timestep units='femtosecond'> 0.5 </timestep>
    <efield> <amp> {amplitude} </amp> </efield>
    <bec mode='driver'/>
  </driven_dynamics>
</motion>
<ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>"""


def last_positions(folder):
    """Positions (N, 3) | Å of the only bead at the end, with all digits."""
    text = (folder / "RESTART").read_text()
    numbers = re.search(r"<q shape=[^>]*>\s*\[(.*?)\]", text, re.DOTALL)[1]
    return np.array([float(word) for word in numbers.split(",")]).reshape(-1, 3) * Bohr
