"""A file of records that only grows: after a kill, every record but the last is still whole."""

import hashlib
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicalc.errors import OutputError

Record = dict[str, NDArray[Any]]

_MAGIC = b"phicalc records\x01"
_FRAME = struct.Struct("<Q32s")  # length and SHA-256 of what follows


class RecordFile:
    """Arrays by name, record after record, each with its checksum.

    Parameters
    ----------
    path
        The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """All whole records; what a killed process left of another one is cut off.

        Raises
        ------
        OutputError
            Another kind of file, or one that cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            content = self.path.read_bytes()
            records, end = _parse(content)
            if not content.startswith(_MAGIC[: len(content)]):
                raise OutputError(
                    f"expected the record of an unfinished run, got {self.path}; move it away"
                )
            if end < len(content):
                os.truncate(self.path, end)
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from error
        return records

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns.

        Raises
        ------
        OutputError
            The disk is full, or the like; the records before are whole.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **record)  # type: ignore[arg-type]
        content = buffer.getvalue()
        try:
            with self.path.open("ab") as file:
                start = b"" if file.tell() else _MAGIC
                file.write(start + _FRAME.pack(len(content), _digest(content)) + content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror or error}; what was computed before "
                "is whole: make room and restart"
            ) from error

    def remove(self) -> None:
        """Delete the file where there is one."""
        self.path.unlink(missing_ok=True)


def _parse(content: bytes) -> tuple[list[Record], int]:
    """Whole records from the start on, and where the last of them ends."""
    records: list[Record] = []
    end = len(_MAGIC) if content.startswith(_MAGIC) else 0
    while end and end + _FRAME.size <= len(content):
        length, digest = _FRAME.unpack_from(content, end)
        body = content[end + _FRAME.size : end + _FRAME.size + length]
        if len(body) < length or _digest(body) != digest:
            break
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            records.append({name: arrays[name] for name in arrays.files})
        end += _FRAME.size + length
    return records, end


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def as_table(rows: list[dict[str, float]]) -> NDArray[np.void]:
    """Rows of numbers by name, the same names in each, as a structured array."""
    names = list(rows[0]) if rows else []
    return np.array(
        [tuple(row[name] for name in names) for row in rows],
        dtype=[(name, np.float64) for name in names],
    )
