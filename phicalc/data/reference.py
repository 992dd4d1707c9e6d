"""Per-element reference energies E⁰(Z) by least squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from phicalc.errors import DataError

RANK_TOLERANCE = 1e-8
"""Singular values below this fraction of the largest count as zero."""


@dataclass(frozen=True)
class ReferenceFit:
    """Reference energies and how well they describe the energies alone.

    Attributes
    ----------
    energies
        E⁰ in eV by atomic number.
    rank
        Number of independent combinations the compositions fix; below `len(energies)` only sums
        such as Na + Cl mean anything, and the energies of other compositions mean nothing.
    residual_mean, residual_rms, residual_max
        (E − Σ E⁰)/N over all structures in eV per atom; the largest by magnitude.
    """

    energies: dict[int, float]
    rank: int
    residual_mean: float
    residual_rms: float
    residual_max: float


def fit_reference_energies(species: Sequence[ArrayLike], energies: ArrayLike) -> ReferenceFit:
    """Least-squares reference energy of each element, weighing every atom's energy alike.

    Minimises Σ_s [(E_s − Σ_Z n_sZ E⁰_Z)/N_s]². Where the compositions leave directions free (Na
    and Cl always 1:1) the solution nearest to "all elements equal" is taken, so that a free sum
    is shared evenly.

    Parameters
    ----------
    species
        Atomic numbers of each structure.
    energies
        (S,) total energies in eV.

    Raises
    ------
    DataError
        No structures, an empty one, or energies that don't match or aren't finite.
    """
    totals = np.asarray(energies, dtype=np.float64)
    numbers = [np.asarray(one, dtype=np.int64) for one in species]
    if len(numbers) == 0 or totals.shape != (len(numbers),):
        raise DataError(
            f"expected one energy for each of at least one structure, "
            f"got {len(numbers)} structures and energies of shape {totals.shape}"
        )
    if not np.isfinite(totals).all() or min(one.size for one in numbers) == 0:
        raise DataError("expected finite energies of structures with atoms, got others")
    elements = np.unique(np.concatenate(numbers))
    counts = np.stack([(one[:, None] == elements).sum(axis=0) for one in numbers])
    sizes = counts.sum(axis=1)
    fractions = counts / sizes[:, None]
    per_atom = totals / sizes
    # the common part first: what is left is small, and its minimum norm is what we mean by "near"
    common = float(per_atom.mean())
    deviation, _, rank, _ = np.linalg.lstsq(fractions, per_atom - common, rcond=RANK_TOLERANCE)
    fitted = common + deviation
    residual = (totals - counts @ fitted) / sizes
    return ReferenceFit(
        energies={int(z): float(e) for z, e in zip(elements, fitted, strict=True)},
        rank=int(rank),
        residual_mean=float(residual.mean()),
        residual_rms=float(np.sqrt((residual * residual).mean())),
        residual_max=float(np.abs(residual).max()),
    )
