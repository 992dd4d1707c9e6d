"""What is kept from solve to solve: used where it pays, dropped and said so where it does not."""

import pytest
import torch

from phicalc.electrostatics.solvers.cache import INVERSE, TRIAL_STEPS, SolverCache, eigenbasis
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors
from phicalc.electrostatics.solvers.poisson import solve_iterative
from tests.electrostatics.graphs import chain, cluster


def run(
    graph, mu: float, steps: int, size: int, policy: str = "auto"
) -> tuple[SolverCache, list[int]]:
    """Solves on a slowly changing graph whose topology number rises every ten steps."""
    cache, counts = SolverCache(eigenbasis(size), policy), []
    weights, edge_index = graph
    num_nodes = int(edge_index.max()) + 1
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(num_nodes, generator=generator).double() * 6
    source = torch.randn(num_nodes, generator=generator).double()
    mu_tensor = torch.tensor(mu).double()
    for step in range(steps):
        breath = 1 + 0.1 * torch.sin(phase + 0.3 * step)
        w = weights * breath[edge_index[0]] * breath[edge_index[1]]
        b = mu * source * breath
        phi, iterations, residual = solve_iterative(
            w, edge_index, mu_tensor, b, cache.held(num_nodes), cache.guess()
        )
        assert residual < 2e-9

        def make(last, w=w):
            return lowest_eigenvectors(w, edge_index, num_nodes, size, last)[1]

        cache.observe(step // 10, make, phi, iterations, residual)
        counts.append(iterations)
    return cache, counts


def test_uses_the_basis_where_it_pays():
    cache, counts = run(chain(300), 1e-3, 40, 64)
    info = cache.info
    assert info.mode == "basis" and info.aided_steps > 20
    assert 3 <= info.refreshes <= info.topologies == 4
    assert info.reuse_fraction == pytest.approx(0.9)
    before = sum(counts[3 : 3 + TRIAL_STEPS]) / TRIAL_STEPS
    after = sum(counts[-10:]) / 10
    assert before > 4 * after


def test_says_so_where_it_does_not_pay():
    cache, _ = run(cluster(100), 10.0, 30, 16)
    assert cache.info.mode == "no basis"
    assert cache.info.aided_steps <= TRIAL_STEPS


def test_policies():
    always, _ = run(cluster(50), 1.0, 6, 8, "always")
    never, _ = run(chain(100), 1e-3, 20, 8, "never")
    assert always.info.aided_steps == 5  # all but the first, which had none yet
    assert never.info.aided_steps == 0 and never.info.refreshes == 0


def test_another_number_of_atoms_starts_anew():
    cache, _ = run(chain(50), 0.1, 5, 8, "always")
    assert cache.held(50) is not None and cache.guess() is not None
    assert cache.held(51) is None and cache.guess() is None


def test_the_same_run_gives_the_same_counts():
    assert run(chain(120), 1e-3, 25, 16)[1] == run(chain(120), 1e-3, 25, 16)[1]


def pretend(cache: SolverCache, num_atoms: int, iterations) -> list[int]:
    """The numbers of those of 60 steps on which an aid is made; iterations by its age, or None."""
    made: list[int] = []
    for step in range(60):
        given = cache.held(num_atoms) is not None

        def make(last, step=step):
            made.append(step)
            return torch.zeros(0)

        count = iterations(step - made[-1] if given else None)
        cache.observe(0, make, torch.zeros(0), count, 1e-7)
    return made


def test_an_inverse_is_renewed_when_its_age_has_cost_as_much():
    """It takes 13 (N/1000)² iterations to make. One more every five steps: 5·1 + 4·2 = 13."""
    cache = SolverCache(INVERSE)
    assert pretend(cache, 1000, lambda age: 10 if age is None else 4 + age // 5) == [
        7,
        20,
        33,
        46,
        59,
    ]
    assert cache.info.mode == "inverse" and cache.info.aided_steps == 60 - 8
    assert pretend(SolverCache(INVERSE), 1000, lambda age: 10 if age is None else 4) == [7]


def test_an_inverse_is_dropped_where_it_costs_more_than_it_saves():
    """Where one more iteration comes every step, making it costs 13 every six steps."""
    cache = SolverCache(INVERSE)
    assert pretend(cache, 1000, lambda age: 10 if age is None else 4 + age) == [7]
    assert cache.info.mode == "no inverse" and cache.info.aided_steps == 6
    cache = SolverCache(INVERSE)
    assert pretend(cache, 1000, lambda age: 10) == [7, 12]  # of no use at all, tried twice
    assert cache.info.mode == "no inverse" and cache.info.aided_steps == 2 * TRIAL_STEPS
    cache = SolverCache(INVERSE)
    assert pretend(cache, 3000, lambda age: 10) == []  # too large to keep
    assert cache.info.mode == "no inverse"


def test_an_inverse_of_before_a_jump_is_made_once_more():
    """The first one is of a geometry that no later one is like: 17 iterations instead of 10."""
    cache, made = SolverCache(INVERSE), []
    for step in range(60):
        given = cache.held(1000) is not None
        count = 10 if not given else 17 if len(made) == 1 else 4 + (step - made[-1]) // 5

        def make(_, step=step):
            made.append(step)
            return torch.zeros(1000, 1)

        cache.observe(0, make, torch.zeros(0), count, 1e-7)
    assert made[:2] == [7, 12] and len(made) == 5
    assert cache.info.mode == "inverse"
