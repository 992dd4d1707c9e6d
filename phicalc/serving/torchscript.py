"""The program inside a model file: TorchScript. The only module that touches ``torch.jit``.

What else could stand in its place has the functions and the class of this module. Nothing does yet.
torch.export with AOTInductor runs the network 1.4 to 1.6 times as fast (water, PaiNN 64×3, no
heads, one thread, torch 2.13: 192 atoms in 21 ms, neighbour rows included, against 34; 648 in 104
against 144; the heads would stay as they are), but only for the number of atoms and the widths of
rows that it was compiled for: compiled for any, it aborts with a double free. In MD the widths
change with every neighbour list, a compilation takes a C++ compiler half a minute, and what it
makes suits one kind of processor. Measured by tests/benchmarks/compiled_network.py, to be looked at
again with a newer torch.
"""

import copy
import io
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from phicalc.errors import PhicalcError, StructureError, UnsupportedError
from phicalc.machine.archive import anew
from phicalc.machine.modes import own_modes

RECORD_ALIGNMENT: Final = 64
"""Bytes; a mapped file's tensors can then be used where they lie."""

EXPORTED: Final = ("energy", "features", "inverse", "response")
"""Methods that are scripted beside ``forward``, where a module has them."""


class Program:
    """A scripted module, whose errors are errors of phicalc.

    Evaluations use TorchScript's plain executor, whose result is bitwise the same from the first
    call on (the profiling executor rewrites the graph after two calls, and rounds differently).
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def __call__(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a graph."""
        with _evaluation():
            outputs: dict[str, Tensor] = self._module(graph)
        return outputs

    def has(self, method: str) -> bool:
        """Whether it has one of `EXPORTED`; older files lack some."""
        return hasattr(self._module, method)

    def call(self, method: str, graph: dict[str, Tensor]) -> Any:
        """What one of `EXPORTED` gives.

        Raises
        ------
        UnsupportedError
            The file is older than this.
        """
        if not self.has(method):
            raise UnsupportedError(
                f"expected a model file that gives {method}, got an older one; write it anew, with "
                "the same weights, by `phicalc export OLD.pt -o NEW.pt`"
            )
        with _evaluation():
            return getattr(self._module, method)(graph)

    def to_double(self) -> None:
        """Compute in float64 from now on; of all in single precision, the network alone is."""
        self._module.double()

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return dict(self._module.state_dict())


def program_bytes(module: nn.Module, extra: dict[str, str]) -> bytes:
    """Archive of a module, scripted in evaluation mode, and of texts by their names.

    It names no file or folder of the machine that it is written on.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for name in EXPORTED:
        method = getattr(type(module), name, None)
        if method is not None:
            torch.jit.export(method)
    buffer = io.BytesIO()
    with _without_deprecation_warnings():
        torch.jit.save(torch.jit.script(module), buffer, _extra_files=extra)
    return _without_debug_records(buffer.getvalue())


def load_program(parts: Mapping[str, bytes], device: torch.device) -> Program:
    """The program of an archive's parts (:func:`phicalc.machine.archive.sound_parts`)."""
    _take_sparse_notices()
    with _without_deprecation_warnings(), own_modes():
        return Program(torch.jit.load(anew(parts), map_location=device))


def _without_debug_records(content: bytes) -> bytes:
    """A copy of an archive without the paths and lines of its source files.

    They are a tenth to a quarter of it, and torch reads them for its tracebacks alone, where they
    are there. All else is kept as torch writes it: code compressed, tensors not, and the start of
    each record on a multiple of 64 bytes, filled up with an extra field.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            if entry.filename.endswith(".debug_pkl"):
                continue
            kept = zipfile.ZipInfo(entry.filename)
            kept.compress_type = entry.compress_type
            header = 30 + len(entry.filename.encode()) + 4  # fixed part, name, head of the field
            filling = bytes(-(buffer.tell() + header) % RECORD_ALIGNMENT)
            kept.extra = b"FB" + struct.pack("<H", len(filling)) + filling
            target.writestr(kept, source.read(entry))
            kept.extra = b""  # of no use in the directory at the end
    return buffer.getvalue()


@contextmanager
def _without_deprecation_warnings() -> Iterator[None]:
    """Hide torch's notices that TorchScript is deprecated; our users can do nothing about them."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # the latter from torch 2.14 on
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        yield


def _take_sparse_notices() -> None:
    """Let torch say here, unheard, what it says about the first sparse matrix of a process.

    That sparse CSR is in beta and unchecked is nothing that the user of a model can act on.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse ", UserWarning)
        one = torch.ones(1)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), one, [1, 1])


@contextmanager
def _evaluation() -> Iterator[None]:
    """Our own modes whatever the caller's are, the executor that does not rewrite, our errors.

    TorchScript turns an error that is raised inside into a torch.jit.Error, whose message is its
    traceback; our callers are promised errors of phicalc.
    """
    try:
        with own_modes(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    except torch.jit.Error as error:
        found = _RAISED.search(str(error))
        if found is None:
            raise
        name, message = found.groups()
        # a class that only a newer phicalc knows is an error of phicalc all the same
        raise _ERRORS.get(name, PhicalcError)(message.strip()) from None
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise StructureError(
            "expected a structure, or a batch, that the model can evaluate within the memory there "
            "is, got a larger one; use fewer atoms or a smaller batch"
        ) from None


_RAISED = re.compile(r"^phicalc\.errors\.(\w+): (.*)", re.MULTILINE | re.DOTALL)
"""Where TorchScript's traceback of a phicalc error ends: its class and its message."""

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says of memory that it did not get, on a CPU and on a GPU."""

_ERRORS = {kind.__name__: kind for kind in PhicalcError.__subclasses__()}
