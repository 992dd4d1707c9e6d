"""Iterations looked at after blocks end where those looked at one by one do, to the bit."""

import pytest
import torch

from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.data.tensors import joined, structure_tensors
from phicalc.electrostatics.coulomb.operator import coulomb_of
from phicalc.electrostatics.solvers.charges import descend, screening_mesh
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors
from phicalc.electrostatics.solvers.flow import flow_iteratively
from phicalc.electrostatics.solvers.looks import (
    LOOK_EVERY,
    iterations_between_looks,
    plus,
    quotient,
)
from phicalc.electrostatics.solvers.poisson import solve_iterative
from phicalc.errors import ConvergenceError
from tests.accelerator import DEVICE, Accelerator
from tests.electrostatics.graphs import chain, cluster

BLOCKS = [1, 2, 4, 7]


def water() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A crystal that is summed on a mesh, and a source on its atoms."""
    graph = joined([structure_tensors(water_box(24), 5.0, 0.0)])
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(72, dtype=torch.float64, generator=generator)
    return graph, source + (graph[fields.SPECIES] == 8) * 3.0


@pytest.mark.parametrize("with_basis", [False, True])
def test_poisson(with_basis):
    weights, edge_index = chain(300)
    mu = torch.tensor(0.01).double()
    b = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis = lowest_eigenvectors(weights, edge_index, 300, 8)[1] if with_basis else None
    found = [
        solve_iterative(weights, edge_index, mu, b, basis, None, block=block) for block in BLOCKS
    ]
    assert found[0][1] > 2 * max(BLOCKS)
    for potential, iterations, residual in found[1:]:
        assert torch.equal(potential, found[0][0])
        assert (iterations, residual) == found[0][1:]


def test_flow():
    graph, source = water()
    weights = torch.full_like(graph[fields.EDGE_VECTORS][:, 0], 0.05)
    hardness = torch.full_like(source, 4.0)
    coulomb = coulomb_of(graph, torch.full_like(source, 0.6), 5.0, 1e-7, 0, False)
    found = [
        flow_iteratively(source, weights, graph[fields.EDGE_INDEX], hardness, coulomb, block=block)
        for block in BLOCKS
    ]
    assert found[0][1] > max(BLOCKS)
    for potential, iterations, residual in found[1:]:
        assert torch.equal(potential, found[0][0])
        assert (iterations, residual) == found[0][1:]


def test_equilibration():
    graph, source = water()
    hardness = torch.full_like(source, 8.0)
    coulomb = coulomb_of(graph, torch.full_like(source, 0.6), 5.0, 1e-7, 0, False)
    screening = screening_mesh(graph, hardness + coulomb.diagonal())
    start, charge = torch.zeros_like(source), graph[fields.TOTAL_CHARGE]
    found = [
        descend(source, hardness, coulomb, charge, screening, start, 1e-8, 100, block)
        for block in BLOCKS
    ]
    assert found[0][1] > max(BLOCKS)
    for charges, iterations, square in found[1:]:
        assert torch.equal(charges, found[0][0])
        assert (iterations, square) == found[0][1:]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_solve_that_is_done_stays_as_it_is(block):
    """Also where the residual is exactly nothing, of which there is no share to take."""
    weights, edge_index = cluster(40)
    mu, nothing = torch.tensor(0.1).double(), torch.zeros(40).double()
    potential, iterations, residual = solve_iterative(
        weights, edge_index, mu, nothing, None, None, block=block
    )
    assert torch.equal(potential, nothing)
    assert (iterations, residual) == (0, 0.0)


@pytest.mark.parametrize("block", BLOCKS)
def test_too_few_iterations_and_nan_are_errors(block):
    graph, source = water()
    weights = torch.full_like(graph[fields.EDGE_VECTORS][:, 0], 0.05)
    coulomb = coulomb_of(graph, torch.full_like(source, 0.6), 5.0, 1e-7, 0, False)
    hardness = torch.full_like(source, 4.0)
    for limit, right in ((3, source), (1000, source * torch.nan)):
        with pytest.raises(ConvergenceError, match="expected charges solved"):
            flow_iteratively(
                right, weights, graph[fields.EDGE_INDEX], hardness, coulomb,
                max_iterations=limit, block=block,
            )  # fmt: skip


def test_a_number_that_stays_on_the_device_adds_as_one_on_the_cpu():
    x, y = torch.arange(3.0).double(), torch.tensor([0.3, -2.0, 5.0]).double()
    factor, going = torch.tensor(0.7).double(), torch.tensor(True)
    expected = plus(x, y, factor)
    torch.testing.assert_close(expected, x + 0.7 * y)
    assert quotient(factor, torch.tensor(0.0).double(), ~going) == 0.0
    assert iterations_between_looks(x) == 1
    with Accelerator() as accelerator:
        there = [value.to(DEVICE) for value in (x, y, factor)]
        accelerator.forget()
        found = plus(*there)
        assert iterations_between_looks(found) == LOOK_EVERY
        assert accelerator.reads.total() == 0
        torch.testing.assert_close(found.cpu(), expected)
