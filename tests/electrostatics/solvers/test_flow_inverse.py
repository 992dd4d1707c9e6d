"""The inverse of an earlier geometry: good where it is fresh, and never to be trusted."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose
from torch import Tensor

from phicalc import fields
from phicalc.data.graph import Graph, collate, graph_dict, to_graph
from phicalc.electrostatics.coulomb.operator import Coulomb, coulomb_of
from phicalc.electrostatics.laplacian import dense_laplacian, edge_weights
from phicalc.electrostatics.solvers.flow import flow_iteratively, flow_potential
from phicalc.electrostatics.solvers.flow_inverse import MOST_STEPS, flow_inverse

CUTOFF = 5.0


def salt(periodic: bool, shaken: float = 0.1) -> Atoms:
    crystal = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (3, 2, 2)
    crystal.rattle(shaken, seed=0)
    crystal.pbc = periodic
    return crystal


class Case:
    """All that a solve of one structure takes, and its matrices K and L."""

    def __init__(self, atoms: Atoms) -> None:
        self.graph: Graph = graph_dict(collate([to_graph(atoms, CUTOFF)]))
        generator = torch.Generator().manual_seed(0)
        size = len(atoms)
        self.source = torch.randn(size, generator=generator).double()
        self.hardness = torch.where(torch.tensor(atoms.numbers) == 11, 8.0, 11.0).double()
        self.widths = torch.where(torch.tensor(atoms.numbers) == 11, 1.6, 1.0).double()
        distances = self.graph[fields.EDGE_VECTORS].norm(dim=1)
        self.weights = 2.0 * edge_weights(distances, CUTOFF, 2.0)
        edge_index = self.graph[fields.EDGE_INDEX]
        self.laplacian = dense_laplacian(self.weights, edge_index, size)
        matrix = coulomb_of(self.graph, self.widths, CUTOFF, 1e-7, size, False)
        self.kernel = matrix.kernel(self.hardness)[0]

    def inverse(self) -> Tensor:
        return flow_inverse(self.weights, self.hardness, self.widths, self.graph)

    def solve(self, inverse: Tensor | None) -> tuple[Tensor, int, float]:
        operator: Coulomb = coulomb_of(self.graph, self.widths, CUTOFF, 1e-10, 0, False)
        edge_index = self.graph[fields.EDGE_INDEX]
        return flow_iteratively(
            self.source, self.weights, edge_index, self.hardness, operator, inverse=inverse
        )

    def flow(self, potential: Tensor) -> Tensor:
        return self.laplacian @ potential


@pytest.mark.parametrize("periodic", [True, False], ids=["crystal", "cluster"])
def test_it_is_about_the_inverse(periodic: bool):
    """A cluster's to rounding in float32, a crystal's as far as its sums go."""
    case = Case(salt(periodic))
    found = case.inverse()
    assert found.dtype == torch.float32
    system = torch.eye(96).double() + case.kernel @ case.laplacian
    assert_allclose(found.double() @ system, torch.eye(96), atol=0.03 if periodic else 1e-5)


@pytest.mark.parametrize("periodic", [True, False], ids=["crystal", "cluster"])
def test_an_old_inverse_saves_half_of_the_iterations_and_changes_no_charge(periodic: bool):
    case, before = Case(salt(periodic)), salt(periodic)
    before.rattle(0.03, seed=1)
    exact = case.flow(flow_potential(case.source[None], case.laplacian[None], case.kernel[None])[0])
    plain, plain_iterations, _ = case.solve(None)
    aided, iterations, residual = case.solve(Case(before).inverse())
    assert_allclose(case.flow(plain), exact, atol=1e-7)
    assert_allclose(case.flow(aided), exact, atol=1e-7)
    assert 0 < iterations <= 0.5 * plain_iterations and residual <= 1e-8


@pytest.mark.parametrize("number", [None, 0.0, torch.nan, torch.inf])
def test_a_wrong_inverse_costs_iterations_and_never_accuracy(number: float | None):
    case = Case(salt(True))
    exact = case.flow(flow_potential(case.source[None], case.laplacian[None], case.kernel[None])[0])
    wrong = torch.randn(96, 96, generator=torch.Generator().manual_seed(1))
    if number is not None:
        wrong.fill_(number)
    found, iterations, residual = case.solve(wrong)
    assert_allclose(case.flow(found), exact, atol=1e-7)
    assert residual <= 1e-8
    assert iterations > MOST_STEPS if number is None else iterations == case.solve(None)[1]
