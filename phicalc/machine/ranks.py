"""One structure on several MPI ranks: gathered on the first, what comes of it scattered again."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from phicalc.errors import PhicalcError

Array = NDArray[np.float64]
Value = TypeVar("Value")

_PAUSE = 50e-6  # s, between two looks of a rank that waits: it leaves its core to the first one


class Ranks:
    """Ranks that do the same in the same order; by default there is only the first.

    Parameters
    ----------
    communicator
        mpi4py's; None for a single rank.
    """

    def __init__(self, communicator: Any = None) -> None:
        self._communicator = communicator
        self.first = communicator is None or communicator.rank == 0
        self._counts: list[int] = []

    def gather(self, rows: Array) -> Array | None:
        """Rows (n, k) of every rank, one below the other, on the first; None on the others."""
        if self._communicator is None:
            return rows
        counts = self._communicator.gather(len(rows))
        if counts is None:
            self._communicator.Gatherv(rows, None)
            return None
        self._counts = counts
        columns = rows.shape[1]
        gathered = np.empty((sum(counts), columns))
        self._communicator.Gatherv(rows, [gathered, [count * columns for count in counts]])
        return gathered

    def scatter(self, rows: Array | None, shape: tuple[int, int]) -> Array:
        """To every rank its part, of this shape, of rows as `gather` has put them together."""
        if self._communicator is None:
            assert rows is not None
            return rows
        own = np.empty(shape)
        sent = None
        if rows is not None:
            sent = [np.ascontiguousarray(rows), [count * shape[1] for count in self._counts]]
        self._communicator.Scatterv(sent, own)
        return own

    def on_first(self, compute: Callable[[], Value]) -> Value | None:
        """What a function returns on the first rank, None on the others.

        Raises
        ------
        Exception
            What it raises, on every rank: there it is a PhicalcError of the same words.
        """
        if self._communicator is None:
            return compute()
        value: Value | None = None
        mistake: BaseException | None = None
        if self.first:
            try:
                value = compute()
            except BaseException as error:
                mistake = error
        self._wait()
        told = self._communicator.bcast(None if mistake is None else _portable(mistake))
        if mistake is not None:
            raise mistake
        if told is not None:
            raise told
        return value

    def share(self, value: Value) -> Value:
        """The first rank's value, on every rank."""
        if self._communicator is None:
            return value
        shared: Value = self._communicator.bcast(value)
        return shared

    def _wait(self) -> None:
        """For the first rank, without the busy loop in which MPI libraries wait."""
        request = self._communicator.Ibarrier()
        while True:
            try:
                while not request.Test():
                    time.sleep(_PAUSE)
                return
            except KeyboardInterrupt:  # Ctrl-C goes to all ranks, and the first one tells of it
                pass


def _portable(error: BaseException) -> PhicalcError:
    """An error that can be sent to another rank."""
    if isinstance(error, PhicalcError):
        return error
    return PhicalcError(str(error) or type(error).__name__)
