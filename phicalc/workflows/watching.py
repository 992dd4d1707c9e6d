"""The person at the terminal: a progress bar with time left, and signals that ask to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """A progress bar on standard error; silent unless asked for.

    Parameters
    ----------
    total
        Steps at the end.
    title
        What is done.
    visible
        Whether to draw anything.
    """

    def __init__(self, total: int, title: str, visible: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._progress.add_task(title, total=total, note="")

    def show(self, completed: int, note: str = "") -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=completed, note=note)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a wish to stop; the second one acts as usual.

    Outside of the main thread signals stay what they were. `received` is the signal's name.
    """

    received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
