"""Charge feedback: forces through the solve, by both solvers, and where it is refused."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose

from phicalc import PhiCalculator, fields
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.model.config import ModelConfig, PooledConfig
from phicalc.serving.export import describe
from phicalc.serving.model_file import load_model, save_model
from tests.physics.models import energy, evaluate, make_model

SOLVING = ["phi feedback", "qeq feedback", "phi-coulomb feedback"]
STEP = 1e-4


@pytest.fixture(params=SOLVING)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return make_model("painn", request.param, "float64")


@pytest.fixture
def crystal() -> Atoms:
    """64 ions of rock salt, off their sites."""
    atoms = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2)
    atoms.rattle(0.1, seed=3)
    return atoms


def solve_iteratively(model: torch.nn.Module) -> None:
    """Let structures of any size be solved as large ones are."""
    model.potential.heads[0].dense_limit = 0
    model.potential.heads[0].accuracy = 1e-9


def electrostatics(solver: str) -> ModuleType:
    """The module of a solver, given as room.module.function."""
    return importlib.import_module("phicalc.electrostatics." + solver.rpartition(".")[0])


def slope(model: torch.nn.Module, atoms: Atoms, atom: int, axis: int) -> float:
    """Central difference of the energy, of fourth order."""
    values = []
    for shift in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions[atom, axis] += shift * STEP
        values.append(energy(model, moved))
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP)


def test_iterations_give_what_dense_solves_give(model, crystal):
    expected = evaluate(model, crystal)
    solve_iteratively(model)
    found = evaluate(model, crystal)
    assert_allclose(found[fields.ENERGY], expected[fields.ENERGY], rtol=0, atol=1e-8)
    assert_allclose(found[fields.FORCES], expected[fields.FORCES], rtol=0, atol=1e-7)
    assert_allclose(found[fields.STRESS], expected[fields.STRESS], rtol=0, atol=1e-9)
    assert found[fields.FORCES][5, 1].item() == pytest.approx(
        -slope(model, crystal, 5, 1), abs=1e-6
    )


def test_without_the_adjoint_forces_are_wrong(model, molecule, monkeypatch):
    """What the solve adds to the forces is a thousand times the tolerance they are held to."""
    exact = evaluate(model, molecule)
    monkeypatch.setattr(
        model.potential, "adjoint_energies", lambda gradient, *_: torch.zeros_like(gradient)
    )
    partial = evaluate(model, molecule)
    assert_allclose(partial[fields.ENERGY], exact[fields.ENERGY], rtol=0, atol=1e-12)
    assert (partial[fields.FORCES] - exact[fields.FORCES]).abs().max() > 1e-3


def test_an_error_of_the_solve_enters_the_energy_squared(model, molecule, monkeypatch):
    """Half the error of a solve (and of its adjoint) leaves a quarter of it in the energy."""
    solver = {
        "phi": "heads.phi.solve_poisson",
        "qeq": "solvers.charges.equilibrate",
        "phi-coulomb": "solvers.flow.flow_potential",
    }[model.potential.head_names[0]]
    solve = getattr(electrostatics(solver), solver.rpartition(".")[2])
    noise = torch.tensor(np.random.default_rng(0).normal(size=len(molecule)))
    noise = noise - noise.mean()

    def with_error(size: float) -> float:
        def wrong(*arguments, **options):
            solution = solve(*arguments, **options)
            if isinstance(solution, tuple):
                return solution[0] + size * noise, *solution[1:]
            return solution + size * noise

        monkeypatch.setattr("phicalc.electrostatics." + solver, wrong)
        return float(evaluate(model, molecule)[fields.ENERGY])

    exact = with_error(0.0)
    errors = [with_error(size) - exact for size in (2e-3, 1e-3)]
    assert abs(errors[1]) > 1e-9
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("structure", ["molecule", "crystal"])
def test_a_loss_on_forces_learns_through_the_solve(model, structure, request):
    """Its gradient in all parameters at once, against a difference along one direction."""
    atoms = request.getfixturevalue(structure)
    model.train()
    parameters = [p for p in model.potential.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        for p in parameters
    ]

    def loss() -> torch.Tensor:
        return evaluate(model, atoms)[fields.FORCES].square().sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    expected = sum(
        float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None
    )
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(shift * along)
        values.append(float(loss().detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_its_structures(model, molecule, bulk):
    cation = molecule.copy()
    cation.info["charge"] = 1
    together = evaluate(model, molecule, bulk, cation)
    apart = [evaluate(model, atoms) for atoms in (molecule, bulk, cation)]
    forces = torch.cat([output[fields.FORCES] for output in apart])
    assert_allclose(together[fields.FORCES], forces, rtol=0, atol=1e-10)


def test_a_field_is_refused(molecule, tmp_path):
    """The head alone would leave out what the feedback gains from the field."""
    model = make_model("painn", "qeq feedback", "float64")
    graph_field = np.array([0.1, 0.0, 0.0])
    potential = model.potential
    path = save_model(model, tmp_path / "model.pt", describe(potential))
    molecule.calc = PhiCalculator(load_model(path), field=graph_field)
    with pytest.raises(UnsupportedError, match="charge feedback"):
        molecule.get_potential_energy()
    with pytest.raises(UnsupportedError, match=r"no charge feedback .* qeq with charge feedback"):
        potential.require_field()


@pytest.mark.parametrize("heads", [[], [PooledConfig()]])
def test_feedback_takes_charges(heads):
    with pytest.raises(ConfigError, match="expected a head with charges"):
        ModelConfig(heads=heads, charge_feedback=True)
