"""SchNet against torch_geometric's, with copied weights, and its symmetries."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch_geometric.nn.models import SchNet as ReferenceSchNet

from phicalc.nn.schnet import SchNet

CUTOFF = 4.0
FEATURES, FILTERS, LAYERS, RADIAL = 16, 12, 3, 20


def model(envelope="cosine", dtype=torch.float64, elements=100):
    torch.manual_seed(0)
    return SchNet(FEATURES, FILTERS, LAYERS, RADIAL, CUTOFF, envelope, elements).to(dtype)


def inputs(atoms: Atoms, dtype=torch.float64):
    """Species, nothing initial, edges sorted by receiver, their vectors, and all of each edge."""
    receivers, senders, vectors = neighbor_list("ijD", atoms, CUTOFF)
    edge_index = torch.from_numpy(np.stack([senders, receivers])).long()
    initial = torch.zeros(len(atoms), FEATURES, dtype=dtype)
    vectors = torch.tensor(vectors, dtype=dtype)
    return torch.tensor(atoms.numbers), initial, edge_index, vectors, torch.ones_like(vectors[:, 0])


def reference_with_weights_of(ours: SchNet, atoms: Atoms) -> ReferenceSchNet:
    _, _, edge_index, edge_vectors, _ = inputs(atoms, next(ours.parameters()).dtype)
    theirs = ReferenceSchNet(
        FEATURES, FILTERS, LAYERS, RADIAL, CUTOFF,
        interaction_graph=lambda pos, batch: (edge_index, edge_vectors.norm(dim=1)),
    ).to(ours.embedding.weight.dtype)  # fmt: skip
    with torch.no_grad():
        theirs.embedding.weight.copy_(ours.embedding.weight)
        for a, b in zip(ours.interactions, theirs.interactions, strict=True):
            pairs = [
                (a.filter, b.mlp),
                (a.incoming, b.conv.lin1),
                (a.outgoing[0], b.conv.lin2),
                (a.outgoing[2], b.lin),
            ]
            for source, target in pairs:
                target.load_state_dict(source.state_dict())
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_reproduces_torch_geometric(atoms, dtype):
    ours = model(dtype=dtype)
    theirs = reference_with_weights_of(ours, atoms)
    expected = theirs(torch.tensor(atoms.numbers), torch.tensor(atoms.positions, dtype=dtype))
    nodes = ours(*inputs(atoms, dtype))[-1]
    energy = theirs.lin2(theirs.act(theirs.lin1(nodes))).sum()
    assert abs(float(expected)) > 0.1
    assert abs(float(energy - expected)) < 1e-5


def test_one_tensor_per_interaction_and_initial_is_added(molecule):
    species, initial, edge_index, edge_vectors, whole = inputs(molecule)
    ours = model()
    plain = ours(species, initial, edge_index, edge_vectors, whole)
    assert [tuple(h.shape) for h in plain] == [(len(molecule), FEATURES)] * LAYERS
    shift = torch.randn(FEATURES, dtype=torch.float64)
    shifted = ours(species, initial + shift, edge_index, edge_vectors, whole)
    ours.embedding.weight.data += shift
    again = ours(species, initial, edge_index, edge_vectors, whole)
    for a, b, c in zip(plain, shifted, again, strict=True):
        torch.testing.assert_close(b, c, rtol=0, atol=1e-12)
        assert not torch.allclose(a, b)


def test_rotation_reflection_and_order(atoms):
    species, initial, edge_index, edge_vectors, whole = inputs(atoms)
    ours = model()
    expected = ours(species, initial, edge_index, edge_vectors, whole)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turned = ours(species, initial, edge_index, edge_vectors @ rotation, whole)
    mirrored = ours(species, initial, edge_index, -edge_vectors, whole)
    order = torch.randperm(len(atoms))
    permuted = ours(species[order], initial, torch.argsort(order)[edge_index], edge_vectors, whole)
    for h, a, b, c in zip(expected, turned, mirrored, permuted, strict=True):
        torch.testing.assert_close(a, h, rtol=0, atol=1e-11)
        torch.testing.assert_close(b, h, rtol=0, atol=1e-11)
        torch.testing.assert_close(c, h[order], rtol=0, atol=1e-11)


def test_no_edges_leave_only_the_bias_of_each_block():
    species = torch.tensor([8, 1])
    initial = torch.zeros(2, FEATURES, dtype=torch.float64)
    no_edges = torch.zeros(2, 0, dtype=torch.long)
    ours = model()
    for count in (1, 2):
        vectors = torch.zeros(0, 3, dtype=torch.float64)
        features = ours(species[:count], initial[:count], no_edges, vectors, vectors[:, 0])
        nodes = ours.embedding(species[:count])
        for interaction, h in zip(ours.interactions, features, strict=True):
            nodes = nodes + interaction.outgoing(torch.zeros(count, FILTERS, dtype=torch.float64))
            torch.testing.assert_close(h, nodes, rtol=0, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize(("envelope", "smooth"), [("polynomial", True), ("cosine", False)])
def test_smoothness_at_the_cutoff(envelope, smooth):
    """The second difference of h across r_c vanishes with a C² envelope only."""
    ours = model(envelope)
    species = torch.tensor([11, 17])
    initial = torch.zeros(2, FEATURES, dtype=torch.float64)
    edge_index = torch.tensor([[1, 0], [0, 1]])
    step = 1e-3

    def feature(r):
        vectors = torch.tensor([[r, 0.0, 0.0], [-r, 0.0, 0.0]], dtype=torch.float64)
        return ours(species, initial, edge_index, vectors, torch.ones(2).double())[-1]

    second = feature(CUTOFF - step) - 2 * feature(CUTOFF) + feature(CUTOFF + step)
    curvature = float(second.abs().max()) / step**2
    assert (curvature < 0.05) == smooth


@pytest.mark.parametrize("envelope", ["polynomial", "cosine"])
def test_first_and_second_derivatives(envelope, bulk):
    species, initial, edge_index, edge_vectors, whole = inputs(bulk)
    ours = model(envelope)
    few = slice(0, 12)

    def total(vectors):
        return ours(species, initial, edge_index[:, few], vectors, whole[few])[-1].sum(0)[:3]

    vectors = edge_vectors[few].requires_grad_(True)
    assert torch.autograd.gradcheck(total, (vectors,))
    assert torch.autograd.gradgradcheck(total, (vectors,))


def test_filters_start_at_unit_size():
    """Sums over many neighbours start as large as with one, times √(1/average)."""
    torch.manual_seed(0)
    one = SchNet(FEATURES, FILTERS, 1, RADIAL, CUTOFF, "polynomial", 5)
    torch.manual_seed(0)
    many = SchNet(FEATURES, FILTERS, 1, RADIAL, CUTOFF, "polynomial", 5, average_neighbours=49.0)
    ratio = one.interactions[0].incoming.weight / many.interactions[0].incoming.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(49.0)))


@pytest.mark.parametrize("envelope", ["polynomial", "cosine"])
def test_scripts(envelope, slab):
    ours = model(envelope)
    arguments = inputs(slab)
    scripted = torch.jit.script(ours)
    for _ in range(3):
        for a, b in zip(scripted(*arguments), ours(*arguments), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_unknown_envelope():
    with pytest.raises(ValueError, match="expected envelope 'polynomial' or 'cosine', got 'hat'"):
        model("hat")
