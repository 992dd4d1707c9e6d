"""Models with charge heads as they are served: exported, loaded, and run by ASE."""

from functools import cache

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.fd import calculate_numerical_stress
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from numpy.testing import assert_allclose

from phicalc import PhiCalculator, fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.data.read import Labels
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.model.config import ModelConfig, PhiCoulombConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from tests.heads import chosen
from tests.reference_models import small_potential

HEADS = chosen("qeq", "phi-coulomb", "phi-coulomb learned", "local", "phi + qeq")


@cache
def network(heads: str) -> Differentiated:
    return small_potential("float64", heads=HEADS[heads])


@cache
def served(heads: str) -> LoadedModel:
    """Checkpoint, export, load: the way of every model."""
    model = network(heads)
    return load_model(model_bytes(model, describe(model.potential)))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", ["molecule", "bulk"])
@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_the_served_model_gives_the_networks_numbers(heads, kind, charge, request):
    atoms = request.getfixturevalue(kind)
    atoms.info["charge"] = charge
    atoms.calc = PhiCalculator(served(heads))
    for _ in range(3):
        atoms.calc.reset()
        energy = atoms.get_potential_energy()
    forces, charges = atoms.get_forces(), atoms.get_charges()
    output = network(heads)(atoms.calc._last_evaluation().graph)
    assert energy == pytest.approx(float(output[fields.ENERGY]), abs=1e-10)
    assert_allclose(forces, output[fields.FORCES], atol=1e-10)
    assert_allclose(charges, output[fields.CHARGES], atol=1e-10)
    assert charges.sum() == pytest.approx(charge, abs=1e-9)
    if kind == "bulk":
        stress = atoms.get_stress()
        expected = calculate_numerical_stress(atoms, eps=1e-4)
        assert_allclose(stress, expected, atol=1e-7)


@pytest.mark.parametrize("heads", HEADS)
def test_a_slab_is_refused_before_the_network_sees_it(heads, slab):
    slab.numbers[:] = 11
    slab.calc = PhiCalculator(served(heads))
    with pytest.raises(UnsupportedError, match=r"no or three periodic directions"):
        slab.get_potential_energy()


@pytest.mark.parametrize("heads", ["qeq", "phi-coulomb learned"])
def test_energy_is_conserved(heads, bulk):
    """40 fs of NVE: half the time step, a quarter of the fluctuation, or the forces are wrong."""
    fluctuations = []
    for step in (1.0, 0.5):
        atoms = bulk.copy()
        atoms.calc = PhiCalculator(served(heads))
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
        energies = []
        dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
        dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_total_energy()))
        dynamics.run(int(40 / step))
        fluctuations.append(np.ptp(energies))
    assert fluctuations[1] < 0.3 * fluctuations[0] < 0.01


def test_a_checkpoint_brings_the_head_back(tmp_path, molecule):
    for heads in HEADS:
        save_checkpoint(tmp_path / "best.pt", network(heads).potential, {})
        loaded = load_checkpoint(tmp_path / "best.pt")
        again = Differentiated(loaded.potential).eval()
        molecule.calc = PhiCalculator(served(heads))
        expected = molecule.get_potential_energy()
        found = again(molecule.calc._last_evaluation().graph)[fields.ENERGY]
        assert float(found) == pytest.approx(expected, abs=1e-10)


def test_ions_from_forces_to_forty_angstrom():
    """A sodium and a chloride feel −k e²/r, in the model file and far beyond its neighbour list."""
    for distance in (15.0, 40.0):
        pair = Atoms("NaCl", [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        pair.calc = PhiCalculator(served("phi-coulomb"))
        assert_allclose(pair.get_charges(), [1.0, -1.0], atol=1e-12)
        force = units.Hartree * units.Bohr / distance**2
        assert_allclose(pair.get_forces(), [[force, 0, 0], [-force, 0, 0]], atol=1e-10)


def test_a_formal_charge_of_an_unknown_element():
    config = ModelConfig(heads=[PhiCoulombConfig(formal_charges={"Xx": 1.0})])
    with pytest.raises(ConfigError, match=r"formal_charges: expected elements .* got Xx"):
        Potential(config, [1, 8])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", ["molecule", "bulk"])
def test_dense_and_iterative_solves_agree(heads, kind, request):
    """The same structure with the matrix of its charges, and by iterations on a mesh."""
    atoms = request.getfixturevalue(kind)
    atoms = atoms * (2, 2, 1) if kind == "bulk" else atoms
    atoms.rattle(0.1, seed=2)
    atoms.info["charge"] = 1
    model = small_potential("float64", heads=HEADS[heads])
    outputs = []
    for limit in (1000, 0):
        for head in model.potential.heads:
            head.dense_limit, head.accuracy, head.tolerance = limit, 1e-11, 1e-10
        atoms.calc = PhiCalculator(load_model(model_bytes(model, describe(model.potential))))
        atoms.get_potential_energy()
        outputs.append(atoms.calc.results)
    dense, iterative = outputs
    assert iterative["energy"] == pytest.approx(dense["energy"], abs=1e-9)
    for name in ("forces", "charges", "stress" if kind == "bulk" else "dipole"):
        assert_allclose(iterative[name], dense[name], atol=1e-8)


@pytest.mark.parametrize("heads", ["phi-coulomb learned", "qeq"])
def test_a_warm_start_saves_iterations_and_changes_nothing(heads, bulk):
    """Along a short trajectory: φ or q starts from the last steps, energies and forces stay."""
    model = small_potential("float64", heads=HEADS[heads])
    model.potential.heads[0].dense_limit = 0
    loaded = load_model(model_bytes(model, describe(model.potential)))
    warm, cold = PhiCalculator(loaded), PhiCalculator(loaded, cache=False)
    atoms = bulk * (2, 2, 2)
    velocity = np.random.default_rng(0).normal(0, 2e-3, (len(atoms), 3))
    iterations = []
    for _ in range(5):
        atoms.positions += velocity
        found = warm.get_potential_energy(atoms), warm.get_forces(atoms)
        iterations.append(warm.cache_info()["solver_last_iterations"])
        assert found[0] == pytest.approx(cold.get_potential_energy(atoms), abs=1e-8)
        assert_allclose(found[1], cold.get_forces(atoms), atol=2e-7)
    assert 0 < iterations[-1] < 0.7 * iterations[0]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["qeq", "qeq"], "at most one of each kind, got qeq, qeq"),
        (["phi", "phi-coulomb"], "a potential of its own, got phi, phi-coulomb"),
        (["qeq", "local"], "sum to the total charge, got qeq, local"),
        (["local", "pooled", "phi-coulomb"], "got local, phi-coulomb: .* more than once"),
        (["qeq", "phi", "phi-coulomb"], "got qeq, phi-coulomb"),
        (["phi", "phi-spectral"], "a potential of its own, got phi, phi-spectral"),
        (["phi-spectral", "phi-coulomb"], "a potential of its own, got phi-spectral, phi-coulomb"),
    ],
)
def test_heads_that_exclude_each_other(kinds, message):
    with pytest.raises(ConfigError, match=f"heads: .*{message}"):
        ModelConfig(heads=[{"kind": kind} for kind in kinds])


@pytest.mark.parametrize("charged", ["qeq", "phi-coulomb", "local"])
def test_heads_that_go_together(charged, molecule):
    """Reported charges are those of the one head with Coulomb sums, plus a neutral part of Φ's."""
    kinds = [charged, "pooled"] if charged == "phi-coulomb" else ["phi", charged, "pooled"]
    model = small_potential("float64", heads=[{"kind": kind} for kind in kinds])
    graph = graph_dict(collate([to_graph(molecule, 4.0, Labels(total_charge=2.0))]))
    parts = []
    for head in model.potential.heads:
        head.register_forward_hook(lambda *call: parts.append(dict(call[-1])))
    found = model(graph)[fields.CHARGES]
    assert len(parts) == len(kinds)
    charges = sum(part[fields.CHARGES] for part in parts if fields.CHARGES in part).detach()
    assert float(charges.sum()) == pytest.approx(2.0, abs=1e-12)
    assert_allclose(found, charges, atol=1e-12)
