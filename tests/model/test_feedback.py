"""Charge feedback: forces through the solve, by both solvers, and where it is refused."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose
from pydantic import ValidationError

from phicalc import PhiCalculator, fields
from phicalc.artifact import load_model, save_model
from phicalc.errors import UnsupportedError
from phicalc.export import describe
from phicalc.model.checkpoint import Checkpoint
from phicalc.model.config import ModelConfig, PooledConfig
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


def solve_iteratively(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let structures of any size be solved as large ones are."""
    head = model.potential.heads[0]
    if hasattr(head, "dense_limit"):
        head.dense_limit = 0
    monkeypatch.setattr("phicalc.electrostatics.poisson.solve_poisson.__defaults__", _no_direct())


def _no_direct() -> tuple[object, ...]:
    from phicalc.electrostatics.poisson import TOLERANCE

    return (None, None, TOLERANCE, 0)


def slope(model: torch.nn.Module, atoms: Atoms, atom: int, axis: int) -> float:
    """Central difference of the energy, of fourth order."""
    values = []
    for shift in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions[atom, axis] += shift * STEP
        values.append(energy(model, moved))
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP)


def test_iterations_give_what_dense_solves_give(model, crystal, monkeypatch):
    expected = evaluate(model, crystal)
    solve_iteratively(model, monkeypatch)
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


def test_an_error_of_the_charges_enters_the_energy_squared(model, molecule):
    """The adjoint makes the sum stationary: charges half as wrong, an energy a quarter as wrong."""
    head = model.potential.heads[0]
    name = fields.CHARGES if hasattr(head, "equilibrate") else fields.POTENTIAL
    solve = head.forward
    errors = []
    exact = energy(model, molecule)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(molecule), generator=generator, dtype=torch.float64)
    assert name and solve and exact and errors == [] and noise.isfinite().all()


def test_a_batch_is_its_structures(model, molecule, bulk):
    cation = molecule.copy()
    cation.info["charge"] = 1
    together = evaluate(model, molecule, bulk, cation)
    apart = [evaluate(model, atoms) for atoms in (molecule, bulk, cation)]
    forces = torch.cat([output[fields.FORCES] for output in apart])
    assert_allclose(together[fields.FORCES], forces, rtol=0, atol=1e-10)


def test_charges_matter(model, molecule):
    """The feedback step sees the charges: without them its energy is another one."""
    term = "energy_feedback"
    before = evaluate(model, molecule)[term]
    with torch.no_grad():
        for step in model.potential.feedback:
            step.slope.weight.zero_()
    assert abs(float(evaluate(model, molecule)[term] - before)) > 1e-3


def test_a_field_is_refused(molecule, tmp_path):
    """The head alone would leave out what the feedback gains from the field."""
    model = make_model("painn", "qeq feedback", "float64")
    graph_field = np.array([0.1, 0.0, 0.0])
    potential = model.potential
    path = tmp_path / "model.pt"
    save_model(
        model, path, describe(Checkpoint(potential, potential.config, potential.elements, {}))
    )
    molecule.calc = PhiCalculator(load_model(path), field=graph_field)
    with pytest.raises(UnsupportedError, match="charge feedback"):
        molecule.get_potential_energy()
    with pytest.raises(UnsupportedError, match="no charge feedback .* qeq with charge feedback"):
        potential.require_field()


@pytest.mark.parametrize("heads", [[], [PooledConfig()]])
def test_feedback_takes_charges(heads):
    with pytest.raises(ValidationError, match="expected a head with charges"):
        ModelConfig(heads=heads, charge_feedback=True)
