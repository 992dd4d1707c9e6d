import torch
from torch import nn

from phicalc.train.ema import MovingAverage


def constant(value):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_average_follows_its_recurrence():
    module = constant(0.0)
    average = MovingAverage(module, decay=0.5)
    expected = 0.0
    for step, weight in enumerate([1.0, 2.0, -1.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], start=1):
        nn.init.constant_(module.weight, weight)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.averages[0].item(), expected, rtol=1e-6, atol=0)


def test_it_is_lent_to_the_module_and_taken_back_bit_for_bit():
    module = constant(0.1)
    average = MovingAverage(module, decay=0.9)
    nn.init.constant_(module.weight, 0.7)
    average.update()
    own, averaged = module.weight.detach().clone(), average.averages[0].clone()
    with average.applied():
        assert torch.equal(module.weight, averaged)
        assert not torch.equal(module.weight, own)
    assert torch.equal(module.weight, own)
    assert torch.equal(average.averages[0], averaged)


def test_decay_zero_is_no_average():
    module = constant(0.0)
    average = MovingAverage(module, decay=0.0)
    nn.init.constant_(module.weight, 3.0)
    average.update()
    assert average.averages[0].item() == 3.0


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert len(MovingAverage(module, 0.9).averages) == 1
