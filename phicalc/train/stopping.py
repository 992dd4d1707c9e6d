"""SIGINT and SIGTERM as a polite request to stop after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set once a signal has come; ``name`` says which."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within this context the first SIGINT or SIGTERM only sets the request.

    A second one acts as usual, so a hung step can still be killed. Signals can be handled in the
    main thread only; elsewhere the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def remember(number: int, _: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        restore()

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()
