"""What goes to a device and comes back from it: once per step, and not what is there already."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.solvers.charges import check_converged

PER_EDGE = (fields.LAPLACIAN_WEIGHTS,)
"""Outputs that stay on the device: they are the largest, and seldom asked for."""


class Sent:
    """Arrays on a device, each sent anew only when it has changed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: dict[str, tuple[NDArray[np.generic], Tensor]] = {}

    def __call__(self, name: str, array: NDArray[np.generic]) -> Tensor:
        """The array of this name on the device; nobody may change it there."""
        last = self._last.get(name)
        if last is None or not np.array_equal(last[0], array):
            kept = array.copy()
            last = self._last[name] = (kept, torch.from_numpy(kept.copy()).to(self.device))
        return last[1]


def brought_back(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's outputs on the CPU, in one transfer; those per edge stay where they are.

    Raises
    ------
    ConvergenceError
        A solve ended far from its goal. Files of before heads judged their own only report it.
    """
    waiting = {
        name: value
        for name, value in outputs.items()
        if value.device.type != "cpu" and name not in PER_EDGE
    }
    found = dict(outputs)
    if waiting:
        together = torch.cat([value.reshape(-1).double() for value in waiting.values()]).cpu()
        parts = together.split([value.numel() for value in waiting.values()])
        for (name, value), part in zip(waiting.items(), parts, strict=True):
            found[name] = part.view(value.shape).to(value.dtype)
    for residual in (fields.SOLVER_RESIDUAL, fields.CHARGE_RESIDUAL):
        if residual in found:
            check_converged(float(found[residual].max()))
    return found
