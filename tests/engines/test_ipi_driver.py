"""What i-PI is told: units, signs, layouts and refusals, without i-PI itself."""

import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk as build_bulk
from ase.build import fcc111, molecule
from ase.io import write
from numpy.testing import assert_allclose

from phicalc import PhiCalculator
from phicalc.engines import ipi_driver
from phicalc.engines.ipi import Driver
from phicalc.engines.ipi_client import serve
from phicalc.errors import (
    DataError,
    ModelFileError,
    ServerError,
    StructureError,
    UnsupportedError,
)
from tests.conftest import structure
from tests.reference_models import argon_crystal, lennard_jones_model, phi_model
from tests.serving.test_response import served

ROOT = Path(__file__).resolve().parents[2]
BOHR, HARTREE = 0.529177210903, 27.211386245988  # Å, eV: CODATA 2018
STEP = 1e-4


def skewed():
    """Rock salt in a triclinic cell, off its symmetric positions."""
    atoms = build_bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    shear = np.array([[0, 0, 0], [0.3, 0, 0.1], [0, 0.4, 0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def asked(driver, atoms):
    """The answer to a structure as i-PI sends it: cell vectors in columns, Bohr."""
    return driver(atoms.cell.array.T / BOHR, atoms.positions / BOHR)


@pytest.fixture
def files(tmp_path):
    """A model file and a structure file."""
    (tmp_path / "model.pt").write_bytes(served("phi-coulomb").data)
    write(tmp_path / "salt.xyz", skewed(), format="extxyz")
    return tmp_path / "model.pt", tmp_path / "salt.xyz"


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bulk", "molecule", "slab"])
def test_energy_and_forces_are_the_calculators_in_atomic_units(kind):
    atoms = skewed() if kind == "bulk" else structure(kind)
    model = lennard_jones_model() if kind == "slab" else served("qeq")
    if kind == "slab":
        atoms = fcc111("Ar", (2, 2, 2), a=5.3, vacuum=6.0)
        atoms.rattle(0.05, seed=1)
    driver = Driver(model, atoms)
    atoms.calc = PhiCalculator(model)
    for _ in range(2):
        answer = asked(driver, atoms)
        assert answer.energy * HARTREE == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
        assert_allclose(answer.forces * HARTREE / BOHR, atoms.get_forces(), rtol=1e-6, atol=1e-7)
        assert answer.extras == ""
        atoms.rattle(0.02, seed=2)


@pytest.mark.parametrize("kind", ["bulk", "molecule"])
def test_the_virial_is_minus_the_derivative_by_strain(kind):
    """i-PI's own sign: a compressed system has a positive trace."""
    atoms = skewed() if kind == "bulk" else structure(kind)
    driver = Driver(served("qeq"), atoms)
    virial = asked(driver, atoms).virial
    for i, j in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * STEP / 2
            strain[j, i] += sign * STEP / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=False)
            strained.positions = atoms.positions @ strain
            energies.append(asked(driver, strained).energy)
        expected = -(energies[0] - energies[1]) / (2 * STEP)
        assert virial[i, j] == pytest.approx(expected, abs=1e-6), (i, j)
    assert_allclose(virial, virial.T, atol=1e-12)


def test_a_slab_has_no_virial_rather_than_none_at_all():
    atoms = fcc111("Ar", (2, 2, 2), a=5.3, vacuum=6.0)
    assert np.isnan(asked(Driver(lennard_jones_model(), atoms), atoms).virial).all()


@pytest.mark.parametrize(("kind", "heads"), [("bulk", "phi-coulomb"), ("molecule", "qeq")])
def test_born_charges_are_the_derivative_of_the_dipole(kind, heads):
    """In the layout of i-PI's driven dynamics: the force in a field E is BEC @ E, (3N,)."""
    atoms = skewed() if kind == "bulk" else molecule("H2O")
    driver = Driver(served(heads), atoms, extras="dipole+BEC")
    born = np.array(json.loads(asked(driver, atoms).extras)["BEC"])
    assert born.shape == (3 * len(atoms), 3)
    for atom, axis in [(0, 0), (1, 1), (len(atoms) - 1, 2)]:
        dipoles = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * STEP * BOHR
            dipoles.append(json.loads(asked(driver, moved).extras)["dipole"])
        expected = np.subtract(*dipoles) / (2 * STEP)  # e·Bohr per Bohr
        assert_allclose(born[3 * atom + axis], expected, atol=2e-6)
    assert np.abs(born.reshape(-1, 3, 3).sum(axis=0)).max() < 1e-12


def test_the_dipole_of_an_ion_is_about_the_origin_and_its_born_charges_sum_to_its_charge():
    atoms = molecule("H2O")
    atoms.info["charge"] = 1
    driver = Driver(served("qeq"), atoms, extras="dipole,BEC,charges")
    told = json.loads(asked(driver, atoms).extras)
    assert_allclose(np.reshape(told["BEC"], (-1, 3, 3)).sum(axis=0), np.eye(3), atol=1e-12)
    assert sum(told["charges"]) == pytest.approx(1.0, abs=1e-6)
    expected = np.array(told["charges"]) @ atoms.positions / BOHR
    assert_allclose(told["dipole"], expected, atol=1e-7)
    atoms.positions += [1.0, 0.0, 0.0]
    moved = json.loads(asked(driver, atoms).extras)["dipole"]
    assert_allclose(np.subtract(moved, told["dipole"]), [1 / BOHR, 0, 0], atol=1e-6)


def test_charge_and_field_are_those_of_the_calculator():
    atoms = molecule("H2O")
    options = {"charge": 1.0, "field": [0.1, -0.2, 0.05]}
    answer = asked(Driver(served("qeq"), atoms, **options), atoms)
    atoms.calc = PhiCalculator(served("qeq"), **options)
    assert answer.energy * HARTREE == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
    assert_allclose(answer.forces * HARTREE / BOHR, atoms.get_forces(), atol=1e-7)
    atoms.calc = PhiCalculator(served("qeq"))
    assert abs(answer.energy * HARTREE - atoms.get_potential_energy()) > 1e-3


@pytest.mark.parametrize("extras", ["", "dipole"])
def test_a_batch_is_one_by_one(extras):
    """Of a committee, in cells of their own."""
    models = [served("phi-coulomb"), served("phi-coulomb", seed=1)]
    driver = Driver(models, skewed(), extras=extras)
    frames = []
    for seed in range(3):
        atoms = skewed()
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * seed), scale_atoms=True)
        atoms.rattle(0.03, seed=seed)
        frames.append(atoms)
    cells = [atoms.cell.array.T / BOHR for atoms in frames]
    found = driver.compute(cells, [atoms.positions / BOHR for atoms in frames])
    assert len({answer.energy for answer in found}) == 3
    for atoms, answer in zip(frames, found, strict=True):
        alone = asked(driver, atoms)
        assert answer.energy == pytest.approx(alone.energy, abs=1e-9)
        assert_allclose(answer.forces, alone.forces, atol=1e-8)
        assert_allclose(answer.virial, alone.virial, atol=1e-8)
        assert answer.extras[:10] == alone.extras[:10]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "atoms", "options", "error", "message"),
    [
        (phi_model, argon_crystal, {}, UnsupportedError, "Ar"),
        (phi_model, skewed, {"field": [0, 0, 0.1]}, UnsupportedError, "no electric field"),
        (phi_model, skewed, {"extras": "BEC"}, UnsupportedError, "no BEC of this model"),
        (phi_model, skewed, {"extras": "dipole"}, UnsupportedError, "no dipole of this model"),
        (phi_model, skewed, {"extras": "born"}, UnsupportedError, "dipole, BEC, charges, got"),
        (lennard_jones_model, argon_crystal, {"extras": ["charges"]}, UnsupportedError,
         "no charges of this model and structure: it has no electrostatics"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_is_said_before_i_pi_is_met(model, atoms, options, error, message):
    with pytest.raises(error, match=message):
        Driver(model(), atoms(), **options)


def test_files_that_are_missing_or_not_there_are_named(files, tmp_path):
    model, salt = files
    with pytest.raises(ModelFileError, match=r"other\.pt"):
        Driver(tmp_path / "other.pt", salt)
    with pytest.raises(DataError, match=r"other\.xyz"):
        Driver(model, tmp_path / "other.xyz")
    with pytest.raises(UnsupportedError, match="expected one of 1 structures, got 3"):
        Driver(model, salt, frame=3)


def test_other_atoms_than_the_structures_are_refused():
    atoms = skewed()
    driver = Driver(served("phi-coulomb"), atoms)
    with pytest.raises(StructureError, match=r"expected the 4 atoms of the structure .*, got 3"):
        driver(atoms.cell.array, atoms.positions[:3])


def test_what_the_structure_is_given_by_stays_as_it_was():
    atoms = skewed()
    before = atoms.copy()
    asked(Driver(served("phi-coulomb"), atoms), atoms.copy() * (1, 1, 1))
    asked_for = atoms.copy()
    asked_for.rattle(0.1, seed=3)
    asked(Driver(served("phi-coulomb"), atoms), asked_for)
    assert atoms == before and atoms.calc is None


# --- the file that i-PI loads -------------------------------------------------------------------


def test_the_file_may_be_loaded_as_i_pi_loads_it():
    """Under its own name in sys.modules, which must not be that of i-PI's package."""
    assert Path(ipi_driver.__file__).stem != "ipi"
    loaded = runpy.run_path(ipi_driver.__file__)
    assert loaded["__DRIVER_NAME__"] == "phicalc"
    assert loaded["__DRIVER_CLASS__"] in loaded
    source = Path(ipi_driver.__file__).read_text(encoding="utf-8")
    assert '__DRIVER_CLASS__ = "PhicalcDriver"' in source  # i-PI reads it without running it


def test_the_file_takes_options_as_i_pi_passes_them(files):
    model, salt = map(str, files)
    driver = ipi_driver.PhicalcDriver(
        model, salt, verbose=True, verbosity=3, field="0.01 0 -0.02", extras="dipole BEC"
    )
    expected = Driver(model, salt, field=[0.01, 0, -0.02])
    atoms = skewed()
    assert asked(driver, atoms).energy == asked(expected, atoms).energy
    assert set(json.loads(asked(driver, atoms).extras)) == {"dipole", "BEC"}
    by_name = ipi_driver.PhicalcDriver(model=model, structure=salt)
    assert by_name.compute(atoms.cell.array.T / BOHR, atoms.positions / BOHR).extras == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "expected a model, a structure and options"),
        ({"temperature": 300}, "got .*temperature; write -o model.pt,water.xyz"),
        ({"field": "0.1 x"}, "expected three numbers as field"),
        ({"field": "0.1 0.2"}, "field"),
        ({"model": "nowhere.pt"}, r"nowhere\.pt"),
    ],
)
def test_mistakes_end_i_pi_by_one_line(files, options, message):
    given = {"model": str(files[0]), "structure": str(files[1]), **options}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        ipi_driver.PhicalcDriver(**given)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_step_ends_i_pi_by_one_line(files):
    driver = ipi_driver.PhicalcDriver(*map(str, files))
    with pytest.raises(SystemExit, match=r"^error: expected finite positions"):
        driver(np.eye(3) * 20, np.full((4, 3), np.nan))


# --- the client ---------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_missed(tmp_path, monkeypatch):
    driver = Driver(served("phi-coulomb"), skewed())
    with pytest.raises(ServerError, match=r"got none .*; start it first"):
        serve(driver, unix="x", prefix=str(tmp_path) + "/", wait=0.3)

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(ServerError, match="i-PI is not installed here: pip install ipi"):
        serve(driver, port=1, wait=0.0)


def test_a_name_that_is_no_host_is_said_at_once():
    driver = Driver(served("phi-coulomb"), skewed())
    with pytest.raises(ServerError, match=r"expected an i-PI server at no\.such\.host\.invalid:1"):
        serve(driver, host="no.such.host.invalid", port=1)


class Server:
    """One end of a socket that says what a test tells it to."""

    def __init__(self, folder):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(folder / "s"))
        self.socket.listen(1)

    def say(self, *parts):
        def run():
            connection, _ = self.socket.accept()
            connection.sendall(b"".join(parts))
            connection.close()

        threading.Thread(target=run).start()


def message(text):
    return text.encode().ljust(12)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ([message("STATUS")], ServerError, "broke the connection after 0 structures"),
        ([b"GET /"], ServerError, "broke the connection"),
        ([message("HELLO")], ServerError, "expected a message of i-PI's protocol, got 'HELLO'"),
        (
            [message("POSDATA"), np.eye(3).tobytes() * 2, np.int32(5).tobytes()],
            StructureError,
            "expected the 4 atoms of the structure from i-PI, got 5",
        ),
    ],
)
def test_a_server_that_fails_is_named(tmp_path, parts, error, words):
    server = Server(tmp_path)
    server.say(*parts)
    driver = Driver(served("phi-coulomb"), skewed())
    with pytest.raises(error, match=words):
        serve(driver, unix="s", prefix=str(tmp_path) + "/")
    server.socket.close()


# --- the command --------------------------------------------------------------------------------


def phicalc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "phicalc.cli", "ipi", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


def test_the_command_prints_the_file_of_the_driver():
    shown = phicalc("--path")
    assert shown.returncode == 0
    assert Path(shown.stdout.strip()) == Path(ipi_driver.__file__)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "expected a server as --unix NAME, or as --port P with or without --host H, got none"),
        (("--unix", "a", "--port", "1"), "got --unix and --port"),
        (("--host", "a"), "got --host"),
        (("--unix", "nobody-listens", "--wait", "0"), "/tmp/ipi_nobody-listens, got none"),
        (("--unix", "a", "--extras", "spin"), "expected extras of dipole, BEC, charges"),
    ],
)
def test_the_command_fails_by_one_line(files, options, words):
    done = phicalc(*files, "--device", "cpu", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
