"""Features are untouched up to a limit and bounded beyond it."""

import pytest
import torch
from numpy.testing import assert_allclose

from phicalc.nn.saturation import FEATURE_LIMIT, saturate


def size(features: torch.Tensor) -> torch.Tensor:
    """Root mean square over channels, of lengths if they are vectors: (N,)."""
    return (features**2).flatten(1).sum(1).div(features.shape[-1]).sqrt()


@pytest.mark.parametrize("shape", [(50, 7), (50, 3, 7)], ids=["scalars", "vectors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_identity_to_the_bit_up_to_the_limit(shape, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    x = x / size(x).max() * FEATURE_LIMIT * 0.9999
    x[0] = 0.0
    assert torch.equal(saturate(x), x)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad((saturate(x) * x.detach()).sum(), x)
    assert torch.equal(slope, x)


@pytest.mark.parametrize("shape", [(1, 7), (1, 3, 7)], ids=["scalars", "vectors"])
def test_bounded_and_rising_beyond_it_in_the_same_direction(shape):
    torch.manual_seed(1)
    direction = torch.randn(shape, dtype=torch.float64)
    direction = direction / size(direction)
    found = []
    for length in (4.9, 5.1, 6.0, 8.0, 15.0, 40.0, 1e3, 1e30):
        saturated = saturate(length * direction)
        found.append(float(size(saturated)))
        assert_allclose(saturated / found[-1], direction, rtol=1e-12)
    assert found[:-3] == sorted(set(found[:-3]))
    assert found[-1] == pytest.approx(2 * FEATURE_LIMIT)


def test_two_continuous_derivatives_at_the_limit_and_at_zero_length():
    x = FEATURE_LIMIT + torch.tensor([[-1e-3], [1e-3]], dtype=torch.float64)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(saturate(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert_allclose(slope.detach(), 1.0, atol=1e-6)
    assert_allclose(curvature, 0.0, atol=1e-3)
    vectors = torch.cat([torch.zeros(1, 3, 2), 5 * torch.ones(1, 3, 2)]).double()
    vectors.requires_grad_(True)
    assert torch.autograd.gradcheck(saturate, (vectors,))
    assert torch.autograd.gradgradcheck(saturate, (vectors,))
