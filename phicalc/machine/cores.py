"""One task for many things, on all cores of this computer."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Thing = TypeVar("Thing")
Made = TypeVar("Made")

CHUNK = 32
"""Things sent to a process at a time."""


def available_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this operating system
        return os.cpu_count() or 1


def on_all_cores(
    task: Callable[[Thing], Made], things: Sequence[Thing], most: int
) -> Iterator[Made]:
    """What the task makes of each thing, in their order, some way ahead of who asks for it.

    Parameters
    ----------
    task
        Can be pickled; works on one thread.
    most
        Processes to use at most; fewer than two, or a computer of one core: it is all done here.

    Raises
    ------
    Exception
        What the task raises, at the first thing that it raises at.
    """
    number = min(most, available_cores())
    if number < 2:
        yield from map(task, things)
        return
    # unlike those of the standard library, its processes do not import the caller's main module
    from loky import ProcessPoolExecutor

    chunks = (things[start : start + CHUNK] for start in range(0, len(things), CHUNK))
    waiting: deque[tuple[Sequence[Thing], Future[list[Made]] | None]] = deque()
    with ProcessPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for chunk in chunks:
            try:
                waiting.append((chunk, pool.submit(_all_of, task, chunk)))
            except BrokenProcessPool:
                waiting.append((chunk, None))
            if len(waiting) > 2 * number:
                yield from _taken(task, *waiting.popleft())
        while waiting:
            yield from _taken(task, *waiting.popleft())


def _all_of(task: Callable[[Thing], Made], things: Sequence[Thing]) -> list[Made]:
    return list(map(task, things))


def _taken(
    task: Callable[[Thing], Made], things: Sequence[Thing], made: "Future[list[Made]] | None"
) -> list[Made]:
    """By another process or, where those were killed, as by lack of memory, here."""
    try:
        return _all_of(task, things) if made is None else made.result()
    except BrokenProcessPool:
        return _all_of(task, things)
