"""Learning-rate schedules."""

import math
from typing import Any

from phicalc.train.config import CosineConfig, PlateauConfig


def warmup_fraction(step: int, warmup_steps: int) -> float:
    """Linear rise: 1/(n+1) at step 0, 1 from step n on, so no step is wasted at rate zero."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def cosine_fraction(step: int, total_steps: int, config: CosineConfig) -> float:
    """Share of the peak learning rate at ``step`` (0-based) of a warm-up and cosine schedule.

    Past ``total_steps`` it stays at ``final_fraction``.
    """
    if step < config.warmup_steps:
        return warmup_fraction(step, config.warmup_steps)
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    falling = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_fraction + (1.0 - config.final_fraction) * falling


class Schedule:
    """The learning rate as a share of its peak; only the plateau has anything to remember."""

    def __init__(self, config: CosineConfig | PlateauConfig, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps
        self.cut = 1.0
        self.best = math.inf
        self.stale = 0

    def fraction(self, step: int) -> float:
        """Share of the peak rate for optimiser step ``step`` (0-based)."""
        if isinstance(self.config, CosineConfig):
            return cosine_fraction(step, self.total_steps, self.config)
        return self.cut * warmup_fraction(step, self.config.warmup_steps)

    def validated(self, loss: float) -> None:
        """Tell a plateau schedule the loss of a validation; a cosine takes no notice."""
        if isinstance(self.config, CosineConfig):
            return
        if loss < self.best * (1.0 - self.config.threshold):
            self.best, self.stale = loss, 0
            return
        self.stale += 1
        if self.stale > self.config.patience:
            self.cut, self.stale = self.cut * self.config.factor, 0

    def forget(self) -> None:
        """Losses are measured anew: the next is the best so far; cuts that were made stay."""
        self.best, self.stale = math.inf, 0

    @property
    def exhausted(self) -> bool:
        """True once a plateau schedule has been cut below its final fraction."""
        return isinstance(self.config, PlateauConfig) and self.cut < self.config.final_fraction

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"cut": self.cut, "best": self.best, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the numbers that :meth:`state_dict` gave."""
        self.cut, self.best, self.stale = state["cut"], state["best"], state["stale"]
