"""Radial functions against closed forms, quadrature and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import spherical_jn
from torch_geometric.nn.models.schnet import GaussianSmearing

from phicalc.nn import radial

CUTOFF = 4.5
COUNT = 6
ENVELOPES = [radial.PolynomialEnvelope(CUTOFF), radial.CosineEnvelope(CUTOFF)]
BASES = [radial.BesselBasis(COUNT, CUTOFF), radial.GaussianBasis(COUNT, CUTOFF)]
NAMES = ["polynomial", "cosine", "bessel", "gaussian"]


def derivatives(function, distances):
    """Value, first and second derivative of a function of one distance, elementwise."""
    r = distances.clone().requires_grad_(True)
    value = function(r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    return value.detach(), first.detach(), second


def test_polynomial_envelope_closed_form():
    r = torch.linspace(0.0, CUTOFF, 101, dtype=torch.float64)
    x = r / CUTOFF
    value, first, second = derivatives(ENVELOPES[0], r)
    torch.testing.assert_close(value, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, rtol=0, atol=1e-14)
    torch.testing.assert_close(first, -30 * x**2 * (1 - x) ** 2 / CUTOFF, rtol=0, atol=1e-14)
    expected = -60 * x * (1 - x) * (1 - 2 * x) / CUTOFF**2
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-13)


def test_polynomial_envelope_is_exactly_zero_from_the_cutoff_on():
    r = torch.tensor([CUTOFF, CUTOFF + 1e-12, 2 * CUTOFF, 1e8, math.inf], dtype=torch.float64)
    for result in derivatives(ENVELOPES[0], r):
        assert torch.equal(result, torch.zeros_like(result))


def test_polynomial_envelope_never_negative_in_float32():
    r = torch.linspace(0.98 * CUTOFF, CUTOFF, 20001, dtype=torch.float32)
    value = ENVELOPES[0](r)
    assert value.min() >= 0
    assert bool((value[:-1] >= value[1:]).all())


def test_cosine_envelope_closed_form():
    r = torch.tensor([0.0, CUTOFF / 3, CUTOFF / 2, CUTOFF, 1.2 * CUTOFF], dtype=torch.float64)
    value, first, _ = derivatives(ENVELOPES[1], r)
    expected = torch.tensor([1.0, 0.75, 0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)
    assert abs(float(first[3])) < 1e-15 and float(first[4]) == 0.0


def test_bessel_basis_is_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = torch.tensor(0.5 * CUTOFF * (nodes + 1))
    w = torch.tensor(0.5 * CUTOFF * weights) * r**2
    values = BASES[0](r)
    overlap = values.T @ (w[:, None] * values)
    torch.testing.assert_close(overlap, torch.eye(COUNT, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bessel_basis_is_the_spherical_bessel_function():
    r = np.linspace(0.3, CUTOFF, 17)
    values = BASES[0](torch.tensor(r)).numpy()
    for n in range(1, COUNT + 1):
        k = n * math.pi / CUTOFF
        expected = math.sqrt(2 / CUTOFF) * k * spherical_jn(0, k * r)
        np.testing.assert_allclose(values[:, n - 1], expected, rtol=0, atol=1e-14)


def test_gaussian_basis_matches_torch_geometric():
    r = torch.linspace(0.1, CUTOFF, 23)
    expected = GaussianSmearing(0.0, CUTOFF, COUNT)(r)
    torch.testing.assert_close(BASES[1](r), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("module", ENVELOPES + BASES, ids=NAMES)
def test_first_and_second_derivatives(module):
    r = torch.tensor([0.7, 1.9, 4.4, 4.5001, 5.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (r,))
    assert torch.autograd.gradgradcheck(module, (r,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("module", ENVELOPES + BASES, ids=NAMES)
def test_shape_and_dtype_follow_the_distances(module, dtype):
    tail = (COUNT,) if module in BASES else ()
    for shape in [(0,), (5,), (2, 3)]:
        values = module(torch.rand(shape, dtype=dtype) + 0.5)
        assert values.shape == shape + tail
        assert values.dtype == dtype
        assert bool(torch.isfinite(values).all())


@pytest.mark.parametrize("module", ENVELOPES + BASES, ids=NAMES)
def test_scripts(module):
    r = torch.tensor([[0.7, 1.9], [4.4, 5.2]], dtype=torch.float64)
    assert torch.equal(torch.jit.script(module)(r), module(r))
