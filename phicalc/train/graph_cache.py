"""Graphs of a file of structures, kept from one run to the next.

A run whose structures, cutoff and labels are those of an earlier one maps the graphs that one has
made, and so do processes of one run on one computer: the first makes them, the others wait.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import phicalc
from phicalc.data.graph_file import GraphFile, Record, write_graphs
from phicalc.errors import DataError, OutputError
from phicalc.machine.files import replacing

KEPT_BYTES = 20 * 2**30
"""Beyond this the graphs that were not used for longest are removed."""

_MEANING = 1  # raised when the same structures are read, checked or made into graphs in another way


@dataclass(frozen=True)
class GraphSource:
    """What graphs are made of, and how.

    Attributes
    ----------
    path
        File of structures.
    identity
        All that they depend on, as JSON can hold it.
    read
        Gives the structures, checked, with their labels.
    make
        From structures to graphs, one by one; adds to the notes that are kept beside them.
    """

    path: Path
    identity: dict[str, Any]
    read: Callable[[], list[Any]]
    make: Callable[[list[Any], dict[str, Any]], Iterator[Record]]


def cache_folder() -> Path:
    """Where graphs are kept: `phicalc/graphs` in XDG_CACHE_HOME, by default in `~/.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "phicalc" / "graphs"


def graphs_from(source: GraphSource, keep: bool) -> tuple[GraphFile, str]:
    """Graphs of a source and a line on where they come from.

    Parameters
    ----------
    keep
        Take and leave them in the cache; else they are in a nameless temporary file.

    Raises
    ------
    DataError
        The structures can't be trained on.
    OutputError
        No room for the graphs, neither in the cache nor among temporary files.
    """
    if not keep:
        return _temporary(source, "")
    identity = {**source.identity, "phicalc": phicalc.__version__, "meaning": _MEANING}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    place = cache_folder() / f"{name}.graphs"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.with_suffix(".lock")):
            return _kept(source, place)
    except (OSError, OutputError) as error:
        return _temporary(source, f" (not kept: {error})")


def _kept(source: GraphSource, place: Path) -> tuple[GraphFile, str]:
    """Graphs of the cache, made where they are not there or not sound."""
    begin = time.monotonic()
    remark = ""
    if place.exists():
        try:
            with place.open("rb") as stream:
                graphs = GraphFile(stream)
            graphs.check()
            os.utime(place)
        except DataError:
            remark = " anew, as those kept were damaged,"
        else:
            return graphs, (
                f"{source.path.name}: graphs of {len(graphs)} structures taken from {place} in "
                f"{time.monotonic() - begin:.1f} s"
            )
    frames = source.read()
    middle = time.monotonic()
    with replacing(place) as new, new.open("wb") as stream:
        _write(source, frames, stream)
    with place.open("rb") as stream:
        graphs = GraphFile(stream)
    _remove_oldest(place)
    return graphs, f"{_made(source, frames, begin, middle, remark)} and kept in {place}"


def _temporary(source: GraphSource, remark: str) -> tuple[GraphFile, str]:
    begin = time.monotonic()
    frames = source.read()
    middle = time.monotonic()
    try:
        with tempfile.TemporaryFile(prefix="phicalc-") as stream:
            _write(source, frames, stream)
            graphs = GraphFile(stream)
    except OSError as error:
        raise OutputError(
            f"expected room for the graphs of {source.path} among temporary files, got "
            f"{error.strerror or error}; make room, or set TMPDIR to a larger disk"
        ) from error
    return graphs, _made(source, frames, begin, middle, "") + remark


def _write(source: GraphSource, frames: list[Any], stream: BinaryIO) -> None:
    notes: dict[str, Any] = {}
    write_graphs(stream, source.make(frames, notes), notes)


def _made(source: GraphSource, frames: list[Any], begin: float, middle: float, remark: str) -> str:
    return (
        f"{source.path.name}: {len(frames)} structures read in {middle - begin:.1f} s, their "
        f"graphs made{remark} in {time.monotonic() - middle:.1f} s"
    )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process of this computer is in here."""
    try:
        import fcntl
    except ImportError:  # on Windows they may all make the same graphs
        yield
        return
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _remove_oldest(newest: Path) -> None:
    """Remove what was not used for longest until the rest takes no more than `KEPT_BYTES`."""
    others = [path for path in newest.parent.glob("*.graphs") if path != newest]
    known = sorted(((path.stat(), path) for path in others), key=lambda pair: -pair[0].st_mtime)
    total = newest.stat().st_size
    for about, path in known:
        total += about.st_size
        if total > KEPT_BYTES:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
