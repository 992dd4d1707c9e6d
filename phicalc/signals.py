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
    """Within this context SIGINT and SIGTERM only set the request.

    A second SIGINT acts as usual, so that a hung step can be interrupted from the keyboard.
    SIGTERM may come any number of times: torchrun sends it after a SIGINT that it shares with its
    processes. Signals can be handled in the main thread only; elsewhere nothing sets the request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def remember(number: int, _: FrameType | None) -> None:
        request.name = request.name or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
