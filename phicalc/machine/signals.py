"""SIGINT and SIGTERM as a polite request to stop after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came within `StopRequest.interrupting`; no library's own handlers catch it."""


class StopRequest:
    """Set once a signal has come; `name` says which was the first, such as "SIGINT"."""

    name: str | None = None
    _interrupting = False

    def __bool__(self) -> bool:
        return self.name is not None

    def remember(self, name: str) -> None:
        """Set by a signal of this name.

        Raises
        ------
        Interrupted
            Within `interrupting`.
        """
        self.name = self.name or name
        if self._interrupting:
            self._interrupting = False
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within this context a signal acts at once: what is computed here may be lost.

        A single call of compiled code is not interrupted, but nothing comes after it.

        Raises
        ------
        Interrupted
            A signal came.
        """
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False


@contextmanager
def stop_on_signals(*, sigterm_repeats: bool = False) -> Iterator[StopRequest]:
    """Within this context the first SIGINT or SIGTERM only sets the request.

    A second one acts as usual, so that a hung step can be interrupted from the keyboard. Signals
    can be handled in the main thread only; in another they stay what they were, and nothing sets
    the request.

    Parameters
    ----------
    sigterm_repeats
        SIGTERM may come any number of times, and only a second signal that is SIGINT acts as
        usual: torchrun sends SIGTERM after a SIGINT that it shares with its processes, and once
        more to those that outlive one of them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    acting_again = (signal.SIGINT,) if sigterm_repeats else SIGNALS

    def remember(number: int, _: FrameType | None) -> None:
        for again in acting_again:
            signal.signal(again, former[again])
        request.remember(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
