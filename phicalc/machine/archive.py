"""Zip archives, checked whole before anything in them is believed."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from phicalc.errors import ModelFileError


def read_whole(path: Path, kind: str) -> bytes:
    """The content of a file that should be of a kind, such as "a phicalc model".

    Raises
    ------
    ModelFileError
        It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; expected {kind}") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error


def sound_parts(data: bytes, name: str, kind: str) -> dict[str, bytes]:
    """The parts of the archive in a file's content, one at least; all checksums are verified.

    Parameters
    ----------
    name, kind
        What to call the file in messages, and what it should be, such as "a phicalc model".

    Raises
    ------
    ModelFileError
        It is no archive, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = len(archive.infolist())
            damaged = archive.testzip()
            parts = {} if damaged else {part: archive.read(part) for part in archive.namelist()}
    except Exception as error:  # there are as many kinds of errors as there are of damage
        shown = "one that is cut short or damaged"
        if not data.startswith(b"PK\x03\x04"):
            shown = "another kind of file"
        raise ModelFileError(
            f"{name}: expected {kind} (a zip archive), got {shown} of {len(data)} bytes; "
            "nothing in it was loaded"
        ) from error
    if damaged is not None:
        raise ModelFileError(f"{name}: damaged, its part {damaged!r} fails the checksum")
    end = data.rfind(b"PK\x05\x06")
    written = int.from_bytes(data[end + 10 : end + 12], "little")
    if written not in (found, 0xFFFF):  # which stands for more than it can say
        raise ModelFileError(f"{name}: damaged, its directory lists {found} of {written} parts")
    if not parts:
        raise ModelFileError(f"{name}: expected {kind}, got an empty zip file")
    return parts


def anew(parts: Mapping[str, bytes]) -> io.BytesIO:
    """The archive anew, for torch or NumPy to read.

    torch looks at no checksum, and where the directory is damaged it may see another archive than
    we do: a part whose attributes say that it is a folder becomes a tensor of whatever lies in
    memory. So others get what was checked, with a directory of our own.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    buffer.seek(0)
    return buffer


def holds_program(parts: Mapping[str, bytes]) -> bool:
    """Whether it is what TorchScript writes: a model file, and not a checkpoint."""
    root = next(iter(parts)).split("/", 1)[0]
    return f"{root}/constants.pkl" in parts and any(n.startswith(f"{root}/code/") for n in parts)
