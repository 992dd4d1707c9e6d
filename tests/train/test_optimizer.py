import torch
from torch import nn

from phicalc.train.config import OptimizerConfig
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


def test_physical_parameters_go_at_their_own_pace():
    net = Net()
    groups = build_optimizer(net, OptimizerConfig(physical_rate=10.0)).param_groups
    factors = {id(p): group["rate_factor"] for group in groups for p in group["params"]}
    assert [name for name, p in net.named_parameters() if factors[id(p)] == 10.0] == ["hardness"]


def test_a_step_without_gradient_shrinks_matrices_by_the_decay_alone():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in ("linear.weight", "filters") else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


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
