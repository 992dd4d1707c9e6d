"""SIGINT and SIGTERM as a polite request to stop after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set once a signal has come; `name` says which was the first, such as "SIGINT"."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


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
        request.name = request.name or signal.Signals(number).name
        for again in acting_again:
            signal.signal(again, former[again])

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
