"""The eigenbasis and its cache: exact where it must be, useful where it claims to be."""

import pytest
import torch
from numpy.testing import assert_allclose

from phicalc.electrostatics.laplacian import apply_laplacian, dense_laplacian
from phicalc.electrostatics.solvers.eigenbasis import (
    TRIAL_STEPS,
    SolverCache,
    lowest_eigenvectors,
    spectrum,
)
from phicalc.electrostatics.solvers.poisson import solve_iterative
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


def run(cache: SolverCache, graph, mu: float, steps: int, every: int = 10) -> list[int]:
    """Solves on a slowly changing graph whose topology number rises every few steps."""
    weights, edge_index = graph
    size = int(edge_index.max()) + 1
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(size, generator=generator).double() * 6
    source = torch.randn(size, generator=generator).double()
    mu_tensor, counts = torch.tensor(mu).double(), []
    for step in range(steps):
        breath = 1 + 0.1 * torch.sin(phase + 0.3 * step)
        w = weights * breath[edge_index[0]] * breath[edge_index[1]]
        b = mu * source * breath
        phi, iterations, residual = solve_iterative(
            w, edge_index, mu_tensor, b, cache.basis(size), cache.guess()
        )
        assert residual < 2e-9
        cache.observe(step // every, w, edge_index, phi, iterations, residual)
        counts.append(iterations)
    return counts


def test_uses_the_basis_where_it_pays():
    cache = SolverCache(64)
    counts = run(cache, chain(300), 1e-3, 40)
    info = cache.info
    assert info.mode == "basis" and info.basis_steps > 20
    assert 3 <= info.refreshes <= info.topologies == 4
    assert info.reuse_fraction == pytest.approx(0.9)
    before = sum(counts[3 : 3 + TRIAL_STEPS]) / TRIAL_STEPS
    after = sum(counts[-10:]) / 10
    assert before > 4 * after


def test_says_so_where_it_does_not_pay():
    cache = SolverCache(16)
    run(cache, cluster(100), 10.0, 30)
    assert cache.info.mode == "no basis"
    assert cache.info.basis_steps <= TRIAL_STEPS


def test_policies():
    always, never = SolverCache(8, "always"), SolverCache(8, "never")
    run(always, cluster(50), 1.0, 6)
    run(never, chain(100), 1e-3, 20)
    assert always.info.basis_steps == 5  # all but the first, which had none yet
    assert never.info.basis_steps == 0 and never.info.refreshes == 0


def test_another_number_of_atoms_starts_anew():
    cache = SolverCache(8, "always")
    run(cache, chain(50), 0.1, 5)
    assert cache.basis(50) is not None and cache.guess() is not None
    assert cache.basis(51) is None and cache.guess() is None


def test_the_same_run_gives_the_same_counts():
    assert run(SolverCache(16), chain(120), 1e-3, 25) == run(SolverCache(16), chain(120), 1e-3, 25)
