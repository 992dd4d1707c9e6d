"""The cutoff functions that every smooth ending in the model is made of."""

import torch
from torch import Tensor


def polynomial_envelope(x: Tensor) -> Tensor:
    """Smooth step from 1 at x = 0 to 0 at x = 1: 1 − 10x³ + 15x⁴ − 6x⁵.

    First and second derivatives vanish at both ends, so energies that end with it have
    continuous forces and Hessians. Evaluated as (1 − x)³ (1 + 3x + 6x²), which is the same
    polynomial but never negative, however it is rounded.

    Parameters
    ----------
    x
        Any shape, distance over cutoff; values above 1 give exactly 0, with zero gradient.
    """
    inside = torch.clamp(x, max=1.0)
    rest = 1.0 - inside
    return rest * rest * rest * (1.0 + inside * (3.0 + 6.0 * inside))


def steep_envelope(x: Tensor) -> Tensor:
    """The same with four derivatives that vanish at both ends, for energies of many eV.

    An integrator meets the jump in a derivative whenever an atom crosses it; where bonds do so at
    every vibration, a jump in the third shows up as a random walk of the conserved energy.
    Evaluated as (1 − x)⁵ (1 + 5x + 15x² + 35x³ + 70x⁴).
    """
    inside = torch.clamp(x, max=1.0)
    rest = 1.0 - inside
    square = rest * rest
    series = 1.0 + inside * (5.0 + inside * (15.0 + inside * (35.0 + 70.0 * inside)))
    return square * square * rest * series
