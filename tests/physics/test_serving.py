"""What is served is what was trained: eager = scripted = saved and loaded; cached = uncached."""

import numpy as np
import pytest
import torch
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose

from phicalc import PhiCalculator, fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.serving.export import describe
from phicalc.serving.model_file import load_model, save_model
from tests.physics.models import CUTOFF, evaluate


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """The model written to a file and read back."""
    path = tmp_path_factory.mktemp("served") / "model.pt"
    save_model(model, path, describe(model.potential))
    return load_model(path)


def test_eager_is_saved_and_loaded(model, served, molecule, bulk, slab):
    """To the bit, from the first call on, one by one and as a batch."""
    molecule.info["charge"] = 1
    sets = [[molecule], [bulk], [molecule, bulk]]
    if not model.potential.needs_positions:
        sets += [[slab], [molecule, bulk, slab]]
    for structures in sets:
        expected = evaluate(model, *structures)
        graph = graph_dict(collate([to_graph(atoms, CUTOFF) for atoms in structures]))
        for _ in range(3):
            found = served(graph)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name], value), name


def test_calculator_gives_the_models_numbers(model, served, atoms, tolerance):
    expected = evaluate(model, atoms)
    atoms.calc = PhiCalculator(served)
    assert_allclose(atoms.get_potential_energy(), expected[fields.ENERGY][0], **tolerance)
    assert_allclose(atoms.get_forces(), expected[fields.FORCES], **tolerance)
    if atoms.pbc.all():
        stress = expected[fields.STRESS][0]
        assert_allclose(atoms.get_stress(voigt=False), stress, **tolerance)


def test_cached_is_uncached(model, served):
    """Moving atoms, 384 of them so that solves are iterative: history never shows."""
    single = model.potential.config.dtype == "float32"
    crystal = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((4, 4, 3))
    cached, cold = PhiCalculator(served), PhiCalculator(served, cache=False)
    rng = np.random.default_rng(0)
    number = 5 if model.potential.needs_positions else 14
    for step in range(number):
        crystal.positions += 0.02 * rng.normal(size=(len(crystal), 3))
        results = []
        for calculator in (cached, cold):
            copy = crystal.copy()
            copy.calc = calculator
            results.append((copy.get_potential_energy(), copy.get_forces()))
        (energy, forces), (cold_energy, cold_forces) = results
        assert abs(energy - cold_energy) / len(crystal) < (1e-6 if single else 1e-8), step
        assert_allclose(forces, cold_forces, rtol=0, atol=1e-4 if single else 1e-6)
    info = cached.cache_info()
    if info["solver_steps"]:
        assert info["solver_steps"] == number and info["solver_direct_steps"] == 0
        assert info["solver_iterations"] > number
