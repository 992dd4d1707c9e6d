"""The baseline heads: what makes them fair, and the limits where they must agree with others."""

import pytest
import torch
from ase.build import molecule as build_molecule

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.heads.edge_weights import RandomWeights
from phicalc.electrostatics.heads.phi_spectral import PhiSpectralHead, lowest_modes, occupations
from phicalc.model.config import ModelConfig, PhiConfig, PhiSpectralConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.train.config import LossConfig
from phicalc.train.distributed import Processes
from phicalc.train.objective import Objective

CUTOFF = 4.0


def random_laplacian(size, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, size, generator=generator, dtype=torch.float64) * scale
    weights = torch.triu(weights, 1)
    weights = weights + weights.T
    return torch.diag(weights.sum(1)) - weights


def all_real(laplacian):
    return torch.ones(laplacian.shape[:2], dtype=torch.bool)


def test_the_occupations_of_the_lowest_modes_sum_to_their_number():
    values = torch.sort(torch.rand(3, 20, dtype=torch.float64) * 4).values
    occupied, _ = occupations(values, values > -1, 6, 0.1)
    torch.testing.assert_close(occupied.sum(1), torch.full([3], 6.0, dtype=torch.float64))
    assert (occupied.diff(dim=1) <= 0).all()
    assert (occupations(values, values > -1, 20, 0.1)[0] == 1).all()


def test_with_a_gap_it_is_the_projector_on_the_lowest_eigenvectors():
    first, second = random_laplacian(4, 0, 0.1), random_laplacian(5, 1, 20.0)
    laplacian = torch.block_diag(first, second)[None]
    projector = lowest_modes(laplacian, all_real(laplacian), 5, 0.02)[0]
    _, vectors = torch.linalg.eigh(laplacian[0])
    expected = vectors[:, :5] @ vectors[:, :5].T
    torch.testing.assert_close(projector, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("degenerate", [False, True])
def test_the_derivative_of_the_projector_is_exact(degenerate):
    """By central differences, at a generic matrix and at one with all but one eigenvalue equal."""
    size, modes, width, step = 6, 3, 0.3, 1e-5
    laplacian = random_laplacian(size, 0)
    if degenerate:
        laplacian = torch.eye(size, dtype=torch.float64) - 1.0 / size
    change = random_laplacian(size, 5)
    weight = random_laplacian(size, 6)
    point = laplacian[None].clone().requires_grad_(True)
    (lowest_modes(point, all_real(point), modes, width)[0] * weight).sum().backward()
    found = float((point.grad[0] * change).sum())
    values = [
        (lowest_modes(m[None], all_real(m[None]), modes, width)[0] * weight).sum()
        for m in (laplacian + step * change, laplacian - step * change)
    ]
    assert abs(found) > 1e-2
    assert found == pytest.approx(float(values[0] - values[1]) / (2 * step), abs=1e-7)


def test_padding_changes_nothing():
    small, large = random_laplacian(4, 0), random_laplacian(7, 1)
    padded = torch.zeros(2, 7, 7, dtype=torch.float64)
    padded[0, :4, :4], padded[1] = small, large
    real = torch.zeros(2, 7, dtype=torch.bool)
    real[0, :4] = real[1] = True
    both = lowest_modes(padded, real, 3, 0.1)
    alone = lowest_modes(small[None], all_real(small[None]), 3, 0.1)[0]
    torch.testing.assert_close(both[0, :4, :4], alone, rtol=0, atol=1e-12)


def spectral_output(head, atoms):
    graph = graph_dict(collate([to_graph(a, CUTOFF) for a in atoms]))
    index = (graph[fields.SPECIES] == 8).long()
    torch.manual_seed(3)
    features = [torch.randn(len(index), 8) for _ in range(2)]
    with torch.no_grad():
        return head(features, index, graph)


def test_the_auxiliary_loss_is_poissons_equation_and_neutrality():
    """Written out by hand from a Laplacian made of distances."""
    head = PhiSpectralHead(8, 2, [1, 8], CUTOFF, 2.0, modes=3, width=0.1)
    water = build_molecule("H2O")
    output = spectral_output(head, [water])
    distances = torch.tensor(water.get_all_distances())
    x = distances / CUTOFF
    weights = (1 - 10 * x**3 + 15 * x**4 - 6 * x**5) * torch.exp(-((distances / 2.0) ** 2))
    weights.fill_diagonal_(0.0)
    laplacian = torch.diag(weights.sum(1)) - weights
    residual = laplacian @ output[fields.POTENTIAL] - output[fields.CHARGES]
    expected = (residual.square().sum() + output[fields.CHARGES].sum() ** 2) / 3
    assert float(output[fields.AUXILIARY_LOSS]) == pytest.approx(float(expected), rel=1e-10)
    assert float(expected) > 1e-3


def test_the_auxiliary_loss_enters_the_gradient_by_its_weight():
    config = ModelConfig(heads=[PhiSpectralConfig(modes=2)], cutoff=CUTOFF)
    water = to_graph(build_molecule("H2O"), CUTOFF)
    water[fields.ENERGY] = torch.zeros(1, dtype=torch.float64)
    gradients = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = Differentiated(Potential(config, [1, 8]))
        loss = LossConfig.model_validate({"weights": {"forces": 0}, "auxiliary": weight})
        Objective(model, loss, Processes(0, 1, torch.device("cpu"))).gradients([water], [0])
        gradients.append(model.potential.heads[0].charges.constant.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_random_weights_are_a_laplacians_and_know_no_bonds():
    elements = [1, 6, 8]
    head = RandomWeights(CUTOFF, elements, seed=0)
    distances = torch.linspace(0.5, CUTOFF, 50, dtype=torch.float64)
    carbon, oxygen = torch.full([50], 1), torch.full([50], 2)
    weights = head(distances, carbon, oxygen)
    assert torch.equal(weights, head(distances, oxygen, carbon))
    assert (weights[:-1] > 0).all() and float(weights[-1]) == 0.0
    torch.testing.assert_close(
        weights, RandomWeights(CUTOFF, [6, 8], seed=0)(distances, carbon - 1, oxygen - 1)
    )  # a pair's weights depend on no other element of the model
    assert not torch.allclose(weights, head(distances, carbon, carbon), rtol=0.1)
    assert not torch.allclose(
        weights, RandomWeights(CUTOFF, elements, 1)(distances, carbon, oxygen)
    )


def test_random_weights_cost_no_parameters():
    counts = [
        sum(
            p.numel()
            for p in Potential(ModelConfig(heads=[PhiConfig(weights=weights)]), [1, 8]).parameters()
        )
        for weights in ("distance", "random")
    ]
    assert counts[0] == counts[1]
