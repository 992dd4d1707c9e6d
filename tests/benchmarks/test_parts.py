"""Parts of an MD step under pytest-benchmark.

    python -m pytest tests/benchmarks --benchmark-enable --benchmark-group-by=param:molecules

Without ``--benchmark-enable`` each runs once, as a test that it works. Compare within one run
only; ``phicalc bench`` splits a whole step and adds memory.
"""

import pytest
import torch

from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.data.neighbours import NeighbourList
from phicalc.electrostatics.laplacian import edge_weights
from phicalc.electrostatics.solvers.poisson import solve_poisson
from phicalc.model.config import (
    LocalChargesConfig,
    ModelConfig,
    PhiConfig,
    PhiCoulombConfig,
    QEqConfig,
)
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from tests.benchmarks.coulomb_heads import measure

CUTOFF = 5.0


@pytest.fixture(scope="module", params=[64, 216])
def molecules(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def box(molecules):
    return water_box(molecules)


@pytest.fixture(scope="module")
def graph(box):
    return graph_dict(collate([to_graph(box, CUTOFF)]))


def test_neighbours_reused(benchmark, box):
    neighbours = NeighbourList(CUTOFF, skin=1.0)
    neighbours.update(box.positions, box.cell.array, box.pbc)
    found = benchmark(neighbours.update, box.positions + 0.01, box.cell.array, box.pbc)
    assert neighbours.rebuilds == 1 and found.edge_index.shape[1] > 40 * len(box)


def test_poisson_solve_from_scratch(benchmark, graph):
    weights = edge_weights(torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1), CUTOFF, 2.0)
    mu = torch.tensor(0.1, dtype=torch.float64)
    b = mu * torch.randn(len(graph[fields.SPECIES]), generator=torch.Generator().manual_seed(0))
    inputs = (weights, graph[fields.EDGE_INDEX], mu, b.double(), graph[fields.BATCH])
    _, _, residual = benchmark(solve_poisson, *inputs)
    assert residual < 1e-8


HEADS = [[], [PhiConfig()], [QEqConfig()], [PhiCoulombConfig()], [LocalChargesConfig()]]


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: heads[0].kind if heads else "no head")
def test_energy_and_forces(benchmark, graph, heads):
    torch.manual_seed(0)
    model = Differentiated(Potential(ModelConfig(heads=heads), [1, 8])).eval()
    output = benchmark(model, graph)
    assert output[fields.FORCES].isfinite().all()


def test_a_head_beside_its_network():
    row = measure("phi-coulomb", 96, steps=1, seconds=0.0)
    assert 0 < row.warm_iterations < row.cold_iterations
    assert row.atoms == 96 and row.steps == 1
