"""How often iterations are looked at: after each one on a CPU, after a few on other devices.

To look at a residual a CPU waits for all that a GPU has been given, which then idles until there
is more. Between looks the numbers of an iteration stay where they are, and once the goal is
reached steps have length 0: the solution is that of a look after each.
"""

import math
from typing import List, NamedTuple

import torch
from torch import Tensor

LOOK_EVERY: int = 4
"""Iterations between two looks elsewhere than on a CPU; chosen for iterations of 100 µs."""


class Seen(NamedTuple):
    """What a look shows."""

    square: float  # squared residual
    norm: float  # squared size of what it is relative to
    iterations: int  # that changed anything


def unseen() -> Seen:
    """Before the first look: there is all to do."""
    return Seen(math.inf, 0.0, 0)


def look(square: Tensor, norm: Tensor, iterations: Tensor) -> Seen:
    """At three numbers (), in one transfer."""
    numbers: List[float] = torch.stack([square, norm, iterations]).cpu().tolist()
    return Seen(numbers[0], numbers[1], int(numbers[2]))


def iterations_between_looks(where: Tensor, elsewhere: int = LOOK_EVERY) -> int:
    """As many as suit a tensor's device."""
    return 1 if where.device.type == "cpu" else elsewhere


def quotient(numerator: Tensor, denominator: Tensor, going: Tensor) -> Tensor:
    """A step length () while iterations go on, then 0, whatever it is of."""
    return torch.where(going, numerator / denominator, 0.0)


def plus(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """x + factor·y of vectors (N,) and a number () that is not brought to the CPU."""
    if factor.device.type == "cpu":
        return torch.add(x, y, alpha=float(factor))
    return torch.addcmul(x, y, factor)
