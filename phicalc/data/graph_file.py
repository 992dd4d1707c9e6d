"""Labelled graphs in one file that is mapped into memory, so that any number of them fit.

What a structure needs is read from the file when it is asked for; the operating system keeps of it
what there is room for. Layout: all tensors of one graph after another, each beginning at a multiple
of eight bytes, graph by graph; a table of where they begin and of a checksum per graph; notes and
names as JSON; the place of both. A file that was cut off or damaged is told by the checksums.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.errors import DataError
from phicalc.geometric import Data

_MAGIC = b"phicalc graphs 1"
_PLACES = struct.Struct("<QQ")  # bytes before the table, and of the table
_TRAILER = struct.Struct("<I16s")  # checksum of table, notes and places; magic
_STORED_AS = {fields.SPECIES: "uint8", fields.EDGE_INDEX: "int32"}
_ALIGNMENT = 8


class Record(NamedTuple):
    """One graph as it lies in the file; cheap to send from one process to another."""

    columns: list[tuple[str, str, list[int]]]  # name, kind of number and shape of a row
    lengths: list[int]  # rows of each tensor
    content: bytes


def record_of(graph: Data) -> Record:
    """A graph as `phicalc.data.graph.to_graph` makes it."""
    arrays = {
        name: _stored(name, value)
        for name, value in graph.to_dict().items()
        if isinstance(value, Tensor)
    }
    return Record(
        [(name, a.dtype.str, list(a.shape[1:])) for name, a in arrays.items()],
        [len(array) for array in arrays.values()],
        b"".join(_padded(array.tobytes()) for array in arrays.values()),
    )


def write_graphs(stream: BinaryIO, graphs: Iterable[Record], notes: dict[str, Any]) -> None:
    """Write graphs one by one, as they come.

    Parameters
    ----------
    graphs
        All with the same columns.
    notes
        Kept as JSON beside them; looked at after the last graph has come.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    columns: list[tuple[str, str, list[int]]] = []
    rows: list[list[int]] = []
    start = 0
    for graph in graphs:
        columns = columns or graph.columns
        assert graph.columns == columns
        rows.append([start, zlib.crc32(graph.content), *graph.lengths])
        stream.write(graph.content)
        start += len(graph.content)
    table = np.array(rows, dtype="<i8").tobytes()
    end = table + json.dumps({"columns": columns, "notes": notes}).encode()
    end += _PLACES.pack(start, len(table))
    stream.write(end + _TRAILER.pack(zlib.crc32(end), _MAGIC))
    stream.flush()


class GraphFile(Sequence[Data]):
    """The graphs of a file, in its order or in one of their own.

    Parameters
    ----------
    stream
        A file that `write_graphs` has written, which may be closed and removed afterwards.

    Attributes
    ----------
    notes
        What was written with them.

    Raises
    ------
    DataError
        It is cut off, damaged or something else.
    """

    def __init__(self, stream: BinaryIO) -> None:
        try:
            # private, not read-only: torch warns of tensors that must not be written to
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            size = len(self._bytes) - _TRAILER.size
            checksum, magic = _TRAILER.unpack_from(self._bytes, size)
            start, length = _PLACES.unpack_from(self._bytes, size - _PLACES.size)
        except (ValueError, struct.error) as error:  # empty or shorter than that
            raise DataError("expected a file of graphs, got a part of one") from error
        if magic != _MAGIC or zlib.crc32(end := self._bytes[start:size]) != checksum:
            raise DataError("expected a file of graphs, got a damaged one or of another kind")
        content = json.loads(end[length : -_PLACES.size])
        self.notes: dict[str, Any] = content["notes"]
        self._columns = {
            name: (number, np.dtype(dtype), shape, int(np.prod(shape, dtype=int)))
            for number, (name, dtype, shape) in enumerate(content["columns"])
        }
        self._table = np.frombuffer(end[:length], dtype="<i8").reshape(-1, 2 + len(self._columns))
        self._begins = self._places()
        self._end = start
        self.numbers: NDArray[np.int64] = np.arange(len(self._table))

    def _places(self) -> NDArray[np.int64]:
        """Where in the file each tensor (graph, name) begins."""
        sizes = [dtype.itemsize * width for _, dtype, _, width in self._columns.values()]
        bytes_ = -(-self._table[:, 2:] * np.array(sizes, dtype=np.int64) // _ALIGNMENT)
        before = np.cumsum(bytes_ * _ALIGNMENT, axis=1) - bytes_ * _ALIGNMENT
        places: NDArray[np.int64] = self._table[:, :1] + before
        return places

    def check(self) -> None:
        """Read the whole file once.

        Raises
        ------
        DataError
            A graph is not what was written.
        """
        ends = [*self._table[1:, 0].tolist(), self._end]
        content = memoryview(self._bytes)
        for (start, checksum), end in zip(self._table[:, :2].tolist(), ends, strict=True):
            if zlib.crc32(content[start:end]) != checksum:
                raise DataError("expected a file of graphs, got a damaged one")

    @property
    def names(self) -> list[str]:
        """Of the tensors that each graph has."""
        return list(self._columns)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of atoms of each graph."""
        return self._rows(fields.SPECIES)

    @property
    def edges(self) -> NDArray[np.int64]:
        """Number of directed edges of each graph."""
        return self._rows(fields.EDGE_VECTORS)

    def _rows(self, name: str) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._table[self.numbers, 2 + self._columns[name][0]]
        return rows

    def only(self, numbers: Iterable[int]) -> "GraphFile":
        """Some of the graphs, in the order given."""
        chosen = object.__new__(GraphFile)
        chosen.__dict__ |= self.__dict__
        chosen.numbers = self.numbers[list(numbers)]
        return chosen

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        """One graph, or those of a slice."""
        if isinstance(number, slice):
            return self.only(range(len(self))[number])
        tensors = {name: self.tensor(number, name) for name in self._columns}
        return Data.from_dict({**tensors, "num_nodes": len(tensors[fields.SPECIES])})

    def __iter__(self) -> Iterator[Data]:
        return (self[number] for number in range(len(self)))

    def tensor(self, number: int, name: str) -> Tensor:
        """One tensor of one graph, without the rest of it.

        Raises
        ------
        KeyError
            No graph has a tensor of this name.
        """
        column, dtype, shape, width = self._columns[name]
        row = self.numbers[number]
        length = int(self._table[row, 2 + column])
        start = int(self._begins[row, column])
        flat = np.frombuffer(self._bytes, dtype=dtype, count=length * width, offset=start)
        tensor: Tensor = torch.from_numpy(flat.reshape(length, *shape))
        if name == fields.EDGE_INDEX:
            return tensor.t().long().contiguous()
        return tensor.long() if name in _STORED_AS else tensor


def tensors_of(graphs: Sequence[Data], name: str) -> Iterator[Any]:
    """One tensor of each graph in turn, None where it has none; the rest is not read."""
    if not isinstance(graphs, GraphFile):
        return (graph.to_dict().get(name) for graph in graphs)
    if name not in graphs.names:
        return iter([None] * len(graphs))
    return (graphs.tensor(number, name) for number in range(len(graphs)))


def chosen_of(graphs: Sequence[Data], numbers: Sequence[int]) -> Sequence[Data]:
    """Some of the graphs; those of a file are not read yet."""
    return graphs.only(numbers) if isinstance(graphs, GraphFile) else [graphs[i] for i in numbers]


def _stored(name: str, tensor: Tensor) -> NDArray[Any]:
    """A tensor with the number of its rows in front, as small as it can be."""
    rows = tensor.t() if name == fields.EDGE_INDEX else tensor
    array: NDArray[Any] = np.ascontiguousarray(rows.numpy(), dtype=_STORED_AS.get(name))
    return array


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)
