"""The person at the terminal: a progress bar with time left."""

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
