"""Ewald's sum applied to charges: the numbers of the matrix, and derivatives of every order."""

from collections.abc import Callable

import pytest
import torch
from ase.build import bulk
from numpy.testing import assert_allclose
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from phicalc.electrostatics.coulomb.crystal import apply_crystal, crystal_matrix, crystal_sum
from phicalc.electrostatics.coulomb.ewald import ewald_matrix


@pytest.fixture
def crystal() -> list[Tensor]:
    """Positions, a skewed cell, widths on both sides of the splitting width, charges."""
    generator = torch.Generator().manual_seed(0)
    cell = 5.0 * torch.eye(3).double()
    cell = cell + 0.3 * torch.randn(3, 3, generator=generator).double()
    positions = torch.rand(5, 3, generator=generator).double() @ cell
    widths = torch.tensor([0.5, 0.6, 1.2, 1.2, 0.4]).double()
    return [positions, cell, widths, torch.randn(5, generator=generator).double()]


def by_sums(positions: Tensor, cell: Tensor, widths: Tensor, charges: Tensor) -> Tensor:
    return apply_crystal(crystal_sum(positions, cell, widths), charges)


def by_matrix(positions: Tensor, cell: Tensor, widths: Tensor, charges: Tensor) -> Tensor:
    return ewald_matrix(positions, cell, widths) @ charges


def derivatives(function: Callable[..., Tensor], inputs: list[Tensor], order: int) -> list[Tensor]:
    """Gradients of a random sum of gradients of … of the function, in all inputs."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    generator = torch.Generator().manual_seed(1)
    found: tuple[Tensor, ...] = (function(*inputs),)
    for _ in range(order):
        weights = [torch.randn(x.shape, generator=generator).double() for x in found]
        total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
        found = torch.autograd.grad(total, inputs, create_graph=True)
    return [value.detach() for value in found]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_derivatives_are_those_of_the_matrix(crystal, order):
    """In positions, cell, widths and charges; the matrix is differentiated by torch alone."""
    found = derivatives(by_sums, crystal, order)
    expected = derivatives(by_matrix, crystal, order)
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.abs().max()) > 1e-3
        assert_allclose(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_derivatives_are_those_of_differences(crystal):
    inputs = [value.clone().requires_grad_() for value in crystal]
    assert gradcheck(by_sums, inputs, atol=1e-7)
    assert gradgradcheck(by_sums, inputs, atol=1e-6)


def test_the_matrix_of_a_sum(crystal):
    positions, cell, widths, _ = crystal
    found = crystal_matrix(crystal_sum(positions, cell, widths))
    assert_allclose(found, ewald_matrix(positions, cell, widths), rtol=0, atol=1e-14)


def test_madelung_constant_of_rock_salt():
    """1.747564594633182 (OEIS A085469): charges as narrow as points at the ions' distance."""
    atoms = bulk("NaCl", "rocksalt", a=2.0, cubic=True)
    charges = torch.tensor([1.0 if z == 11 else -1.0 for z in atoms.numbers]).double()
    widths = torch.full((8,), 0.1, dtype=torch.float64)
    sums = crystal_sum(torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), widths)
    own = 1.0 / (torch.pi**0.5 * 0.1)
    energy = float(charges @ apply_crystal(sums, charges)) / 8 - own
    assert energy == pytest.approx(-1.747564594633182, abs=1e-10)


def test_a_backward_pass_to_charges_works_out_nothing_else(crystal, monkeypatch):
    """Second derivatives in the geometry are most of the work, and a training step needs none."""
    inputs = [value.clone().requires_grad_() for value in crystal]
    positions, charges = inputs[0], inputs[3]
    energy = (charges * by_sums(*inputs)).sum()
    (forces,) = torch.autograd.grad(energy, positions, create_graph=True)

    def fail(*_):
        raise AssertionError("worked out and thrown away")

    monkeypatch.setattr("phicalc.electrostatics.coulomb.crystal.of_positions", fail)
    monkeypatch.setattr("phicalc.electrostatics.coulomb.crystal.of_waves", fail)
    (forces**2).sum().backward(inputs=[charges])
    assert charges.grad is not None
