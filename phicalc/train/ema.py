"""Exponential moving average of the weights.

Why not torch's `AveragedModel`: it keeps a second copy of the whole network to evaluate; here the
averages trade places with the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """A running average of a module's trainable parameters.

    After step t the average moves by ``1 − min(decay, (1 + t)/(10 + t))``: while the run is young
    the average is short, so the first validations do not look at the initial weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after an optimiser step."""
        self.steps += 1
        decay = min(self.decay, (1.0 + self.steps) / (10.0 + self.steps))
        if self.decay == 0.0:
            decay = 0.0
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the module bears the averaged weights; afterwards its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            own = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, int | list[Tensor]]:
        """Tensors and plain numbers for the checkpoint."""
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: dict[str, int | list[Tensor]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        assert isinstance(state["steps"], int) and isinstance(state["averages"], list)
        self.steps = state["steps"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
