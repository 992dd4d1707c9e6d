"""Files that are whole or not there at all, and what identifies them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phicalc.errors import OutputError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, see `replacing`."""
    with replacing(path) as new:
        new.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write a whole file of JSON for people and programs, see `replacing`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` in one step when the block succeeds.

    Whatever happens, a killed process or a full disk included, `path` holds either its old
    content or all of the new one. The new file has the suffix of `path`, by which writers choose
    their format.

    Raises
    ------
    OutputError
        The file cannot be written; `path` is as it was.
    """
    new = path.with_name(f".{path.stem}-new{path.suffix}")
    try:
        yield new
        with new.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(new, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)


def prepare_folder(folder: str | Path) -> Path:
    """The folder as a path, made where it is missing and known to be writable.

    Raises
    ------
    OutputError
        It cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"expected a writable folder, got {path} ({error.strerror or error}); "
            "choose another folder"
        ) from error
    return path


def refuse_existing(*paths: Path) -> None:
    """None of these files exists yet.

    Raises
    ------
    OutputError
        One does.
    """
    for path in paths:
        if path.exists():
            raise OutputError(
                f"{path} exists already; restart that run, or choose another folder or name"
            )
