"""What holds one structure at a time serves one thread at a time."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from phicalc.errors import UnsupportedError

REMEDY = "give each thread its own: copy.deepcopy(calculator), or PhiCalculator(...) of one model"


class OneThread:
    """Lets one thread in at a time and refuses others, instead of mixing up their structures.

    One thread after another is fine, for as long as none reads what another has replaced.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside: list[int] = []
        self._structure: weakref.ref[object] | None = None
        self._owners: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._replaced: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a thread is at work; it may enter again.

        Raises
        ------
        UnsupportedError
            Another thread is at work.
        """
        if not self._lock.acquire(blocking=False):
            raise UnsupportedError(
                "expected one thread at a time, got a second one while the first computes; "
                + REMEDY
            )
        self._inside.append(threading.get_ident())
        try:
            yield
        finally:
            self._inside.pop()
            self._lock.release()

    @property
    def at_work(self) -> bool:
        """Whether the calling thread is the one inside."""
        return threading.get_ident() in self._inside

    def calculated(self, structure: object | None) -> None:
        """What is held from now on is the calling thread's; what others had is gone.

        Parameters
        ----------
        structure
            The caller's own object. Threads that have all calculated this one, one after another,
            take nothing from each other. None: the structure that is held already.
        """
        thread = threading.current_thread()
        before = None if self._structure is None else self._structure()
        if structure is not None and structure is not before:
            self._replaced |= self._owners
            self._owners.clear()
            self._structure = weakref.ref(structure)
        self._owners.add(thread)
        self._replaced.discard(thread)

    def check_reading(self) -> None:
        """What is held is no other thread's result in place of the calling thread's own.

        Raises
        ------
        UnsupportedError
            It is.
        """
        if threading.current_thread() in self._replaced:
            raise UnsupportedError(
                "expected the results of this thread's structure, got those of another thread, "
                f"which has calculated since; {REMEDY}"
            )


class OneThreadCalculator(Calculator):
    """A calculator of ASE's whose getters and results refuse what threads would mix up."""

    def __init__(self) -> None:
        self._thread = OneThread()
        super().__init__()

    @property
    def results(self) -> dict[str, Any]:
        """Results of the last structure by ASE's names.

        Raises
        ------
        UnsupportedError
            Another thread has calculated since this one did.
        """
        if not self._thread.at_work:
            self._thread.check_reading()
        return self._results

    @results.setter
    def results(self, results: dict[str, Any]) -> None:
        self._results = results

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """One property of a structure, by default the last one; what all of ASE's getters call.

        Raises
        ------
        UnsupportedError
            Another thread is at work with this calculator.
        """
        with self._thread.working():
            if atoms is None:
                self._thread.check_reading()
            return super().get_property(name, atoms, allow_calculation)
