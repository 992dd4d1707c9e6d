"""What several models say together: their mean, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicalc.serving.result import Result

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Consensus:
    """Mean over the members for one structure of N atoms, and their spread.

    Attributes
    ----------
    mean
        Of what all members give. A member without one of the energy's terms counts as 0 in it.
    energy_spread
        Standard deviation of the members' energies | eV; 0 for a single one.
    forces_spread
        (N,) root mean square of |F_i − mean F_i| | eV/Å; zeros for a single one.
    """

    mean: Result
    energy_spread: float
    forces_spread: Array


def consensus(results: Sequence[Result]) -> Consensus:
    """Of one result per model, all of one structure."""
    names = ("energy", "energies", "forces", "stress", "charges", "dipole", "potential")
    means = {name: _mean([getattr(result, name) for result in results]) for name in names}
    terms = {name: 0.0 for result in results for name in result.energy_terms}
    for result in results:
        for name, value in result.energy_terms.items():
            terms[name] += value / len(results)
    deviations = np.stack([result.forces for result in results]) - means["forces"]
    return Consensus(
        Result(**{**means, "energy": float(means["energy"])}, energy_terms=terms),
        float(np.std([result.energy for result in results])),
        np.sqrt((deviations**2).sum(axis=2).mean(axis=0)),
    )


def _mean(values: Sequence[Any]) -> Any:
    """None where one of the members has none."""
    if any(value is None for value in values):
        return None
    return values[0] if len(values) == 1 else np.mean(np.stack(values), axis=0)
