"""Deterministic splits of a data set."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phicalc.errors import DataError


def split(number: int, parts: Sequence[int | float], seed: int) -> list[NDArray[np.int64]]:
    """Disjoint random subsets of 0 … number − 1, the same for the same arguments anywhere.

    Parameters
    ----------
    number
        Size of the data set.
    parts
        Sizes of the subsets: an int counts frames, a float is a fraction of `number`. Fractions
        that sum to 1 leave nothing out.
    seed
        Non-negative; another seed gives another split.

    Returns
    -------
    One sorted array of indices for each part.

    Raises
    ------
    DataError
        Parts that are negative, empty, or together larger than the data set.
    """
    sizes = _sizes(number, parts)
    if seed < 0:
        raise DataError(f"expected a seed of 0 or more, got {seed}")
    # RandomState, not default_rng: NumPy promises never to change its stream
    order = np.random.RandomState(seed).permutation(number).astype(np.int64)
    ends = np.cumsum(sizes)
    return [np.sort(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _sizes(number: int, parts: Sequence[int | float]) -> list[int]:
    """Frames of each part; fractions are rounded by their running sum so none gets lost."""
    if number < 1 or not parts:
        raise DataError(f"expected frames and parts to split, got {number} frames, parts {parts}")
    sizes, fraction, taken = [], 0.0, 0
    for part in parts:
        if isinstance(part, float):
            if not 0.0 < part <= 1.0:
                raise DataError(f"expected fractions above 0 and up to 1, got {part}")
            fraction += part
            size = round(fraction * number) - taken
            taken += size
        else:
            size = int(part)
        if size < 1:
            raise DataError(f"expected at least one frame in each part, got {size} for {part!r}")
        sizes.append(size)
    if sum(sizes) > number:
        raise DataError(
            f"expected parts of at most {number} frames together, got {sum(sizes)} ({parts}); "
            "make a part smaller"
        )
    return sizes
