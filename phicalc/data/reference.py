"""Per-element reference energies E⁰(Z): given, of isolated atoms, or by least squares."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from phicalc.data.read import labels_of
from phicalc.errors import DataError

RANK_TOLERANCE = 1e-8
"""Singular values below this fraction of the largest count as zero."""

OPEN_SHARE = 1e-6
"""An element with more than this in a direction that the compositions leave free is open."""

HUBER = 1.345
"""Robust standard deviations beyond which a deviation pulls linearly (10.1214/aoms/1177703732)."""

ROBUST_ROUNDS = 50


@dataclass(frozen=True)
class ReferenceFit:
    """Reference energies and how well they describe the energies alone.

    Attributes
    ----------
    energies
        E⁰ in eV by atomic number.
    rank
        Number of independent combinations the compositions fix, with the energies that were
        given; below `len(energies)` only sums such as Na + Cl mean anything, and the energies of
        other compositions mean nothing.
    residual_mean, residual_rms, residual_max
        (E − Σ E⁰)/N over all structures in eV per atom; the largest by magnitude.
    open
        Elements, of those that were not given, of which the compositions fix no energy.
    given
        Elements whose energies were given.
    """

    energies: dict[int, float]
    rank: int
    residual_mean: float
    residual_rms: float
    residual_max: float
    open: tuple[int, ...] = ()
    given: tuple[int, ...] = ()


def fit_reference_energies(
    species: Sequence[ArrayLike],
    energies: ArrayLike,
    given: Mapping[int, float] | None = None,
    elements: Collection[int] = (),
) -> ReferenceFit:
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
    given
        E⁰ in eV by atomic number of elements that are not to be fitted.
    elements
        Further elements, whose energies are left at the common part.

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
    known = dict(given or {})
    present = set(np.concatenate(numbers).tolist()) | set(elements)
    free = np.array(sorted(present - set(known)), dtype=np.int64)
    fixed = np.array(sorted(present & set(known)), dtype=np.int64)
    sizes = np.array([one.size for one in numbers])
    fractions = _counts(numbers, free) / sizes[:, None]
    per_atom = totals / sizes
    if fixed.size:
        per_atom = per_atom - _counts(numbers, fixed) / sizes[:, None] @ [known[z] for z in fixed]
    # the common part first: what is left is small, and its minimum norm is what we mean by "near"
    share = fractions.sum(axis=1)
    common = float(per_atom.mean()) if not fixed.size else _slope(share, per_atom)
    deviation, _, rank, _ = np.linalg.lstsq(
        fractions, per_atom - common * share, rcond=RANK_TOLERANCE
    )
    residual = per_atom - fractions @ (common + deviation)
    fitted = {int(z): float(common + d) for z, d in zip(free, deviation, strict=True)}
    return ReferenceFit(
        energies=dict(sorted((fitted | {int(z): float(known[z]) for z in fixed}).items())),
        rank=int(rank) + len(fixed),
        residual_mean=float(residual.mean()),
        residual_rms=float(np.sqrt((residual * residual).mean())),
        residual_max=float(np.abs(residual).max()),
        open=_open(fractions, free, int(rank)),
        given=tuple(int(z) for z in fixed),
    )


def robust_shifts(
    species: Sequence[ArrayLike], deviations: ArrayLike, elements: Collection[int]
) -> dict[int, float]:
    """Shift of each element's reference energy that best explains what a model is off by.

    As :func:`fit_reference_energies`, but nearest to no shift where compositions leave it open,
    and by Huber's loss: a model may be far off in a few structures.

    Parameters
    ----------
    species
        Atomic numbers of each structure.
    deviations
        (S,) reference minus predicted total energies in eV.
    elements
        Those that may be shifted.

    Returns
    -------
    dict
        Shift in eV by atomic number.
    """
    numbers = [np.asarray(one, dtype=np.int64) for one in species]
    free = np.array(sorted(elements), dtype=np.int64)
    sizes = np.array([one.size for one in numbers])
    fractions = _counts(numbers, free) / sizes[:, None]
    target = np.asarray(deviations, dtype=np.float64) / sizes
    weights = np.ones(len(sizes))
    for _ in range(ROBUST_ROUNDS):
        root = np.sqrt(weights)
        shifts = np.linalg.lstsq(root[:, None] * fractions, root * target, rcond=RANK_TOLERANCE)[0]
        residual = np.abs(target - fractions @ shifts)
        reach = HUBER * 1.4826 * float(np.median(residual))
        if reach <= 1e-12:
            break
        weights = np.minimum(1.0, reach / np.maximum(residual, reach))
    return {int(z): float(shift) for z, shift in zip(free, shifts, strict=True)}


def isolated_energies(frames: Sequence[Atoms]) -> dict[int, float]:
    """Energy in eV of each element that a frame of a single neutral atom gives.

    Such a frame is not periodic, or says ``config_type=IsolatedAtom`` (the convention of MACE and
    GAP; the atom then has a box). Of several of one element the lowest counts.
    """
    found: dict[int, float] = {}
    for atoms in frames:
        if len(atoms) != 1:
            continue
        marked = str(atoms.info.get("config_type", "")).lower() == "isolatedatom"
        labels = labels_of(atoms, ["energy"])
        if labels.energy is None or labels.total_charge != 0.0 or (atoms.pbc.any() and not marked):
            continue
        number = int(atoms.numbers[0])
        found[number] = min(labels.energy, found.get(number, np.inf))
    return found


def _counts(numbers: Sequence[NDArray[np.int64]], elements: NDArray[np.int64]) -> NDArray[np.int64]:
    """(S, Z) atoms of each element in each structure."""
    return np.stack([(one[:, None] == elements).sum(axis=0) for one in numbers])


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    square = float(x @ x)
    return float(x @ y) / square if square > 0.0 else 0.0


def _open(
    fractions: NDArray[np.float64], elements: NDArray[np.int64], rank: int
) -> tuple[int, ...]:
    """Elements that take part in a direction which the compositions leave free."""
    if rank == len(elements):
        return ()
    rows = np.linalg.svd(np.linalg.qr(fractions, mode="r"))[2][rank:]
    return tuple(int(z) for z in elements[np.abs(rows).max(axis=0) > OPEN_SHARE])
