"""Training on crystals, where sums over waves stand in for the matrix: values and gradients."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose

from phicalc import fields
from tests.physics.models import evaluate, make_model

CHARGED = ["qeq", "phi-coulomb", "phi-coulomb learned", "local"]
LEARNED = (fields.ENERGY, fields.FORCES, fields.STRESS, fields.CHARGES)


@pytest.fixture
def crystals() -> list[Atoms]:
    """Two cells of different size and charge state, off their sites."""
    small = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    large = small.repeat((2, 1, 1))
    shear = np.array([[0.0, 0.4, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]])
    large.set_cell(large.cell.array + shear)
    for seed, atoms in enumerate((small, large)):
        atoms.rattle(0.1, seed=seed)
    return [small, large]


@pytest.fixture(params=CHARGED)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return make_model("painn", request.param, "float64")


def test_training_gives_what_evaluation_gives(model, crystals):
    expected = evaluate(model, *crystals)
    found = evaluate(model.train(), *crystals)
    for name in LEARNED:
        assert_allclose(found[name].detach(), expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_of_a_loss(model, crystals, name):
    """In all parameters at once, against a difference along one direction."""
    model.train()
    parameters = [p for p in model.potential.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> torch.Tensor:
        return evaluate(model, *crystals)[name].square().sum()

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
