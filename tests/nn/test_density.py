"""Densities edge by edge, and what they can and cannot tell apart."""

import math

import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from phicalc.nn.density import Density, DensityNetwork, FirstDensity
from phicalc.nn.products import components, quadrupoles
from phicalc.nn.rows import neighbour_rows
from tests.nn.graphs import CUTOFF, N, ones, random_graph

F, K = 6, 5


def network(layers: int = 2, species: int = 2) -> DensityNetwork:
    torch.manual_seed(0)
    return DensityNetwork(F, layers, K, CUTOFF, species, 5.0).double()


def run_density(step, inputs, edge_index, edge_vectors, block=N):
    """A density's forward on a graph, atoms in their own order."""
    rows = neighbour_rows(edge_index, edge_vectors, ones(edge_index), N, CUTOFF, block)
    blocks = network().blocks(rows)
    found = step(*[x[rows.order] for x in inputs], *blocks)
    return [x[rows.rank] for x in found]


def radial_functions(r: torch.Tensor) -> torch.Tensor:
    x = r / CUTOFF
    envelope = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    order = torch.arange(1, K + 1).double()
    return (2 / CUTOFF) ** 0.5 * torch.sin(order * torch.pi * x) / r * envelope


@pytest.mark.parametrize("block", [N, 3])
def test_densities_are_sums_over_edges(block):
    """Those of scalars, and what vectors of the senders add."""
    edge_index, edge_vectors = random_graph()
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    first = FirstDensity(F, K, 0.3).double()
    later = Density(F, K, 0.3).double()
    with torch.no_grad():
        later.filters[:3] = first.filters
        later.senders.load_state_dict(first.senders.state_dict())
    plain = [
        torch.zeros(N, F).double(),
        torch.zeros(N, 3, F).double(),
        torch.zeros(N, 5, F).double(),
    ]
    more = [x.clone() for x in plain]
    x = first.senders(scalars)
    for (j, i), r_ij in zip(edge_index.T.tolist(), edge_vectors, strict=True):
        r, u = r_ij.norm(), r_ij / r_ij.norm()
        w = radial_functions(r) @ later.filters  # (6, F)
        plain[0][i] += w[0] * x[j]
        plain[1][i] += u[:, None] * w[1] * x[j]
        plain[2][i] += quadrupoles(u[None])[0][:, None] * w[2] * x[j]
        more[0][i] += w[5] * (u @ vectors[j])
        more[1][i] += w[3] * vectors[j]
        more[2][i] += components((u[:, None, None] * vectors[j] * w[4])[None])[0]
    found = run_density(first, [scalars], edge_index, edge_vectors, block)
    for a, b in zip(found, plain, strict=True):
        assert_allclose(a.detach(), b.detach(), atol=1e-12)
    found = run_density(later, [scalars, vectors], edge_index, edge_vectors, block)
    for a, b, c in zip(found, plain, more, strict=True):
        assert_allclose(a.detach(), (b + c).detach(), atol=1e-12)


def test_atoms_that_start_alike_are_summed_as_one_kind():
    """Features, forces and second derivatives are those of atoms that each start on their own."""
    torch.manual_seed(2)
    width, kinds = 8, torch.tensor([0, 1, 1, 0, 1, 0, 0])
    net = DensityNetwork(width, 2, K, CUTOFF, 2, 5.0).double()
    edges, vectors = random_graph()
    initial = torch.randn(2, width).double()
    found = []
    for arguments in ((kinds, initial[kinds], edges), (torch.arange(2), initial, edges)):
        moved = vectors.clone().requires_grad_()
        alike = (kinds,) if arguments[0].shape[0] == 2 else ()
        features = net(*arguments, moved, ones(edges), *alike)
        energy = features[0].sin().sum() + features[1].sin().sum()
        (gradient,) = torch.autograd.grad(energy, moved, create_graph=True)
        filters = net.first_density.filters
        second = torch.autograd.grad(gradient.square().sum(), [moved, filters])
        found.append([*features, gradient, *second])
    for a, b in zip(*found, strict=True):
        assert_allclose(a.detach(), b.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_features_stay_when_all_turns(layers):
    edges, vectors = random_graph()
    species = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    initial = torch.randn(N, F).double()
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())
    turn = torch.tensor(Rotation.random(rng=2).as_matrix()) @ mirror
    net = network(layers)
    plain = net(species, initial, edges, vectors, ones(edges))
    found = net(species, initial, edges, vectors @ turn.T, ones(edges))
    assert len(plain) == layers
    for a, b in zip(found, plain, strict=True):
        assert_allclose(a.detach(), b.detach(), atol=1e-12)


def star(net: DensityNetwork, eighths: list[int]) -> torch.Tensor:
    """Features after one step of an atom with neighbours 1 Å away, at eighths of a full turn."""
    count = len(eighths)
    angles = torch.tensor(eighths, dtype=torch.float64) * math.pi / 4
    unit = torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    edges = torch.tensor([list(range(1, count + 1)), [0] * count])
    species = torch.zeros(count + 1, dtype=torch.int64)
    initial = torch.zeros(count + 1, F).double()
    return net(species, initial, edges, unit, ones(edges))[0][0].detach()


def test_one_step_knows_more_than_distances_and_angles():
    """Two stars whose six angles are the same (10.1103/PhysRevLett.125.166001, here in a plane)."""
    net = network(1, 1)
    first, second = ([0, 1, 3, 4], [0, 1, 2, 5])
    assert (star(net, first) - star(net, second)).abs().max() > 1e-3
    turned = [(5 - n) % 8 for n in first]
    assert_allclose(star(net, turned), star(net, first), atol=1e-12)
    with torch.no_grad():  # up to three bodies: of the ten invariants the first five
        net.first_products.by_species.weight[:, 5 * F :] = 0.0
    assert_allclose(star(net, first), star(net, second), atol=1e-12)


def test_padding_is_never_felt():
    """Neighbour rows are as wide as the widest: an added crowd elsewhere changes nothing here."""
    net = network(species=1)
    edges = torch.tensor([[1, 0], [0, 1]])
    vectors = torch.tensor([[1.1, 0.2, 0.0], [-1.1, -0.2, 0.0]]).double()
    crowd_edges, crowd_vectors = random_graph()
    together = torch.cat([edges, crowd_edges + 2], 1), torch.cat([vectors, crowd_vectors])
    found = []
    for e, v in ((edges, vectors), together):
        count = int(e.max()) + 1
        species, initial = torch.zeros(count, dtype=torch.int64), torch.zeros(count, F).double()
        found.append(net(species, initial, e, v, ones(e)))
    for a, b in zip(*found, strict=True):
        assert_allclose(a.detach(), b[:2].detach(), atol=1e-13)


@pytest.mark.parametrize("kinds", [True, False], ids=["kinds", "each on its own"])
def test_scriptable(kinds):
    net = network(3)
    edges, vectors = random_graph()
    kind = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    initial = torch.randn(2, F).double()
    inputs = (torch.arange(2), initial, edges, vectors, ones(edges), kind)
    if not kinds:
        inputs = (kind, initial[kind], edges, vectors, ones(edges))
    for a, b in zip(net(*inputs), torch.jit.script(net)(*inputs), strict=True):
        assert torch.equal(a, b)
