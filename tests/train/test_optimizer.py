import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from phicalc.train.config import AdamWConfig, SOAPConfig
from phicalc.train.optimizer import build_optimizer, decayed_parameters


class Net(nn.Module):
    physical = ("hardness",)

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.charge_embedding = nn.Parameter(torch.randn(3, 4))
        self.linear = nn.Linear(4, 4)
        self.filters = nn.Parameter(torch.randn(5, 4))
        self.screening = nn.Parameter(torch.tensor(0.1))
        self.hardness = nn.Parameter(torch.ones(3, 3))


def test_only_weight_matrices_decay():
    assert decayed_parameters(Net()) == {"linear.weight", "filters"}


@pytest.mark.parametrize("kind", [AdamWConfig, SOAPConfig])
def test_physical_parameters_go_at_their_own_pace(kind):
    net = Net()
    groups = build_optimizer(net, kind(physical_rate=10.0)).param_groups
    factors = {id(p): group["rate_factor"] for group in groups for p in group["params"]}
    assert [name for name, p in net.named_parameters() if factors[id(p)] == 10.0] == ["hardness"]


def test_a_step_without_gradient_shrinks_matrices_by_the_decay_alone():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, AdamWConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in ("linear.weight", "filters") else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def steps_of_soap(net, config, gradients):
    """Weights of a net after SOAP's steps with given gradients of every parameter."""
    optimizer = build_optimizer(net, config)
    for of_step in gradients:
        for name, parameter in net.named_parameters():
            parameter.grad = of_step[name].clone()
        optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def random_gradients(net, count):
    torch.manual_seed(1)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    return [{n: torch.randn(s).double() for n, s in shapes.items()} for _ in range(count)]


def adam(weight, gradients, rate, beta):
    """Adam's steps in the plainest form, bias-corrected, β₁ = β₂."""
    first = second = np.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        first, second = beta * first + (1 - beta) * g, beta * second + (1 - beta) * g * g
        part = 1 - beta**t
        weight = weight - rate * (first / part) / (np.sqrt(second / part) + 1e-8)
    return weight


def test_soap_is_adam_in_the_eigenbasis_of_each_matrix():
    """Steps with one basis, of a 4 × 4 and a 5 × 4 matrix, beside numpy's eigenvectors."""
    net = Net().double()
    before = {name: p.detach().clone().numpy() for name, p in net.named_parameters()}
    config = SOAPConfig(learning_rate=0.01, weight_decay=0.0, basis_steps=100)
    gradients = random_gradients(net, 6)
    after = steps_of_soap(net, config, gradients)
    for name in ("linear.weight", "filters"):
        g = [step[name].numpy() for step in gradients]  # the first sets the basis and moves nothing
        left, right = np.linalg.eigh(g[0] @ g[0].T)[1], np.linalg.eigh(g[0].T @ g[0])[1]
        turned = [left.T @ one @ right for one in g[1:]]
        found = left @ adam(left.T @ before[name] @ right, turned, 0.01, 0.95) @ right.T
        assert_allclose(after[name].numpy(), found, atol=1e-6)


def test_soap_leaves_physical_parameters_and_biases_to_adam():
    """Entries of a symmetric table keep apart: none of them moves for another's gradient."""
    net = Net().double()
    before = {name: p.detach().clone().numpy() for name, p in net.named_parameters()}
    gradients = random_gradients(net, 25)
    after = steps_of_soap(net, SOAPConfig(learning_rate=0.01, basis_steps=3), gradients)
    for name in ("hardness", "linear.bias", "screening"):
        found = adam(before[name], [step[name].numpy() for step in gradients[1:]], 0.01, 0.95)
        assert_allclose(after[name].numpy(), found, rtol=1e-7, atol=1e-9)


def test_soap_takes_a_parameter_that_no_loss_reaches():
    net = Net()
    gradients = [{n: torch.zeros_like(p) for n, p in net.named_parameters()} for _ in range(5)]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    after = steps_of_soap(net, SOAPConfig(weight_decay=0.0, basis_steps=2), gradients)
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name


def test_every_parameter_of_a_potential_is_trained_once(config):
    from phicalc.model.potential import Potential

    potential = Potential(config.model, [29, 79])
    groups = build_optimizer(potential, config.optimizer).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in potential.parameters())
    decayed = decayed_parameters(potential)
    assert "backbone.embedding.weight" not in decayed
    assert not any("mu" in name or "strength" in name for name in decayed)
    assert "readout.0.weight" in decayed
