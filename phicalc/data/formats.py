"""What ASE's readers of other programs' files leave out, honoured or refused.

The total charge that a file states becomes `info["charge"]`. Where a reader guesses elements, or
leaves out symmetry, fields or units, the file is refused with the reason.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.db import connect
from ase.io.formats import open_with_compression

from phicalc.checks.conditions import plain
from phicalc.data.entries import LENGTHS, Problem, is_unit_of, unit_problem

_CHARGES = {
    "gaussian-in": r"^[ \t]*([-+]?\d+)[ \t,]+\d+[ \t]*$",
    "gaussian-out": r"^ *Charge = *([-+]?\d+) +Multiplicity",
    "orca-output": r"Total Charge +Charge +\.+ +([-+]?\d+)",
    "nwchem-in": r"(?i)^\s*charge\s+([-+]?[\d.]+)",
    "nwchem-out": r"^\s*Charge\s*: *([-+]?[\d.]+)",
    "espresso-in": r"(?i)\btot_charge\s*=\s*([-+]?[\d.]+)",
    "castep-castep": r"net charge of system\s*:\s*([-+]?[\d.]+)",
    "cp2k-restart": r"(?m)^\s*CHARGE\s+([-+]?\d+)\s*$",
    "aims-output": r"Charge =\s*([-+.\dEe]+)",
}
"""Where a format states the total charge of all its structures."""

_FIELDS = {
    "aims": r"(?m)^\s*homogeneous_field\b.*[1-9].*$",
    "espresso-in": r"(?i)\b(?:tefield|lelfield|gate)\s*=\s*\.t",
    "castep-cell": r"(?i)external_efield.*[1-9]",
}
_OLD_CHARGES = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}
"""Charge codes of the atom block of a molfile."""


def complete(path: Path, form: str, frames: Sequence[Atoms]) -> Iterator[Problem]:
    """Set the total charge that a file of this format states; what else its reader loses.

    Parameters
    ----------
    form
        ASE's name of the format.
    frames
        What ASE has read; `info["charge"]` is set where the file states one.
    """
    if form in ("lammps-data", "lammps-dump-text", "gromacs"):
        yield from _guessed_elements(path, form, frames[0])
        return
    if form in ("db", "json"):
        yield from _database_rows(path, form, frames)
        return
    if form not in _CHARGES.keys() | _FIELDS.keys() | {"mol", "sdf", "proteindatabank"}:
        return
    with open_with_compression(str(path), "r") as file:
        text = file.read()
    if form == "proteindatabank":
        yield from _protein_data_bank(text)
    elif form in ("mol", "sdf"):
        for atoms, molecule in zip(frames, text.split("$$$$"), strict=False):
            _set_charge(atoms, _molfile_charge(molecule, len(atoms)))
    if form in _CHARGES:
        found = re.findall(_CHARGES[form], text, flags=re.MULTILINE)
        for atoms in frames:
            _set_charge(atoms, float(found[0]) if found else 0.0)
    if form in _FIELDS and re.search(_FIELDS[form], text):
        yield Problem("an electric field", 'convert to extxyz with external_field="x y z", in V/Å')


def _database_rows(path: Path, form: str, frames: Sequence[Atoms]) -> Iterator[Problem]:
    """What rows of ASE's databases say besides the structure goes where extended XYZ has it."""
    with connect(path, type=form, serial=True) as database:
        units = database.metadata
        for atoms, row in zip(frames, database.select(), strict=True):
            stated = {**row.data, **row.key_value_pairs}
            for key, value in stated.items():
                place = atoms.arrays if key in ("forces", "charges") else atoms.info
                place.setdefault(key, value)
    for key, value in units.items():
        if is_unit_of(key, LENGTHS):
            yield from unit_problem(key, value)
        elif isinstance(value, dict) and "unit" in plain(key):  # {"energy": "Hartree"}, SchNetPack
            for atoms in frames:
                atoms.info |= {f"{name}_unit": unit for name, unit in value.items()}


def _set_charge(atoms: Atoms, charge: float) -> None:
    if charge:
        atoms.info.setdefault("charge", charge)


def _molfile_charge(text: str, atoms: int) -> float:
    """Sum of the formal charges of one molecule of an MDL molfile (V2000)."""
    listed = re.findall(r"^M  CHG\s+\d+((?:\s+\d+\s+[-+]?\d+)+)", text, flags=re.MULTILINE)
    if listed:
        return float(sum(int(part) for line in listed for part in line.split()[1::2]))
    lines = text.strip("\n").splitlines()
    counts = next((n for n, line in enumerate(lines) if "V2000" in line), len(lines))
    codes = [line[36:39].strip() for line in lines[counts + 1 : counts + 1 + atoms]]
    return float(sum(_OLD_CHARGES.get(int(code), 0) for code in codes if code.isdigit()))


def _protein_data_bank(text: str) -> Iterator[Problem]:
    """Cells of no crystal, symmetry, alternate sites, guessed elements and formal charges."""
    cell = re.search(r"^CRYST1(.*)$", text, flags=re.MULTILINE)
    if cell:
        line = f"CRYST1{cell.group(1)}".ljust(66)
        lengths, group = line[6:33].split(), line[55:66].replace(" ", "")
        if all(float(length) == 1.0 for length in lengths):
            yield Problem("a CRYST1 of 1 Å, which stands for no crystal,", "remove that line")
        elif group not in ("", "P1"):
            yield Problem(
                f"space group {line[55:66].strip()}", "write all atoms of the cell in P 1"
            )
    atoms = [line.ljust(80) for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    if any(line[16] != " " for line in atoms):
        yield Problem("alternate locations", "choose one of them")
    if any(line[76:78].strip() == "" for line in atoms):
        yield Problem("atoms without an element (columns 77 and 78)", "write the elements")
    signs = [re.fullmatch(r"(\d)([-+])", line[78:80]) for line in atoms]
    total = sum(int(sign.group(2) + sign.group(1)) for sign in signs if sign)
    if total:
        yield Problem(
            f"formal charges that sum to {total:+d} e", "convert to extxyz with charge= in e"
        )


def _guessed_elements(path: Path, form: str, atoms: Atoms) -> Iterator[Problem]:
    """Types that ASE takes for atomic numbers, names by their first letter, units of LAMMPS."""
    with open_with_compression(str(path), "r") as file:
        head = "".join(line for line, _ in zip(file, range(500), strict=False))
    if form == "gromacs":
        names, residues = atoms.arrays.get("atomtypes"), atoms.arrays.get("residuenames")
        if names is None or residues is None:
            return
        for name, residue, symbol in zip(names, residues, atoms.symbols, strict=True):
            element = str(name).strip().capitalize()
            if name == residue and element in atomic_numbers and element != symbol:
                yield Problem(f"{element}, read as {symbol},", "convert to extxyz with elements")
                return
        return
    types = atoms.arrays.get("type")
    known = re.search(r"(?m)^ITEM: ATOMS.*\belement\b" if form != "lammps-data" else "Masses", head)
    if not known and types is not None and np.array_equal(types, atoms.numbers):
        where = "element" if form != "lammps-data" else "Masses"
        yield Problem("types that would be read as atomic numbers", f"write {where}, too")
    units = re.search(r"(?m)^ITEM: UNITS\s+(\w+)|\bunits = (\w+)", head)
    name = (units.group(1) or units.group(2)) if units else "metal"
    if name != "metal" and (name != "real" or atoms.has("momenta")):
        yield Problem(f"LAMMPS's units {name}", "convert to units metal")
