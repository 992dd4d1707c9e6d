"""What the charge heads promise: analytic limits, integer fragments."""

import pytest
import torch
from ase import Atoms
from ase.build import molecule as build_molecule
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.heads.phi import PhiHead
from phicalc.electrostatics.heads.phi_coulomb import PhiCoulombHead
from phicalc.electrostatics.laplacian import edge_weights
from phicalc.electrostatics.solvers.charges import equilibrate
from phicalc.model.config import LocalChargesConfig, ModelConfig, PhiSpectralConfig
from phicalc.model.potential import Potential
from tests.electrostatics.graphs import cluster
from tests.physics.models import evaluate, make_model


def test_equilibration_of_two_atoms():
    """q₁ = (χ₂ − χ₁ + Q (K₂₂ − K₁₂))/(K₁₁ + K₂₂ − 2 K₁₂), written out by hand."""
    chi = torch.tensor([[0.9, 3.2]]).double()
    kernel = torch.tensor([[[11.0, 4.0], [4.0, 17.0]]]).double()
    for total in (0.0, 1.0):
        first = (3.2 - 0.9 + total * (17.0 - 4.0)) / (11.0 + 17.0 - 8.0)
        found = equilibrate(chi, kernel, torch.tensor([total]).double())
        assert_allclose(found, [[first, total - first]], atol=1e-14)


def test_equilibration_of_three_atoms():
    """A symmetric A–B–A: q_B = −2q_A follows from one equation."""
    end, middle, near, far, own_end, own_middle = 1.0, 2.5, 5.0, 3.0, 12.0, 14.0
    kernel = torch.tensor(
        [[[own_end, near, far], [near, own_middle, near], [far, near, own_end]]]
    ).double()
    chi = torch.tensor([[end, middle, end]]).double()
    q = (middle - end) / (own_end + far - 4.0 * near + 2.0 * own_middle)
    found = equilibrate(chi, kernel, torch.zeros(1).double())
    assert_allclose(found, [[q, -2 * q, q]], atol=1e-14)


def test_padding_of_a_batch():
    chi = torch.tensor([[0.9, 3.2, 0.0], [1.0, 2.0, 3.0]]).double()
    kernel = torch.diag_embed(torch.tensor([[11.0, 17.0, 0.0], [9.0, 10.0, 11.0]]).double())
    total = torch.tensor([1.0, -1.0]).double()
    found = equilibrate(chi, kernel, total)
    assert_allclose(found[:1, :2], equilibrate(chi[:1, :2], kernel[:1, :2, :2], total[:1]))
    assert float(found[0, 2]) == 0.0
    assert_allclose(found.sum(1), total, atol=1e-14)


def test_without_coulomb_it_is_the_phi_head():
    """μ = 1/J, c = −1: energies, charges and potential to 1e-10."""
    torch.manual_seed(0)
    elements, features = [1, 8, 17], [torch.randn(30, 8) for _ in range(2)]
    phi = PhiHead(8, 2, elements, 5.0, sigma=2.0, mu=0.1)
    split = PhiCoulombHead(8, 2, elements, 5.0, 2.0, 10.0, [0.0] * 3, "formal", False)
    split.source.layers.load_state_dict(phi.sources.state_dict())
    species = torch.arange(30) % 3
    _, edge_index = cluster(30)
    vectors = torch.randn(edge_index.shape[1], 3, dtype=torch.float64)
    distance = 1.0 + 4.0 * torch.rand(edge_index.shape[1], dtype=torch.float64)
    reverse = {(int(j), int(i)): e for e, (j, i) in enumerate(edge_index.t())}
    for e, (j, i) in enumerate(edge_index.t()):
        distance[e] = distance[reverse[int(i), int(j)]]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1)[:, None] * distance[:, None]
    graph = {
        fields.EDGE_INDEX: edge_index,
        fields.EDGE_VECTORS: vectors,
        fields.BATCH: torch.zeros(30, dtype=torch.long),
        fields.TOTAL_CHARGE: torch.zeros(1, dtype=torch.float64),
    }
    for mode in (True, False):
        expected = phi.train(mode)(features, species, graph)
        # float32 rounds the two starting values differently
        mu = expected[fields.SCREENING].detach().double()
        split.hardness.start.fill_(float(1.0 / mu))
        found = split.train(mode)(features, species, graph)
        for name in (fields.CHARGES, fields.POTENTIAL):
            assert_allclose(found[name].detach(), expected[name].detach(), atol=1e-10)
        total = [float(o[fields.ENERGIES].detach().sum()) for o in (found, expected)]
        assert total[0] == pytest.approx(total[1], abs=1e-10)
        assert float(found[fields.CHARGES].detach().abs().max()) > 0.01


@pytest.mark.parametrize("distance", [30.0, 60.0])
def test_distant_fragments_and_their_charges(distance):
    """Formal charges stay whole with Φ and Coulomb; equilibration shares them at any distance."""
    pair = Atoms("OHNa", [[0.0, 0.0, 0.0], [0.97, 0.0, 0.0], [distance, 0.0, 0.0]])
    pair.info["charge"] = 1
    ion = {
        head: float(evaluate(make_model("painn", head, "float64"), pair)[fields.CHARGES][2])
        for head in ("phi-coulomb", "qeq")
    }
    assert ion["phi-coulomb"] == pytest.approx(1.0, abs=1e-12)
    assert abs(ion["qeq"] - 1.0) > 0.05


@pytest.mark.parametrize("head", ["qeq", "phi-coulomb", "phi-coulomb learned", "local"])
def test_training_reaches_every_parameter(head, molecule, bulk):
    """Gradients of a loss on forces and charges, and they are those of finite differences."""
    model = make_model("painn", head, "float64").train()
    molecule.info["charge"] = 1

    def loss():
        output = evaluate(model, molecule[:4], bulk[:2])
        charges = (output[fields.CHARGES] ** 2).sum()
        return (output[fields.FORCES] ** 2).sum() + output[fields.ENERGY].sum() + charges

    loss().backward()
    step = 1e-5
    for name, parameter in model.potential.heads[0].named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        entry = parameter.detach().view(-1)
        place = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            entry[place] += sign * step
            values.append(float(loss().detach()))
            entry[place] -= sign * step
        numerical = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(numerical, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("head", ["phi-coulomb learned", "local"])
def test_learned_charges_learn_to_sum_to_the_total(head):
    """The auxiliary loss is the square of what is left to be shared out, and training ends it."""
    model = make_model("painn", head, "float64").train()
    hydroxide = Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], info={"charge": -1})
    water = build_molecule("H2O")
    part = model.potential.heads[0]
    base = part.charges if head == "local" else part.base_charges
    base.scalar.register_forward_hook(lambda module, given, value: values.append(value.detach()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        values: list[torch.Tensor] = []
        loss = evaluate(model, hydroxide, water)[fields.AUXILIARY_LOSS]
        alone = values[-1]
        expected = torch.stack([alone[:2].sum() + 1.0, alone[2:].sum()]).square()
        torch.testing.assert_close(loss.detach(), expected)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert losses[0][0] > 0.1  # hydroxide begins as if it were neutral
    assert losses[-1].max() < 1e-3


def test_auxiliary_losses_of_two_heads_add_up():
    """One asks for charges that sum to Q, the other for Poisson's equation; neither is lost."""
    heads = [LocalChargesConfig(), PhiSpectralConfig()]
    model = Potential(ModelConfig(heads=heads, cutoff=4.0, dtype="float64"), [1, 8]).train()
    ion = Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], info={"charge": -1})
    graph = graph_dict(collate([to_graph(ion, 4.0)]))
    model.heads[1].charges.constant.data.fill_(1.0)  # a net charge, to be complained of
    parts = []
    for head in model.heads:
        head.register_forward_hook(lambda *call: parts.append(call[-1][fields.AUXILIARY_LOSS]))
    both = model(graph)[fields.AUXILIARY_LOSS]
    assert len(parts) == 2 and min(float(part.detach()) for part in parts) > 0.1
    torch.testing.assert_close(both, parts[0] + parts[1])


def test_charges_have_the_sign_of_electronegativity():
    """An untrained model already knows that sodium gives and chlorine takes."""
    salt = Atoms("NaCl", [[0.0, 0.0, 0.0], [2.4, 0.0, 0.0]])
    for head in ("qeq", "phi-coulomb"):
        charges = evaluate(make_model("schnet", head, "float64"), salt)[fields.CHARGES]
        assert charges[0] > 0.05 and charges[1] < -0.05


def test_weights_are_symmetric_between_elements():
    """Both directions of an edge conduct alike, whatever the pair of elements."""
    torch.manual_seed(0)
    head = PhiCoulombHead(8, 1, [1, 8], 5.0, 2.0, 10.0, [0.0, 0.0], "formal", False)
    with torch.no_grad():
        head.log_conductance.normal_()
    vectors = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]).double()
    edge_index = torch.tensor([[1, 0], [0, 1]])
    weights = head.weights(torch.tensor([0, 1]), edge_index, vectors).detach()
    plain = edge_weights(torch.ones(1).double(), 5.0, 2.0)
    assert weights[0] == weights[1] and float(abs(weights[0] - plain)) > 0.01
