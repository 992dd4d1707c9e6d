"""The graph Laplacian: its algebra, against dense matrices."""

import torch
from numpy.testing import assert_allclose

from phicalc.electrostatics.laplacian import (
    adjacency_matrix,
    apply_laplacian,
    dense_laplacian,
    edge_weights,
)
from tests.electrostatics.graphs import chain, cluster


def test_weights_fade_smoothly_and_follow_the_formula():
    r = torch.tensor([0.5, 2.0, 4.999999, 5.0, 6.0], dtype=torch.float64)
    w = edge_weights(r, 5.0, 2.0)
    x = r[:2] / 5
    expected = (1 - 10 * x**3 + 15 * x**4 - 6 * x**5) * torch.exp(-((r[:2] / 2) ** 2))
    assert_allclose(w[:2], expected, rtol=1e-14)
    assert 0 <= w[2] < 1e-15 and w[3] == 0 and w[4] == 0


def test_symmetric_and_annihilates_constants_on_components():
    weights, edge_index = cluster(20)
    far, far_index = chain(5)
    weights, edge_index = torch.cat([weights, far]), torch.cat([edge_index, far_index + 20], 1)
    laplacian = dense_laplacian(weights, edge_index, 25)
    assert_allclose(laplacian, laplacian.T, atol=1e-14)
    step = torch.zeros(25).double()
    step[20:] = 1.0
    assert_allclose(apply_laplacian(weights, edge_index, step), 0.0, atol=1e-14)
    assert (torch.linalg.eigvalsh(laplacian) > -1e-12).all()


def test_three_forms_agree():
    weights, edge_index = cluster(20)
    phi = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    dense = dense_laplacian(weights, edge_index, 20) @ phi
    adjacency = adjacency_matrix(weights, edge_index, 20)
    sparse = (adjacency @ torch.ones(20).double()) * phi - adjacency @ phi
    assert_allclose(apply_laplacian(weights, edge_index, phi), dense, atol=1e-13)
    assert_allclose(sparse, dense, atol=1e-13)


def test_images_of_one_pair_add_up():
    """Two edges between the same two atoms, through different faces, conduct in parallel."""
    edge_index = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    weights = torch.tensor([0.3, 0.5, 0.3, 0.5]).double()
    phi = torch.tensor([1.0, 0.0]).double()
    assert_allclose(apply_laplacian(weights, edge_index, phi), [0.8, -0.8])
    assert_allclose(dense_laplacian(weights, edge_index, 2) @ phi, [0.8, -0.8])
