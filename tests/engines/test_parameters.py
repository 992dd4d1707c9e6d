"""What ASE, its files and databases, and programs built on them ask of a calculator."""

import copy
import hashlib
import json
import pickle
import threading
from importlib.metadata import entry_points

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase._4.plugins import PluginCollection
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import AverageCalculator, SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.io.jsonio import decode, encode
from numpy.testing import assert_allclose

import phicalc
from phicalc import PhiCalculator
from phicalc.errors import StructureError, UnsupportedError
from phicalc.serving.prediction import predict
from tests.serving.test_response import served

FIELD = [0.0, 0.0, 0.02]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("models") / "model.pt"
    path.write_bytes(model.data)
    return path


# --- plugins ------------------------------------------------------------------------------------


def test_ase_lists_the_calculator_among_its_plugins():
    """As ASE finds it: by the entry point of the installed package."""
    assert [found.value for found in entry_points(group="ase.plugins", name="phicalc")] == [
        "phicalc.engines.plugin"
    ]
    found = {plugin.name: plugin for plugin in PluginCollection.from_entry_points().calculators}
    plugin = found["phicalc"]
    assert plugin() is PhiCalculator
    assert plugin.display().split() == [
        "phicalc", "(phicalc.engines.plugin", f"{phicalc.__version__})",
    ]  # fmt: skip


# --- parameters ---------------------------------------------------------------------------------


def test_parameters_say_what_computes(model_file, model):
    calculator = PhiCalculator(model_file, device="cpu", default_dtype="float64", charge=1)
    assert calculator.parameters == {
        "arch": "phicalc",
        "phicalc_version": phicalc.__version__,
        "model": str(model_file),
        "sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "device": "cpu",
        "default_dtype": "float64",
        "charge": 1.0,
    }
    assert calculator.todict() == calculator.parameters
    assert json.loads(json.dumps(calculator.parameters)) == calculator.parameters
    for duplicate in (copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        copied = duplicate(calculator)
        assert copied.parameters == calculator.parameters
        copied.charge = 2
        assert calculator.charge == 1.0
    committee = PhiCalculator([model_file, model], device="cpu").parameters
    assert committee["model"] == f"{model_file} in memory"
    assert committee["sha256"].split() == [calculator.parameters["sha256"]] * 2
    assert "charge" not in committee and "field" not in committee


def test_charge_and_field_are_parameters(model):
    """One place for each: what `parameters` shows is what is calculated."""
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 3]])
    calculator = PhiCalculator(model, charge=1)
    charged = calculator.get_potential_energy(atoms)
    assert calculator.set(charge=0) == {"charge": 0}
    assert calculator.parameters["charge"] == 0.0
    neutral = calculator.get_potential_energy(atoms)
    assert neutral != charged
    assert calculator.set(charge=0.0) == {}
    calculator.charge = 1
    assert calculator.parameters["charge"] == 1.0
    assert calculator.get_potential_energy(atoms) == charged
    calculator.charge = None
    assert "charge" not in calculator.parameters
    assert calculator.get_potential_energy(atoms) == neutral
    assert set(calculator.set(field=FIELD)) == {"field"}
    assert calculator.field.tolist() == calculator.parameters["field"].tolist() == FIELD
    assert calculator.set(field=FIELD) == {}


def test_what_cannot_be_set_is_refused(model):
    calculator = PhiCalculator(model)
    before = dict(calculator.parameters)
    with pytest.raises(UnsupportedError, match=r"expected charge or field, .* got xc"):
        calculator.set(charge=1, xc="PBE")
    with pytest.raises(StructureError, match="total charge as one finite number"):
        calculator.set(charge="one")
    with pytest.raises(StructureError, match="three finite numbers"):
        calculator.field = [1.0]
    assert calculator.parameters == before


# --- files and databases ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_a_database_keeps_results_and_parameters(tmp_path, bulk, suffix):
    bulk.calc = PhiCalculator(served("phi-coulomb"), device="cpu", field=FIELD)
    energy, forces = bulk.get_potential_energy(), bulk.get_forces()
    with ase.db.connect(tmp_path / f"rows.{suffix}") as database:
        row = database.get(database.write(bulk))
    assert row.calculator == "phicalc"
    kept = row.calculator_parameters
    assert np.asarray(kept.pop("field")).tolist() == FIELD
    assert kept == {k: v for k, v in bulk.calc.parameters.items() if k != "field"}
    assert row.energy == row.free_energy == energy
    read = row.toatoms()
    for name in ("forces", "stress", "charges"):
        assert_allclose(read.calc.results[name], bulk.calc.results[name], atol=1e-14)
    assert_allclose(read.get_forces(), forces, atol=1e-14)


@pytest.mark.parametrize("suffix", ["traj", "xyz", "json"])
def test_a_file_keeps_every_result(tmp_path, bulk, suffix):
    bulk.calc = PhiCalculator(served("phi-coulomb"), device="cpu", field=FIELD)
    for name in ("energy", "born_effective_charges", "polarization"):
        bulk.calc.get_property(name, bulk)
    ase.io.write(tmp_path / f"one.{suffix}", bulk)
    read = ase.io.read(tmp_path / f"one.{suffix}")
    assert {"energy", "free_energy", "energies", "forces", "stress", "charges"} <= set(
        read.calc.results
    )
    for name, value in read.calc.results.items():
        expected = bulk.calc.get_property(name, bulk, allow_calculation=False)
        assert_allclose(value, expected, atol=1e-8, err_msg=name)
    if suffix == "traj":
        assert read.calc.name == "phicalc"
        assert read.calc.parameters["sha256"] == bulk.calc.parameters["sha256"]
        assert read.calc.parameters["field"].tolist() == FIELD


def test_a_charge_that_only_a_trajectory_remembers_is_named(tmp_path, molecule, model):
    molecule.calc = PhiCalculator(model, charge=1)
    energy = molecule.get_potential_energy()
    ase.io.write(tmp_path / "ion.traj", molecule)
    read = ase.io.read(tmp_path / "ion.traj")
    with pytest.raises(StructureError, match=r'calc.parameters\["charge"\] = 1, while 0 would'):
        predict(model, [read])
    assert predict(model, [read], charge=1)[0].energy == pytest.approx(energy, abs=1e-9)


def test_a_field_that_only_a_trajectory_remembers_is_named(tmp_path, bulk):
    model = served("phi-coulomb")
    bulk.calc = PhiCalculator(model, field=FIELD)
    energy = bulk.get_potential_energy()
    ase.io.write(tmp_path / "field.traj", bulk)
    read = ase.io.read(tmp_path / "field.traj")
    with pytest.raises(StructureError, match=r'calc.parameters\["field"\] = .* is not used'):
        predict(model, [read])
    assert predict(model, [read], field=FIELD)[0].energy == pytest.approx(energy, abs=1e-9)


def test_a_structure_with_its_results_as_json(bulk, model):
    bulk.calc = PhiCalculator(model)
    bulk.get_potential_energy()
    kept = SinglePointCalculator(bulk, **bulk.calc.results)
    found = decode(encode(kept.results))
    assert found["energy"] == bulk.calc.results["energy"]
    assert np.array_equal(found["forces"], bulk.calc.results["forces"])


# --- calculators of calculators -----------------------------------------------------------------


def test_sums_and_means_of_calculators(bulk, model):
    alone = PhiCalculator(model)
    dispersion = LennardJones(sigma=2.0, epsilon=0.01, rc=5.0)
    bulk.calc = SumCalculator([PhiCalculator(model), dispersion])
    for name in ("energy", "forces", "stress"):
        expected = alone.get_property(name, bulk) + dispersion.get_property(name, bulk)
        assert_allclose(bulk.calc.get_property(name, bulk), expected, atol=1e-12)
    bulk.calc = AverageCalculator([PhiCalculator(model), PhiCalculator(model)])
    assert_allclose(bulk.get_forces(), alone.get_forces(bulk), atol=1e-12)


# --- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bulk", "molecule"])
def test_a_socket_client_serves_ases_socket_server(request, kind, model, tmp_path):
    """SocketClient is what i-PI, FHI-aims' driver and ASE's own server talk to."""
    atoms = request.getfixturevalue(kind)
    periodic = bool(atoms.pbc.all())
    served_atoms = atoms.copy()
    served_atoms.calc = PhiCalculator(model, device="cpu")
    name = f"phicalc-{kind}-{tmp_path.parent.name}"

    def client():
        SocketClient(unixsocket=name, timeout=60).run(served_atoms, use_stress=periodic)

    expected = PhiCalculator(model, device="cpu", cache=False)
    with SocketIOCalculator(unixsocket=name, timeout=60) as server:
        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        atoms.calc = server
        for step in range(3):
            assert atoms.get_potential_energy() == pytest.approx(
                expected.get_potential_energy(atoms), abs=1e-8
            )
            assert_allclose(atoms.get_forces(), expected.get_forces(atoms), atol=1e-7)
            if periodic:
                assert_allclose(atoms.get_stress(), expected.get_stress(atoms), atol=1e-8)
            atoms.rattle(0.05, seed=step)
            atoms.set_cell(atoms.cell * 1.01, scale_atoms=periodic)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert served_atoms.calc.timings()["evaluations"] == 3
