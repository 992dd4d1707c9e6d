"""The Poisson solve: two solvers against a dense inverse, and its derivatives to second order."""

import pytest
import torch
from numpy.testing import assert_allclose

from phicalc.electrostatics.laplacian import dense_laplacian
from phicalc.electrostatics.solvers import poisson
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors
from phicalc.electrostatics.solvers.poisson import (
    PoissonSolve,
    solve_direct,
    solve_iterative,
    solve_poisson,
)
from tests.electrostatics.graphs import chain, cluster


def right_hand_side(num_nodes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_nodes, dtype=torch.float64, generator=generator)


def exact(weights, edge_index, mu, b):
    matrix = dense_laplacian(weights, edge_index, len(b)) + mu * torch.eye(len(b)).double()
    return torch.linalg.solve(matrix, b)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("graph", [cluster, chain])
def test_solvers_agree_with_the_dense_inverse(graph, mu):
    weights, edge_index = graph(60)
    b, mu = mu * right_hand_side(60), torch.tensor(mu).double()
    expected = exact(weights, edge_index, mu, b)
    slots = torch.arange(60)
    assert_allclose(solve_direct(weights, edge_index, mu, b, slots, 1, 60), expected, atol=1e-11)
    _, basis = lowest_eigenvectors(weights, edge_index, 60, 8)
    for coarse in (None, basis):
        for guess in (None, expected + 0.1 * right_hand_side(60)):
            found, iterations, residual = solve_iterative(
                weights, edge_index, mu, b, coarse, guess, 1e-11
            )
            assert iterations > 0 and residual < 2e-11
            assert_allclose(found, expected, atol=1e-8)


def test_batch_of_unequal_structures():
    """Structures of a batch are solved as blocks: a lone atom, a chain, a cluster."""
    parts = [chain(7), (torch.zeros(0).double(), torch.zeros(2, 0, dtype=torch.long)), cluster(11)]
    sizes, mu, b = [7, 1, 11], torch.tensor(0.2).double(), right_hand_side(19)
    expected, weights, edges, first = [], [], [], 0
    for (w, e), size in zip(parts, sizes, strict=True):
        expected.append(exact(w, e, mu, b[first : first + size]))
        weights.append(w)
        edges.append(e + first)
        first += size
    weights, edge_index = torch.cat(weights), torch.cat(edges, 1)
    batch = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    for limit in (256, 0):
        found, _, _ = solve_poisson(
            weights, edge_index, mu, b, batch, tolerance=1e-12, direct_limit=limit
        )
        assert_allclose(found, torch.cat(expected), atol=1e-10)


def test_basis_and_warm_start_save_iterations():
    """A chain is all long waves: 64 low modes take over; fewer help less."""
    weights, edge_index = chain(300)
    mu, b = torch.tensor(1e-3).double(), 1e-3 * right_hand_side(300)
    counts = []
    for size in (0, 16, 64):
        basis = lowest_eigenvectors(weights, edge_index, 300, size)[1] if size else None
        found, iterations, _ = solve_iterative(weights, edge_index, mu, b, basis, None)
        counts.append(iterations)
    assert counts[0] > counts[1] > counts[2]
    assert counts[0] > 5 * counts[2]
    _, warm, _ = solve_iterative(weights, edge_index, mu, b, basis, found + 1e-6 * b)
    assert warm < counts[2] / 2


def test_a_bad_basis_costs_iterations_and_never_accuracy():
    weights, edge_index = chain(100)
    mu, b = torch.tensor(1e-2).double(), 1e-2 * right_hand_side(100)
    generator = torch.Generator().manual_seed(2)
    basis, _ = torch.linalg.qr(torch.randn(100, 16, dtype=torch.float64, generator=generator))
    found, _, residual = solve_iterative(weights, edge_index, mu, b, basis, None, 1e-11)
    assert residual < 2e-11
    assert_allclose(found, exact(weights, edge_index, mu, b), atol=1e-9)


def test_gives_up_with_an_honest_residual():
    weights, edge_index = chain(100)
    mu, b = torch.tensor(1e-3).double(), right_hand_side(100)
    _, iterations, residual = solve_iterative(
        weights, edge_index, mu, b, None, None, 1e-12, max_iterations=3
    )
    assert iterations == 3 and residual > 1e-6


def test_scripted_solver_is_the_same():
    weights, edge_index = cluster(40)
    mu, b = torch.tensor(0.05).double(), right_hand_side(40)
    scripted = torch.jit.script(solve_iterative)
    found = scripted(weights, edge_index, mu, b, None, None, 1e-10)
    assert torch.equal(found[0], solve_iterative(weights, edge_index, mu, b, None, None, 1e-10)[0])


@pytest.mark.parametrize("limit", [256, 0], ids=["direct", "iterative"])
def test_derivatives_to_second_order(limit, monkeypatch):
    """gradcheck and gradgradcheck in weights (tied over the two directions), μ and b."""

    def tight(weights, edge_index, mu, b, batch, **_):
        return solve_poisson(weights, edge_index, mu, b, batch, tolerance=1e-14, direct_limit=limit)

    monkeypatch.setattr(poisson, "solve_poisson", tight)
    pairs = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [4, 5]])
    both = torch.cat([pairs, pairs.flip(1)])
    order = torch.argsort(both[:, 1], stable=True)
    edge_index = both[order].T
    batch = torch.tensor([0, 0, 0, 0, 1, 1])
    generator = torch.Generator().manual_seed(3)
    w = (0.2 + torch.rand(5, generator=generator).double()).requires_grad_()
    mu = torch.tensor(0.3).double().requires_grad_()
    b = torch.randn(6, generator=generator).double().requires_grad_()

    def solve(w, mu, b):
        return PoissonSolve.apply(torch.cat([w, w])[order], mu, b, edge_index, batch)

    assert torch.autograd.gradcheck(solve, (w, mu, b))
    assert torch.autograd.gradgradcheck(solve, (w, mu, b))
