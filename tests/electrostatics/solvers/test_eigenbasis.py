"""The eigenbasis: exact where it must be, useful where it claims to be."""

import pytest
import torch
from numpy.testing import assert_allclose

from phicalc.electrostatics.laplacian import apply_laplacian, dense_laplacian
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors, spectrum
from tests.electrostatics.graphs import chain, cluster


def test_low_eigenpairs_of_a_chain():
    """Ritz values bound the exact ones from above and are close where it matters."""
    weights, edge_index = chain(200)
    exact = torch.linalg.eigvalsh(dense_laplacian(weights, edge_index, 200))[:8]
    values, vectors = lowest_eigenvectors(weights, edge_index, 200, 8)
    assert (values >= exact - 1e-10).all()
    assert_allclose(values[:6], exact[:6], atol=1e-3)
    assert_allclose(vectors.T @ vectors, torch.eye(8), atol=1e-10)


def test_one_warm_sweep_follows_a_changed_graph():
    weights, edge_index = chain(200)
    _, old = lowest_eigenvectors(weights, edge_index, 200, 8)
    factor = 1 + 0.2 * torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    changed = weights * factor[edge_index[0]] * factor[edge_index[1]]
    exact = torch.linalg.eigvalsh(dense_laplacian(changed, edge_index, 200))[:8]
    before = torch.linalg.eigvalsh(old.T @ dense_laplacian(changed, edge_index, 200) @ old)
    values, _ = lowest_eigenvectors(changed, edge_index, 200, 8, start=old)
    assert (values - exact).max() <= (before - exact).max()
    assert_allclose(values[:6], exact[:6], atol=2e-3)


def test_more_vectors_than_atoms_and_no_edges():
    weights, edge_index = cluster(4)
    values, vectors = lowest_eigenvectors(weights, edge_index, 4, 16)
    assert values.shape == (4,) and vectors.shape == (4, 4)
    empty = torch.zeros(0).double(), torch.zeros(2, 0, dtype=torch.long)
    values, _ = lowest_eigenvectors(*empty, 3, 2)
    assert_allclose(values, 0.0)


def test_spectrum_rebuilds_the_potential():
    """Poisson's equation in the eigenbasis: φ = Σ α_k u_k and ρ = Σ λ_k α_k u_k."""
    weights, edge_index = cluster(30)
    source, mu = torch.randn(30, generator=torch.Generator().manual_seed(0)).double(), 0.2
    laplacian = dense_laplacian(weights, edge_index, 30)
    phi = torch.linalg.solve(laplacian + mu * torch.eye(30).double(), mu * source)
    values, alpha = spectrum(weights, edge_index, phi)
    _, projections = spectrum(weights, edge_index, source)
    assert_allclose(alpha, mu / (values + mu) * projections)
    assert values[0].abs() < 1e-12
    assert (alpha**2).sum().item() == pytest.approx((phi**2).sum().item())
    rho = apply_laplacian(weights, edge_index, phi)
    assert ((values * alpha) ** 2).sum().item() == pytest.approx((rho**2).sum().item())
