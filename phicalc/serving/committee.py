"""What several models say together: their mean, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields

Array = NDArray[np.float64]

_TERM = "energy_"  # prefix of the model's outputs that add up to the energy

_AVERAGED = {
    fields.ENERGY, fields.ENERGIES, fields.FORCES, fields.STRESS, fields.CHARGES, fields.DIPOLE,
    fields.POTENTIAL,
}  # fmt: skip


@dataclass(frozen=True)
class Consensus:
    """Mean over the members for one structure of N atoms, and their spread.

    Attributes
    ----------
    mean
        What all members give, by the names of :mod:`phicalc.fields`, in their units.
    energy_terms
        Mean of each term of the energy | eV; they add up to it. A member without it counts as 0.
    energy_spread
        Standard deviation of the members' energies | eV; 0 for a single one.
    forces_spread
        (N,) root mean square of |F_i − mean F_i| | eV/Å; zeros for a single one.
    """

    mean: dict[str, Array]
    energy_terms: dict[str, float]
    energy_spread: float
    forces_spread: Array

    def results(self, pbc: NDArray[np.bool_]) -> dict[str, Any]:
        """The means by ASE's names, in its units: all that the periodicity (3,) allows."""
        mean = self.mean
        energy = float(mean[fields.ENERGY][0])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": mean[fields.ENERGIES],
            "forces": mean[fields.FORCES],
        }
        if pbc.all():
            results["stress"] = full_3x3_to_voigt_6_stress(mean[fields.STRESS][0])
        if fields.CHARGES in mean:
            results["charges"] = mean[fields.CHARGES]
        if fields.DIPOLE in mean and not pbc.any():
            results["dipole"] = mean[fields.DIPOLE][0]
        return results


def consensus(outputs: Sequence[dict[str, Tensor]]) -> Consensus:
    """Of one output per model, each a batch of the one structure."""
    shared = [n for n in outputs[0] if n in _AVERAGED and all(n in o for o in outputs)]
    mean = {name: _mean([output[name] for output in outputs]) for name in shared}
    terms = {name: 0.0 for output in outputs for name in output if name.startswith(_TERM)}
    for output in outputs:
        for name in terms.keys() & output.keys():
            terms[name] += float(output[name][0]) / len(outputs)
    forces = np.stack([output[fields.FORCES].numpy() for output in outputs])
    deviations = forces - mean[fields.FORCES]
    return Consensus(
        mean,
        {name.removeprefix(_TERM): value for name, value in terms.items()},
        float(np.std([float(output[fields.ENERGY][0]) for output in outputs])),
        np.sqrt((deviations**2).sum(axis=2).mean(axis=0)),
    )


def _mean(values: Sequence[Tensor]) -> Array:
    mean: Array = (values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)).numpy()
    return mean
