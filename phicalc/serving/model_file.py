"""The model file: one TorchScript archive with its description inside it.

`model.pt` is what ``torch.jit.save`` writes, plus the extra file ``phicalc.json`` that holds a
`ModelMetadata` (:mod:`phicalc.serving.metadata`). This is the only module that touches
``torch.jit``; everything else sees a :class:`LoadedModel`, a function from graphs to tensors.

A file is checked as a zip archive before any part of it is handed to torch, so that a pickle
given the name of a model is refused unread. A model is still a program: TorchScript cannot run
Python or shell code, but load models only from people you trust.
"""

import copy
import hashlib
import io
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.solvers.charges import check_converged
from phicalc.errors import ModelFileError, PhicalcError, StructureError, UnsupportedError
from phicalc.machine.archive import anew
from phicalc.machine.device import resolve_device
from phicalc.machine.files import write_bytes
from phicalc.machine.modes import own_modes
from phicalc.serving.capabilities import OLD_FILE, Capabilities
from phicalc.serving.metadata import METADATA_NAME, ModelMetadata, content_of, read_parts

RECORD_ALIGNMENT: Final = 64
"""Bytes; a mapped file's tensors can then be used where they lie."""


class LoadedModel:
    """A model in memory: called with a graph, it returns energies and their derivatives.

    Evaluations use TorchScript's plain executor, whose result is bitwise the same from the first
    call on (the profiling executor rewrites the graph after two calls, and rounds differently).
    An error of phicalc that the model's own code raises (a slab that it cannot sum over, charges
    that do not converge) comes out as that error, as it would from the network, and memory that
    does not suffice as a StructureError.

    Attributes
    ----------
    metadata : ModelMetadata
    device : torch.device
    data : bytes
        The file's content, so that a loaded model can be pickled, copied and re-saved.
    """

    def __init__(
        self, module: Any, metadata: ModelMetadata, data: bytes, device: torch.device
    ) -> None:
        self.module = module
        self.metadata = metadata
        self.data = data
        self.device = device

    def __call__(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a graph (names, shapes and units: :mod:`phicalc.fields`)."""
        with _evaluation():
            outputs: dict[str, Tensor] = self.module(graph)
        for residual in (fields.SOLVER_RESIDUAL, fields.CHARGE_RESIDUAL):
            if residual in outputs:  # files of before heads judged their own solves only report it
                check_converged(float(outputs[residual].max()))
        return outputs

    def call(self, method: str, graph: dict[str, Tensor]) -> Tensor:
        """Evaluate an exported method that takes a graph and returns one tensor."""
        with _evaluation():
            output: Tensor = getattr(self.module, method)(graph)
        return output

    def response(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the exported method ``response`` gives: polarisation, Born charges and more."""
        with _evaluation():
            outputs: dict[str, Tensor] = self.module.response(graph)
        return outputs

    def features(self, graph: dict[str, Tensor]) -> list[Tensor]:
        """Features (N, F) of the atoms after each message step, invariant under rotation.

        Raises
        ------
        UnsupportedError
            The file is older than this.
        """
        if not hasattr(self.module, "features"):
            raise UnsupportedError(
                "expected a model file that gives features, got an older one; write it anew, with "
                "the same weights, by `phicalc export OLD.pt -o NEW.pt`"
            )
        with _evaluation():
            outputs: list[Tensor] = self.module.features(graph)
        return outputs

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return dict(self.module.state_dict())

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it."""
        return self.metadata.capabilities

    @property
    def sha256(self) -> str:
        """Hash of the model file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return load_model, (self.data, str(self.device))


def save_model(module: nn.Module, path: str | Path, metadata: ModelMetadata) -> Path:
    """Script a module and write it as a model file, whole or not at all.

    Parameters
    ----------
    module : nn.Module
        Maps a graph to a dictionary of tensors and can be scripted; stays as it is.
    path : str or Path
        An existing file of this name is replaced.
    metadata : ModelMetadata

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    path = Path(path)
    write_bytes(path, model_bytes(module, metadata))
    return path


def model_bytes(module: nn.Module, metadata: ModelMetadata) -> bytes:
    """Content of the model file of a module, scripted in evaluation mode.

    It names no file or folder of the machine that it is written on.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    buffer = io.BytesIO()
    with _without_deprecation_warnings():
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, buffer, _extra_files={METADATA_NAME: metadata.model_dump_json()})
    return _without_debug_records(buffer.getvalue())


def _without_debug_records(content: bytes) -> bytes:
    """A copy of an archive without the paths and lines of its source files.

    They are a tenth to a quarter of it, and torch reads them for its tracebacks alone, where they
    are there. All else is kept as torch
    writes it: code compressed, tensors not, and the start of each record on a multiple of 64 bytes,
    filled up with an extra field.
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


def load_model(source: str | Path | bytes, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model from a file or from a file's content.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, no phicalc model, of a newer format, or too old for CUDA.
    UnsupportedError
        This machine has no such device.
    """
    data, name = content_of(source)
    metadata, parts = read_parts(data, name)
    device = resolve_device(device)
    check_device(metadata, device, name)
    _take_sparse_notices()
    try:
        with _without_deprecation_warnings(), own_modes():
            module = torch.jit.load(anew(parts), map_location=device)
    except Exception as error:  # torch raises RuntimeError, KeyError and more, by kind of damage
        raise ModelFileError(
            f"{name}: expected a model written by `phicalc export`, got an archive that torch "
            f"{torch.__version__} cannot load ({_first_line(error)}). Export it again."
        ) from error
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    known = metadata.capabilities
    if known.no_field is None and not hasattr(module, "response"):
        known = known.model_copy(update={"no_field": OLD_FILE})
        metadata = metadata.model_copy(update={"capabilities": known})
    return LoadedModel(module, metadata, data, device)


def check_device(metadata: ModelMetadata, device: torch.device, name: str) -> None:
    """Raise ModelFileError where a model's heads cannot compute on a device."""
    if metadata.heads and device.type not in metadata.devices:
        raise ModelFileError(
            f"{name}: expected a model that computes on {device.type}, got an older file, whose "
            f"heads compute on {' and '.join(metadata.devices)} alone; write it anew, with the "
            'same weights, by `phicalc export OLD.pt -o NEW.pt`, or use device="cpu"'
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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
