"""What a file says about cells, sites, units and frames is read or refused, never dropped."""

import gzip
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.data.entries import check_columns
from phicalc.data.read import check_labels, labels_of, read_structures
from phicalc.errors import DataError

CUBE = "4 0 0 0 4 0 0 0 4"
LATTICE = f'Lattice="{CUBE}"'
ROWS = "Ar 0 0 0\nAr 2 2 0\n"
MODEL = Path(__file__).resolve().parents[2] / "models" / "nacl-water.pt"


def written(path: Path, *headers: str, rows: str = ROWS) -> Path:
    path.write_text("".join(f"2\n{header}\n{rows}" for header in headers))
    return path


REFUSED = {
    "lattice": (f'lattice="{CUBE}"', 'a cell as lattice= in frame 0: write it as Lattice="ax ay'),
    "LATTICE": (f'LATTICE="{CUBE}"', "a cell as LATTICE="),
    "cell": (f'cell="{CUBE}" pbc="F F F"', "a cell as cell="),
    "box": ('box="4 4 4"', "a cell as box="),
    "cell parameters": ('cell_parameters="4 4 4 90 90 90"', "a cell as cell_parameters="),
    "two cells": (f'{LATTICE} cell="5 0 0 0 5 0 0 0 5"', "a second cell as cell="),
    "i-PI": ("# CELL(abcABC): 4.0 4.0 4.0 90.0 90.0 90.0 Step: 0 cell{angstrom}", "in words"),
    "%PBC": ("%PBC 4.0 4.0 4.0", "a cell in words"),
    "pbc as one word": (f'{LATTICE} pbc="TTF"', "pbc='TTF' in frame 0: write three of T and F"),
    "pbc of letters": (f'{LATTICE} pbc="xy"', "pbc='xy'"),
    "pbc of numbers": (f'{LATTICE} pbc="3 3 3"', "pbc=array"),
    "PBC": (f'{LATTICE} PBC="T T F"', "periodic directions as PBC="),
    "PBC in one word": (f"{LATTICE} PBC=TTF", "periodic directions as PBC="),
    "boundary": (f'{LATTICE} boundary="p p f"', "periodic directions as boundary="),
    "units": (f"{LATTICE} units=bohr", "units=bohr in frame 0: convert to eV, Å and e"),
    "length unit": (f"{LATTICE} pos_unit=nm", "pos_unit=nm"),
    "properties": ("properties=species:S:1:pos:R:3", "properties= in place of Properties="),
    "no positions": ("Properties=species:S:1:frac:R:3", "name the columns species (or Z) and pos"),
    "Pos": ("Properties=species:S:1:Pos:R:3", "name the columns species (or Z) and pos"),
    "twice": (f"{LATTICE} energy=-1 energy=-2", "energy twice in one header"),
}


@pytest.mark.parametrize(("header", "message"), REFUSED.values(), ids=REFUSED)
def test_headers_that_ase_would_pass_over(tmp_path, header, message):
    path = written(tmp_path / "a.xyz", header)
    with pytest.raises(DataError, match=r"a\.xyz: expected no entr") as caught:
        read_structures(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["predict", "eval", "md", "relax", "phonons", "eos", "elastic"])
def test_every_command_refuses_them(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.xyz", f'lattice="{CUBE}"')
    more = ["-n", "1", "-T", "300"] if command == "md" else []
    result = CliRunner().invoke(app, [command, str(MODEL), str(path), *more])
    assert result.exit_code == 2
    assert (
        "a.xyz: expected no entry that would be left out, got a cell as lattice=" in result.stderr
    )


def test_all_frames_with_a_problem_are_named(tmp_path):
    path = written(tmp_path / "a.xyz", LATTICE, f'lattice="{CUBE}"', LATTICE, 'lattice="5 5 5"')
    with pytest.raises(DataError, match=r"a cell as lattice= in frames 1, 3: write"):
        read_structures(path)
    written(path, *[f'{LATTICE} pbc="TTT"'] * 3)
    with pytest.raises(DataError, match=r"pbc='TTT' in all frames"):
        read_structures(path)


@pytest.mark.parametrize(
    ("header", "pbc"),
    [
        (LATTICE, [True] * 3),
        (f'{LATTICE} pbc="T T F"', [True, True, False]),
        (f"{LATTICE} pbc=[true,true,false]", [True, True, False]),
        (f'{LATTICE} pbc="1 1 0" periodic=TTF', [True, True, False]),
        (f'{LATTICE} pbc=T PBC="p p p"', [True] * 3),
        (
            f'{LATTICE} cell="{CUBE}" box="4 4 4" cellpar="4 4 4 90 90 90" a=4 lattice=fcc',
            [True] * 3,
        ),
        (f'{LATTICE} units="eV Angstrom" energy_unit=Hartree length_unit=Å', [True] * 3),
        (f'{LATTICE} units="eV, Angstrom"', [True] * 3),
        (f"{LATTICE} lattice_parameter=5.7 box=5.7 properties=[energy,forces]", [True] * 3),
        (f"{LATTICE} unit_cell=conventional supercell=2 cell_id=7 boundary=free", [True] * 3),
        ('free atoms of a box of cell type 3, ref "cell 4 4 4"', [False] * 3),
    ],
)
def test_what_says_nothing_new_is_let_pass(tmp_path, header, pbc):
    (atoms,) = read_structures(written(tmp_path / "a.xyz", header))
    assert atoms.pbc.tolist() == pbc
    assert atoms.cell.lengths() == pytest.approx([4.0] * 3 if any(pbc) else [0.0] * 3)


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".xyz.gz"])
def test_frames_behind_an_empty_line_are_not_cut_off(tmp_path, suffix):
    text = f"2\nfirst\n{ROWS}"
    path = tmp_path / f"a{suffix}"
    write = (
        (lambda t: path.write_bytes(gzip.compress(t.encode())))
        if "gz" in suffix
        else path.write_text
    )
    write(text + "\n" + text)
    with pytest.raises(
        DataError, match=r"an empty line 5 and more in line 6, after the last frame"
    ):
        read_structures(path)
    write(text + text + "\n  \n")
    assert len(read_structures(path)) == 2


def test_more_columns_than_are_named(tmp_path):
    rows = "Ar 0 0 0 0.1\nAr 2 2 0 0.2\n"
    path = written(tmp_path / "a.xyz", "Properties=species:S:1:pos:R:3", rows=rows)
    with pytest.raises(DataError, match="5 columns where Properties names 4 in frame 0"):
        read_structures(path)
    assert len(read_structures(written(path, "a plain comment", rows=rows))[0]) == 2


def test_vectors_below_a_header_of_keys(tmp_path):
    rows = f"{ROWS}VEC1 4 0 0\nVEC2 0 4 0\nVEC3 0 0 4\n"
    with pytest.raises(DataError, match="VEC lines below a header of keys in frame 0"):
        read_structures(written(tmp_path / "a.xyz", "charge=1 energy=-3", rows=rows))
    (atoms,) = read_structures(written(tmp_path / "a.xyz", "argon", rows=rows))
    assert atoms.cell.lengths() == pytest.approx([4.0] * 3)


def test_an_at_sign_in_a_name_chooses_no_frame(tmp_path):
    """ASE would read the file "run" of "run@2.xyz", where there is one."""
    ase.io.write(tmp_path / "run", molecule("CH4"), format="extxyz")
    for name in ("run@2.xyz", "run@2.traj"):
        ase.io.write(
            tmp_path / "a", [molecule("H2O")] * 3, format=name.split(".")[1].replace("x", "extx")
        )
        (tmp_path / "a").rename(tmp_path / name)
        assert [str(atoms.symbols) for atoms in read_structures(tmp_path / name)] == ["OH2"] * 3


def test_gzipped_frames_are_what_ase_reads(tmp_path):
    frames = [bulk("NaCl", "rocksalt", a=5.6), molecule("H2O")]
    frames[0].rattle(0.1)
    frames[0].info |= {"name": "rock salt", "charge": 0}
    ase.io.write(tmp_path / "a.extxyz.gz", frames)
    for ours, theirs in zip(
        read_structures(tmp_path / "a.extxyz.gz"),
        ase.io.read(tmp_path / "a.extxyz.gz", ":"),
        strict=True,
    ):
        assert ours == theirs and ours.info == theirs.info


# --- sites --------------------------------------------------------------------------------------

CIF = """data_x
_cell_length_a 5
_cell_length_b 5
_cell_length_c 5
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


@pytest.mark.parametrize(
    "sites",
    [
        "Na1 Na 0 0 0 0.5\nK1 K 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1\n",
        "Na1 Na 0 0 0 0.9\nCl1 Cl 0.5 0.5 0.5 1\n",
        "Na1 Na 0 0 0 0.5\nNa2 Na 0.1 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1\n",
    ],
)
def test_disordered_crystals_are_refused(tmp_path, sites):
    path = tmp_path / "a.cif"
    path.write_text(CIF + sites)
    with pytest.raises(DataError, match="disordered sites, such as Na 0"):
        read_structures(path)
    for sites in (
        "Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 1\n",
        "Na1 Na 0 0 0 .\nCl1 Cl 0.5 0.5 0.5 ?\n",
    ):
        path.write_text(CIF + sites)
        assert str(read_structures(path)[0].symbols) == "NaCl"


def test_an_occupancy_column(tmp_path):
    rows = "Ar 0 0 0 1\nAr 2 2 0 0.25\n"
    path = written(tmp_path / "a.xyz", "Properties=species:S:1:pos:R:3:occupancy:R:1", rows=rows)
    with pytest.raises(DataError, match="1 atoms of an occupancy other than 1"):
        read_structures(path)


def pdb(*atoms: str, cell: str = "") -> str:
    return "\n".join([*([cell] if cell else []), *atoms, "END", ""])


SODIUM = "HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA  "
CHLORIDE = "HETATM    2 CL    CL A   2       2.500   2.500   2.500  1.00  0.00          CL  "
BOX = "CRYST1    5.000    5.000    5.000  90.00  90.00  90.00 "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (pdb(SODIUM, cell=BOX + "P 21 21 21"), "space group P 21 21 21"),
        (pdb(SODIUM, cell=BOX.replace("5.000", "1.000") + "P 1"), "stands for no crystal"),
        (pdb(SODIUM[:16] + "A" + SODIUM[17:], cell=BOX), "alternate locations"),
        (pdb(SODIUM[:76]), "atoms without an element"),
        (
            pdb(SODIUM[:78] + "1+", SODIUM[:78] + "1+", CHLORIDE),
            r"formal charges that sum to \+2 e",
        ),
        (pdb(SODIUM.replace("1.00  0.00", "0.50  0.00")), "1 atoms of an occupancy other than 1"),
    ],
)
def test_protein_data_bank(tmp_path, text, message):
    path = tmp_path / "a.pdb"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_structures(path)
    path.write_text(pdb(SODIUM[:78] + "1+", CHLORIDE[:78] + "1-", cell=BOX + "P 1           1"))
    (atoms,) = read_structures(path)
    assert str(atoms.symbols) == "NaCl" and atoms.pbc.all()


# --- other programs' files ------------------------------------------------------------------------

MOLFILE = """
  made by hand

  2  1  0  0  0  0            999 V2000
    0.0000    0.0000    0.0000 O   0  {code}
    0.0000    0.0000    1.0000 H   0  0
  1  2  1  0
{charge}M  END
"""


@pytest.mark.parametrize(
    ("code", "charge", "expected"),
    [
        (0, "", None),
        (5, "", -1),
        (0, "M  CHG  1   1  -1\n", -1),
        (0, "M  CHG  2   1  -1   2   1\n", None),
    ],
)
def test_formal_charges_of_a_molfile_are_the_total_charge(tmp_path, code, charge, expected):
    text = MOLFILE.format(code=code, charge=charge)
    (tmp_path / "a.mol").write_text(text)
    assert read_structures(tmp_path / "a.mol")[0].info.get("charge") == expected
    (tmp_path / "a.sdf").write_text(f"{MOLFILE.format(code=0, charge='')}$$$$\n{text}$$$$\n")
    found = [atoms.info.get("charge") for atoms in read_structures(tmp_path / "a.sdf")]
    assert found in ([None, expected], [None])  # ASE reads the first molecule alone


def test_the_charge_of_an_input_file_is_the_total_charge(tmp_path):
    (tmp_path / "a.com").write_text(
        "#p hf/sto-3g\n\ntitle\n\n-1 1\nO 0.0 0.0 0.0\nH 0.0 0.0 1.0\n\n"
    )
    assert read_structures(tmp_path / "a.com")[0].info["charge"] == -1.0
    card = "&CONTROL\n/\n&SYSTEM\nibrav=0, nat=1, ntyp=1, {more}ecutwfc=30\n/\n&ELECTRONS\n/\n"
    card += "ATOMIC_SPECIES\nNa 23 na.upf\nATOMIC_POSITIONS angstrom\nNa 0 0 0\n"
    card += "CELL_PARAMETERS angstrom\n5 0 0\n0 5 0\n0 0 5\nK_POINTS gamma\n"
    (tmp_path / "a.pwi").write_text(card.format(more="tot_charge=+1.0, "))
    assert read_structures(tmp_path / "a.pwi")[0].info["charge"] == 1.0
    (tmp_path / "a.pwi").write_text(card.format(more="tefield=.true., "))
    with pytest.raises(DataError, match="an electric field"):
        read_structures(tmp_path / "a.pwi")


DUMP = """{units}ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp pp
0 5
0 5
0 5
ITEM: ATOMS id {what} x y z vx vy vz
1 {first} 0 0 0 0 0 1
2 {second} 2.5 2.5 2.5 0 0 -1
"""


def test_types_of_lammps_are_no_atomic_numbers(tmp_path):
    path = tmp_path / "a.lammpstrj"
    path.write_text(DUMP.format(units="", what="type", first=1, second=2))
    with pytest.raises(DataError, match="types that would be read as atomic numbers"):
        read_structures(path)
    path.write_text(DUMP.format(units="", what="element", first="Na", second="Cl"))
    assert str(read_structures(path)[0].symbols) == "NaCl"
    units = "ITEM: UNITS\nreal\n"
    path.write_text(DUMP.format(units=units, what="element", first="Na", second="Cl"))
    with pytest.raises(DataError, match="LAMMPS's units real"):
        read_structures(path)


def test_gromacs_names_are_no_elements(tmp_path):
    path = tmp_path / "a.gro"
    line = "    1NA     NA    1   0.000   0.000   0.000\n"
    path.write_text(f"t\n1\n{line}   0.50000   0.50000   0.50000\n")
    with pytest.raises(DataError, match="Na, read as N"):
        read_structures(path)


def test_rows_of_a_database(tmp_path):
    atoms = molecule("OH")
    atoms.set_initial_magnetic_moments(None)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(
            atoms,
            key_value_pairs={"total_charge": -1, "label": "hydroxide"},
            data={"energy": -3.0, "forces": np.full((2, 3), 0.1)},
        )
    (found,) = read_structures(tmp_path / "a.db")
    with pytest.raises(DataError, match="total_charge"):
        labels_of(found)
    found.info["charge"] = -1
    labels = labels_of(found)
    assert labels.energy == -3.0 and labels.forces == pytest.approx(0.1)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_property_unit_dict": {"energy": "Hartree"}, "_distance_unit": "Ang"}
    (found,) = read_structures(tmp_path / "a.db")
    found.info["charge"] = -1
    with pytest.raises(DataError, match=r"energy_unit=Hartree \(convert to eV"):
        check_labels([found], {"energy"})
    check_labels([found], {"forces"})
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_distance_unit": "Bohr"}
    with pytest.raises(DataError, match="_distance_unit=Bohr"):
        read_structures(tmp_path / "a.db")


# --- what moves -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "wanted"),
    [
        ("mass", [18.0, 2.0, 2.0], "masses"),
        ("vel", np.ones((3, 3)), "momenta"),
        ("velocities", np.ones((3, 3)), "momenta"),
        ("fixed", [1, 0, 0], "move_mask"),
        ("Move_Mask", [True, False, False], "move_mask"),
    ],
)
def test_columns_that_a_simulation_would_miss(tmp_path, name, column, wanted):
    atoms = molecule("H2O")
    atoms.set_array(name, np.array(column))
    with pytest.raises(DataError, match=rf"got {name}; make it {wanted}"):
        check_columns(atoms, "masses", "momenta", "move_mask")
    check_columns(atoms, *({"masses", "momenta", "move_mask"} - {wanted}))
    ase.io.write(tmp_path / "a.extxyz", atoms)
    arguments = ["md", str(MODEL), str(tmp_path / "a.extxyz"), "-n", "1", "-T", "300"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "md")])
    assert result.exit_code == 2 and f"got {name}; make it {wanted}" in result.stderr


def test_columns_that_say_nothing_new():
    atoms = Atoms("H2O", positions=np.eye(3))
    atoms.set_array("mass", atoms.get_masses())
    atoms.set_array("vel", np.zeros((3, 3)))
    atoms.set_momenta(np.ones((3, 3)))
    atoms.set_array("fixed", np.zeros(3, dtype=int))
    check_columns(atoms, "masses", "momenta", "move_mask")
