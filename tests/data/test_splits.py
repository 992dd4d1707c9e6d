"""Splits: disjoint, complete, and the same tomorrow."""

import numpy as np
import pytest

from phicalc.data.splits import split
from phicalc.errors import DataError


def test_parts_are_disjoint_and_of_the_size_asked_for() -> None:
    train, valid, test = split(100, (70, 0.2, 5), seed=3)
    assert [len(part) for part in (train, valid, test)] == [70, 20, 5]
    together = np.concatenate([train, valid, test])
    assert len(np.unique(together)) == 95
    assert together.min() >= 0
    assert together.max() < 100
    assert (np.sort(train) == train).all()


@pytest.mark.parametrize("number", [3, 7, 10, 101, 999])
def test_fractions_that_sum_to_one_lose_no_frame(number: int) -> None:
    parts = split(number, (1 / 3, 1 / 3, 1 / 3), seed=0)
    assert sorted(np.concatenate(parts)) == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_deterministic_by_seed() -> None:
    one, same, other = (split(50, (0.8, 0.2), seed=seed)[1] for seed in (7, 7, 8))
    assert (one == same).all()
    assert not (one == other).all()
    # fixed for good: a new version of anything must not move a frame from train to valid
    assert split(10, (6, 4), seed=0)[1].tolist() == [0, 3, 5, 7]


def test_another_seed_of_randomness_does_not_matter() -> None:
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    split(50, (25, 25), seed=7)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


@pytest.mark.parametrize(
    "number, parts, seed, words",
    [
        (10, (8, 3), 0, "expected parts of at most 10 frames together, got 11"),
        (10, (0.8, 3), 0, "at most 10 frames together, got 11"),
        (10, (0.8, 0.3), 0, "at most 10 frames together, got 11"),
        (10, (0, 5), 0, "at least one frame in each part, got 0 for 0"),
        (10, (-2, 5), 0, "at least one frame in each part, got -2"),
        (10, (0.99, 0.01), 0, "at least one frame in each part, got 0 for 0.01"),
        (10, (1.5,), 0, "expected fractions above 0 and up to 1, got 1.5"),
        (10, (float("nan"),), 0, "expected fractions above 0 and up to 1, got nan"),
        (10, (), 0, "expected frames and parts to split"),
        (0, (1,), 0, "expected frames and parts to split, got 0 frames"),
        (10, (5,), -1, "expected a seed of 0 or more, got -1"),
    ],
)
def test_errors(number: int, parts: tuple[float, ...], seed: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split(number, parts, seed)
