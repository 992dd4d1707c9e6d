"""PaiNN against the published equations, edge by edge, and the equivariance of its vectors."""

import math

import torch
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from phicalc.nn.painn import Message, PaiNN, Update
from phicalc.nn.rows import neighbour_rows
from tests.nn.graphs import CUTOFF, N, ones, random_graph

F, K = 6, 5


def run_message(message: Message, scalars, vectors, edge_index, edge_vectors, block=N):
    rows = neighbour_rows(edge_index, edge_vectors, ones(edge_index), N, CUTOFF, block)
    blocks = PaiNN(F, 1, K, CUTOFF, 1, 1.0).double().blocks(rows)
    sums = message(scalars[rows.order], vectors[rows.order], *blocks)
    return [a[rows.rank] for a in sums]


def test_blocks_of_atoms_change_nothing():
    edge_index, edge_vectors = random_graph()
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    message = Message(F, K, 0.3, first=False).double()
    whole = run_message(message, scalars, vectors, edge_index, edge_vectors)
    blocks = run_message(message, scalars, vectors, edge_index, edge_vectors, block=3)
    for a, b in zip(whole, blocks, strict=True):
        assert_allclose(a.detach(), b.detach(), atol=1e-13)


def test_atoms_that_start_alike_are_summed_as_one_kind():
    """Features, forces and second derivatives are those of atoms that each start on their own."""
    torch.manual_seed(2)
    width, kinds = 8, torch.tensor([0, 1, 1, 0, 1, 0, 0])
    net = PaiNN(width, 2, K, CUTOFF, 2, 5.0).double()
    edges, vectors = random_graph()
    initial = torch.randn(2, width).double()
    found = []
    for arguments in (
        (kinds, initial[kinds], edges),
        (torch.arange(2), initial, edges),
    ):
        moved = vectors.clone().requires_grad_()
        alike = (kinds,) if arguments[0].shape[0] == 2 else ()
        features = net(*arguments, moved, ones(edges), *alike)
        energy = features[0].sin().sum() + features[1].sin().sum()
        (gradient,) = torch.autograd.grad(energy, moved, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), [moved, net.messages[0].filters])
        found.append([*features, gradient, *second])
    for a, b in zip(*found, strict=True):
        assert_allclose(a.detach(), b.detach(), rtol=1e-9, atol=1e-11)


def test_message_is_equations_7_and_8():
    edge_index, edge_vectors = random_graph()
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    message = Message(F, K, 0.3, first=False).double()
    found = run_message(message, scalars, vectors, edge_index, edge_vectors)

    expected = torch.zeros(N, F).double(), torch.zeros(N, 3, F).double()
    phi = message.senders(scalars)
    order = torch.arange(1, K + 1).double()
    for (j, i), r_ij in zip(edge_index.T.tolist(), edge_vectors, strict=True):
        r = r_ij.norm()
        x = r / CUTOFF
        envelope = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        basis = (2 / CUTOFF) ** 0.5 * torch.sin(order * torch.pi * r / CUTOFF) / r
        w = phi[j] * ((basis * envelope) @ message.filters)
        expected[0][i] += w[:F]
        expected[1][i] += torch.outer(r_ij / r, w[F : 2 * F]) + vectors[j] * w[2 * F :]
    assert_allclose(found[0].detach(), expected[0].detach(), atol=1e-12)
    assert_allclose(found[1].detach(), expected[1].detach(), atol=1e-12)


def test_first_message_leaves_out_a_zero_term():
    edge_index, edge_vectors = random_graph()
    scalars, zeros = torch.randn(N, F).double(), torch.zeros(N, 3, F).double()
    full, short = Message(F, K, 0.3, first=False).double(), Message(F, K, 0.3, first=True).double()
    with torch.no_grad():
        short.filters.copy_(full.filters[:, : 2 * F])
        short.senders[0].load_state_dict(full.senders[0].state_dict())
        short.senders[2].weight.copy_(full.senders[2].weight[: 2 * F])
        short.senders[2].bias.copy_(full.senders[2].bias[: 2 * F])
    for a, b in zip(
        run_message(full, scalars, zeros, edge_index, edge_vectors),
        run_message(short, scalars, zeros, edge_index, edge_vectors),
        strict=True,
    ):
        assert_allclose(a.detach(), b.detach(), atol=1e-12)


def test_update_is_equations_9_and_10_with_a_smooth_norm():
    torch.manual_seed(1)
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    update = Update(F, last=False).double()
    found = update(scalars, vectors)
    u, v = vectors @ update.mix.weight[:F].T, vectors @ update.mix.weight[F:].T
    norm = (1 + (v**2).sum(1)).sqrt() - 1
    a_ss, a_sv, a_vv = update.gates(torch.cat([scalars, norm], 1)).split(F, 1)
    assert_allclose(found[0].detach(), (scalars + a_ss + a_sv * (u * v).sum(1)).detach())
    assert_allclose(found[1].detach(), (vectors + a_vv[:, None] * u).detach())


def test_vectors_turn_and_scalars_stay():
    edge_index, edge_vectors = random_graph()
    turn = torch.tensor(Rotation.random(rng=2).as_matrix()) @ torch.diag(
        torch.tensor([1.0, 1.0, -1.0]).double()
    )
    scalars, vectors = torch.randn(N, F).double(), torch.randn(N, 3, F).double()
    message, update = Message(F, K, 0.3, first=False).double(), Update(F, last=False).double()

    def step(vectors, edge_vectors):
        s, v = run_message(message, scalars, vectors, edge_index, edge_vectors)
        return update(scalars + s, vectors + v)

    plain = step(vectors, edge_vectors)
    turned = step(torch.einsum("ab,nbf->naf", turn, vectors), edge_vectors @ turn.T)
    assert_allclose(turned[0].detach(), plain[0].detach(), atol=1e-12)
    assert_allclose(
        turned[1].detach(), torch.einsum("ab,nbf->naf", turn, plain[1]).detach(), atol=1e-12
    )


def test_features_depend_on_angles():
    """Two waters with the same O–H distances and another angle differ already at the oxygen."""
    torch.manual_seed(3)
    net = PaiNN(F, 2, K, 3.0, 2, 2.0).double()
    features = []
    for angle in (1.6, 2.0):
        oh = torch.tensor([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]])
        vectors = torch.stack([oh[0], oh[1], -oh[0], -oh[1]]).double()
        edges = torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2]])
        initial = torch.zeros(3, F).double()
        found = net(torch.tensor([0, 1, 1]), initial, edges, vectors, ones(edges))
        features.append(found[-1][0])
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_padding_is_never_felt():
    """Neighbour rows are as wide as the widest: an added crowd elsewhere changes nothing here."""
    torch.manual_seed(4)
    net = PaiNN(F, 2, K, CUTOFF, 1, 3.0).double()
    edges = torch.tensor([[1, 0], [0, 1]])
    vectors = torch.tensor([[1.1, 0.2, 0.0], [-1.1, -0.2, 0.0]]).double()
    alone = net(
        torch.zeros(2, dtype=torch.long), torch.zeros(2, F).double(), edges, vectors, ones(edges)
    )
    crowd_edges, crowd_vectors = random_graph()
    joined = torch.cat([edges, crowd_edges + 2], 1)
    joint = net(
        torch.zeros(2 + N, dtype=torch.long),
        torch.zeros(2 + N, F).double(),
        joined,
        torch.cat([vectors, crowd_vectors]),
        ones(joined),
    )
    for a, b in zip(alone, joint, strict=True):
        assert_allclose(a.detach(), b[:2].detach(), atol=1e-13)


def test_scriptable():
    torch.manual_seed(5)
    net = PaiNN(F, 3, K, CUTOFF, 1, 5.0).double()
    edges, vectors = random_graph()
    types, initial = torch.zeros(N, dtype=torch.long), torch.zeros(N, F).double()
    inputs = (types, initial, edges, vectors, ones(edges))
    for a, b in zip(net(*inputs), torch.jit.script(net)(*inputs), strict=True):
        assert torch.equal(a, b)
