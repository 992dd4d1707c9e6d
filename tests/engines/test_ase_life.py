"""What a calculator keeps from step to step, through copies, and of the process it lives in."""

import copy
import gc
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk as build_bulk
from ase.build import molecule as build_molecule
from ase.md.verlet import VelocityVerlet
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.data.boxes import salt_water
from phicalc.engines.ase import PhiCalculator
from phicalc.errors import StructureError, UnsupportedError
from phicalc.serving.evaluation import conditions_of
from phicalc.serving.evaluator import Evaluator
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes, save_model
from tests.reference_models import small_metadata, small_potential

SHIPPED = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("models") / "model.pt"
    path.write_bytes(model.data)
    return path


def cold_forces(model: LoadedModel, atoms: Atoms) -> np.ndarray:
    """Forces of a calculator that has seen nothing before."""
    return PhiCalculator(model, cache=False).get_forces(atoms)


# --- history ------------------------------------------------------------------------------------


def test_a_calculator_moved_between_structures_remembers_nothing_wrong(model):
    structures = [
        build_molecule("H2O"),
        build_molecule("CH3CH2OH"),
        build_bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1),
        build_molecule("CH4"),
        Atoms("Na"),
        build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (4, 3, 3),
        build_molecule("H2O"),
    ]
    calculator = PhiCalculator(model)
    for atoms in structures:
        atoms.calc = calculator
        assert atoms.get_forces() == pytest.approx(cold_forces(model, atoms), abs=1e-7)


def test_the_same_numbers_of_atoms_but_others(model):
    atoms = build_molecule("H2O")
    atoms.calc = PhiCalculator(model)
    atoms.get_forces()
    atoms.numbers[:] = [6, 1, 17]
    assert np.array_equal(atoms.get_forces(), cold_forces(model, atoms))


def test_another_molecule_of_equal_size_starts_cold():
    """Isomers in turn, charges by iterations: those of one are no start for the other."""
    network = small_potential("float64", heads=[{"kind": "qeq"}])
    network.potential.heads[0].dense_limit = 0
    model = load_model(model_bytes(network, small_metadata("float64", heads=["qeq"])))
    evaluator = Evaluator([model], skin=1.0, cache=True, threads=None)
    total = 0
    for name in ("CH3CH2OH", "CH3OCH3", "CH3CH2OH"):
        atoms = build_molecule(name)
        fresh = Evaluator([model], skin=1.0, cache=True, threads=None)
        conditions = conditions_of(atoms)
        (expected,), (found,) = fresh(atoms, conditions), evaluator(atoms, conditions)
        for key in (fields.ENERGY, fields.FORCES, fields.CHARGES):
            assert torch.equal(found.output[key], expected.output[key])
        assert fields.CHARGE_GUESS not in found.graph
        iterations = fresh.cache_info()["solver_last_iterations"]
        assert evaluator.cache_info()["solver_last_iterations"] == iterations > 1
        total += iterations
        (again,) = evaluator(atoms, conditions)  # the same structure once more is solved already
        assert evaluator.cache_info()["solver_last_iterations"] == 0
        assert fields.CHARGE_GUESS in again.graph
    info = evaluator.cache_info()
    assert (info["solver_steps"], info["solver_topologies"]) == (6, 3)
    assert info["solver_iterations"] == total


def test_md_with_caches_follows_the_cold_solve(model):
    atoms = build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (4, 3, 3)  # above direct solves
    atoms.rattle(0.05, seed=1)
    atoms.calc = PhiCalculator(model, skin=0.5)
    generator = np.random.default_rng(0)
    for _ in range(15):
        atoms.positions += generator.normal(0.0, 0.02, (len(atoms), 3))
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        cold = PhiCalculator(model, cache=False)
        assert energy == pytest.approx(cold.get_potential_energy(atoms), abs=1e-8 * len(atoms))
        assert forces == pytest.approx(cold.get_forces(atoms), abs=1e-6)
    info = atoms.calc.cache_info()
    assert info["solver_steps"] == info["neighbour_updates"] == 15
    assert info["neighbour_rebuilds"] == info["solver_topologies"] < 15
    assert cold.cache_info()["solver_steps"] == 0


def flow_model(**changes: bool) -> LoadedModel:
    """PaiNN with phi-coulomb in float64, random weights; what it says it can do may be changed."""
    head = {"kind": "phi-coulomb", "formal_charges": {"Na": 1.0, "Cl": -1.0}}
    network = small_potential("float64", heads=[head])
    known = describe(network.potential)
    able = known.capabilities.model_copy(update=changes)
    return load_model(model_bytes(network, known.model_copy(update={"capabilities": able})))


def test_md_with_a_kept_inverse_follows_the_cold_solve():
    atoms = build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (3, 2, 2)  # above direct solves
    model = flow_model()
    atoms.calc, cold = PhiCalculator(model), PhiCalculator(model, cache=False)
    sites, phases = atoms.positions.copy(), np.random.default_rng(0).uniform(0, 6, (96, 3))
    iterations = []
    for step in range(30):
        atoms.positions = sites + 0.1 * np.sin(0.1 * step + phases)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert energy == pytest.approx(cold.get_potential_energy(atoms), abs=1e-8 * len(atoms))
        assert forces == pytest.approx(cold.get_forces(atoms), abs=1e-6)
        iterations.append(atoms.calc.cache_info()["solver_last_iterations"])
    info = atoms.calc.cache_info()
    assert info["solver_mode"] == "inverse" and info["solver_aided_steps"] > 15
    assert max(iterations[-10:]) < 0.75 * min(iterations[3:8])
    # what was kept helps the response to a field, too, and changes nothing in it
    born, tensor = atoms.calc.get_property("born_effective_charges"), atoms.calc.polarizability
    assert born == pytest.approx(cold.get_property("born_effective_charges", atoms), abs=1e-6)
    assert tensor == pytest.approx(cold.polarizability, abs=1e-5)


def test_a_file_from_before_inverses_keeps_none():
    atoms = build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (3, 2, 2)
    atoms.calc = PhiCalculator(flow_model(keeps_inverse=False))
    for seed in range(12):
        atoms.rattle(0.01, seed=seed)
        atoms.get_forces()
    info = atoms.calc.cache_info()
    assert info["solver_mode"] == "start" and info["solver_aided_steps"] == 0
    assert info["solver_last_iterations"] > 0


def test_energy_is_conserved(lennard_jones):
    atoms = build_bulk("Ar", "fcc", a=4.0, cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    atoms.calc = PhiCalculator(lennard_jones)
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, timestep=1.0 * units.fs).run(100)
    assert atoms.get_kinetic_energy() > 0.05
    # Lennard-Jones has a kink in the force at its cutoff, hence no tighter
    assert atoms.get_total_energy() == pytest.approx(start, abs=1e-3)


def test_two_calculators_in_one_process(lennard_jones, model):
    argon = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]], calculator=PhiCalculator(lennard_jones))
    water = build_molecule("H2O")
    water.calc = PhiCalculator(model)
    alone = argon.get_potential_energy(), water.get_potential_energy()
    for _ in range(3):
        for atoms, energy in zip((argon, water), alone, strict=True):
            atoms.calc.reset()
            assert atoms.get_potential_energy() == energy


def live_storages() -> int:
    """Number of distinct pieces of memory that tensors in Python hold."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors})


def resident_memory() -> float:
    """MB of the process in memory now; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return 0.0
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 1e6


def test_memory_stays_flat(model):
    salt = build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (4, 3, 3)
    salt.calc = PhiCalculator(model, skin=0.3)
    storages, memory = [], []
    for step in range(80):
        salt.rattle(0.02, seed=step)  # far enough for new lists and new bases
        salt.get_forces()
        if step in (19, 79):
            storages.append(live_storages())
            memory.append(resident_memory())
    info = salt.calc.cache_info()
    assert info["neighbour_rebuilds"] > 10 and info["solver_steps"] == 80
    assert storages[1] - storages[0] <= 5  # one kept at each step would make it 60
    assert memory[1] - memory[0] < 5  # one array of edge vectors kept at each step: 7


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_go_on_alone_even_without_the_file(tmp_path, model, molecule, duplicate):
    path = tmp_path / "model.pt"
    path.write_bytes(model.data)
    original = PhiCalculator(path, charge=1, skin=0.3, cache=False, threads=1)
    expected = original.get_forces(molecule)
    path.unlink()
    twin = duplicate(original)
    assert twin is not original
    assert np.array_equal(twin.get_forces(molecule), expected)
    assert twin.timings()["evaluations"] == 0  # results came along
    assert np.array_equal(twin.potential, original.potential)
    assert twin.spectrum().eigenvalues == pytest.approx(original.spectrum().eigenvalues)
    molecule.positions[0] += 0.2
    assert np.array_equal(twin.get_forces(molecule), original.get_forces(molecule))
    assert twin.charge == 1.0


def test_copies_of_atoms_with_a_calculator(model_file, bulk):
    bulk.calc = PhiCalculator(model_file)
    energy = bulk.get_potential_energy()
    assert pickle.loads(pickle.dumps(bulk)).get_potential_energy() == energy
    assert copy.deepcopy(bulk).get_potential_energy() == energy


def test_a_pickle_holds_the_model_and_little_else(model):
    salt = build_bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (4, 3, 3)
    calculator = PhiCalculator(model)
    calculator.get_forces(salt)
    assert len(pickle.dumps(calculator)) < len(model.data) + 200 * len(salt)


def test_a_fresh_calculator_can_be_copied(model):
    assert np.isfinite(copy.deepcopy(PhiCalculator(model)).get_potential_energy(Atoms("H")))


def test_a_path_may_be_text(model_file):
    assert np.isfinite(PhiCalculator(str(model_file)).get_potential_energy(Atoms("H")))


# --- the process --------------------------------------------------------------------------------


def test_threads_are_lent_and_given_back(monkeypatch, model, molecule):
    seen = []
    call = LoadedModel.__call__

    def spy(self, graph):
        seen.append(torch.get_num_threads())
        return call(self, graph)

    monkeypatch.setattr(LoadedModel, "__call__", spy)
    before = torch.get_num_threads()
    PhiCalculator(model).get_potential_energy(molecule)
    PhiCalculator(model, threads=before + 1).get_potential_energy(molecule)
    assert seen == [before, before + 1]
    assert torch.get_num_threads() == before
    molecule.positions[0] = np.nan
    with pytest.raises(StructureError):
        PhiCalculator(model, threads=before + 1).get_potential_energy(molecule)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_gradient_mode_of_the_caller_does_not_matter(mode, model, bulk):
    expected = cold_forces(model, bulk)
    calculator = PhiCalculator(model)
    with mode():
        assert np.array_equal(calculator.get_forces(bulk), expected)
        assert np.array_equal(copy.deepcopy(calculator).get_forces(bulk), expected)
        assert np.array_equal(PhiCalculator(load_model(model.data)).get_forces(bulk), expected)
    bulk.rattle(0.01, seed=2)  # what was made within must serve outside
    assert calculator.get_forces(bulk) == pytest.approx(cold_forces(model, bulk), abs=1e-10)


def test_the_default_dtype_of_the_caller_does_not_matter(model, bulk):
    expected = cold_forces(model, bulk)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(cold_forces(model, bulk), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_timings_are_parts_of_the_wall_time(model, bulk):
    calculator = PhiCalculator(model)
    assert set(calculator.timings().values()) == {0}
    start = time.perf_counter()
    for seed in range(3):
        bulk.rattle(0.01, seed=seed)
        calculator.get_forces(bulk)
    wall = time.perf_counter() - start
    timings = calculator.timings()
    assert timings.pop("evaluations") == 3
    assert set(timings) == {"neighbours", "electrostatics", "model", "other"}
    assert min(timings.values()) > 0
    assert 0.5 * wall < 3 * sum(timings.values()) < wall


def test_users_see_no_warnings(model_file):
    code = (
        "from ase.build import bulk\n"
        "from phicalc import PhiCalculator\n"
        "salt = bulk('NaCl', 'rocksalt', a=5.6, cubic=True) * (4, 3, 3)\n"  # an iterative solve
        f"print(PhiCalculator({str(model_file)!r}).get_potential_energy(salt))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert np.isfinite(float(done.stdout))


# --- precision -----------------------------------------------------------------------------------


def test_a_float32_file_in_float64():
    """Forces are differences of energies to far below single precision; the file stays as it is."""
    path = "models/nacl-water.pt"
    atoms = salt_water(8, 1, seed=0)
    single = PhiCalculator(path, device="cpu").get_forces(atoms)
    atoms.calc = PhiCalculator(model=path, device="cpu", default_dtype="float64")
    forces = atoms.get_forces()
    assert 1e-8 < np.abs(forces - single).max() < 1e-4
    energies = []
    for shift in (1e-4, -2e-4):
        atoms.positions[3, 1] += shift
        energies.append(atoms.get_potential_energy())
    atoms.positions[3, 1] += 1e-4
    assert (energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[3, 1], abs=1e-6)
    for copied in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        assert_allclose(copied.get_forces(atoms), forces, rtol=0, atol=1e-12)
    loaded = atoms.calc.models[0]
    assert loaded.metadata.dtype == "float64"
    copied = copy.deepcopy(PhiCalculator(loaded, device="cpu"))
    copied.reset()
    assert_allclose(copied.get_forces(atoms), forces, rtol=0, atol=1e-12)
    again = PhiCalculator(loaded, device="cpu").get_forces(atoms)
    assert_allclose(again, forces, rtol=0, atol=1e-12)


def test_no_less_precision_than_a_file_has(tmp_path):
    path = save_model(
        small_potential(dtype="float64"), tmp_path / "model.pt", small_metadata(dtype="float64")
    )
    with pytest.raises(UnsupportedError, match=r'expected dtype None, "float64" .* got .float32.'):
        PhiCalculator(path, device="cpu", default_dtype="float32")
