"""The model file: one archive with a program and its description inside it.

`model.pt` is what :mod:`phicalc.serving.torchscript` writes, plus the extra file ``phicalc.json``
that holds a `ModelMetadata` (:mod:`phicalc.serving.metadata`). Everything else sees a
:class:`LoadedModel`, a function from graphs to tensors.

A file is checked as a zip archive before any part of it is handed to torch, so that a pickle
given the name of a model is refused unread. A model is still a program: TorchScript cannot run
Python or shell code, but load models only from people you trust.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.electrostatics.solvers.charges import check_converged
from phicalc.errors import ModelFileError, UnsupportedError
from phicalc.machine.device import resolve_device
from phicalc.machine.files import write_bytes
from phicalc.serving.capabilities import OLD_FILE, Capabilities
from phicalc.serving.metadata import METADATA_NAME, ModelMetadata, content_of, read_parts
from phicalc.serving.torchscript import Program, load_program, program_bytes


class LoadedModel:
    """A model in memory: called with a graph, it returns energies and their derivatives.

    An error of phicalc that the model's own code raises (a slab that it cannot sum over, charges
    that do not converge) comes out as that error, as it would from the network, and memory that
    does not suffice as a StructureError.

    Attributes
    ----------
    metadata
    device
    data
        The file's content, so that a loaded model can be pickled, copied and re-saved.
    """

    def __init__(
        self, program: Program, metadata: ModelMetadata, data: bytes, device: torch.device
    ) -> None:
        self.program = program
        self.metadata = metadata
        self.data = data
        self.device = device

    def __call__(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a graph (names, shapes and units: :mod:`phicalc.fields`)."""
        outputs = self.program(graph)
        for residual in (fields.SOLVER_RESIDUAL, fields.CHARGE_RESIDUAL):
            # files of before heads judged their own solves only report it; a device is not waited
            # for, `phicalc.serving.transfer.brought_back` sees it
            if residual in outputs and outputs[residual].device.type == "cpu":
                check_converged(float(outputs[residual].max()))
        return outputs

    def energy(self, graph: dict[str, Tensor]) -> Tensor:
        """The energies (B,) | eV alone, without their gradients."""
        output: Tensor = self.program.call("energy", graph)
        return output

    def response(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """MOMENT, BORN_CHARGES and POLARISABILITY of one structure."""
        outputs: dict[str, Tensor] = self.program.call("response", graph)
        return outputs

    def features(self, graph: dict[str, Tensor]) -> list[Tensor]:
        """Features (N, F) of the atoms after each message step, invariant under rotation.

        Raises
        ------
        UnsupportedError
            The file is older than this.
        """
        outputs: list[Tensor] = self.program.call("features", graph)
        return outputs

    def inverse(self, graph: dict[str, Tensor]) -> Tensor:
        """INVERSE (N, N) of a structure, for evaluations of its later geometries."""
        output: Tensor = self.program.call("inverse", graph)
        return output

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return self.program.weights()

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it."""
        return self.metadata.capabilities

    @property
    def sha256(self) -> str:
        """Hash of the model file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def on(self, device: torch.device, dtype: str | None = None) -> "LoadedModel":
        """The same on a device and in a precision, as `load_model` takes it; itself if it is so."""
        if device == self.device and dtype in (None, self.metadata.dtype):
            return self
        return load_model(self.data, device, dtype or self.metadata.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_model, (self.data, str(self.device), self.metadata.dtype)


def save_model(module: nn.Module, path: str | Path, metadata: ModelMetadata) -> Path:
    """Script a module and write it as a model file, whole or not at all.

    Parameters
    ----------
    module
        Maps a graph to a dictionary of tensors and can be scripted; stays as it is.
    path
        An existing file of this name is replaced.
    metadata

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
    return program_bytes(module, {METADATA_NAME: metadata.model_dump_json()})


def load_model(
    source: str | Path | bytes, device: str | torch.device = "cpu", dtype: str | None = None
) -> LoadedModel:
    """Load a model from a file or from a file's content.

    Parameters
    ----------
    dtype
        Precision of the network: "float64" for more than that of the file. By default the file's.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, no phicalc model, of a newer format, or too old for CUDA.
    UnsupportedError
        This machine has no such device; or less precision is wanted than the file has.
    """
    data, name = content_of(source)
    metadata, parts = read_parts(data, name)
    if dtype not in (None, "float64", metadata.dtype):
        raise UnsupportedError(
            f'{name}: expected dtype None, "float64" or that of the file, {metadata.dtype}, '
            f"got {dtype!r}"
        )
    device = resolve_device(device)
    check_device(metadata, device, name)
    try:
        program = load_program(parts, device)
    except Exception as error:  # torch raises RuntimeError, KeyError and more, by kind of damage
        raise ModelFileError(
            f"{name}: expected a model written by `phicalc export`, got an archive that torch "
            f"{torch.__version__} cannot load ({_first_line(error)}). Export it again."
        ) from error
    if dtype == "float64" != metadata.dtype:
        program.to_double()
        metadata = metadata.model_copy(update={"dtype": dtype})
    known = metadata.capabilities
    if known.no_field is None and not program.has("response"):
        known = known.model_copy(update={"no_field": OLD_FILE})
        metadata = metadata.model_copy(update={"capabilities": known})
    return LoadedModel(program, metadata, data, device)


ModelSource = str | Path | bytes | LoadedModel
"""A model file, its content, or what was loaded from it."""


def load_models(
    models: ModelSource | Sequence[ModelSource],
    device: str | torch.device = "cpu",
    dtype: str | None = None,
) -> list[LoadedModel]:
    """One model or several (a committee), on one device; those that are loaded so stay as they are.

    Raises
    ------
    ModelFileError, UnsupportedError
        See `load_model`; or there is no model at all.
    """
    device = resolve_device(device)
    sources = [models] if isinstance(models, ModelSource) else list(models)
    if not sources:
        raise UnsupportedError("expected at least one model, got an empty list")
    return [
        source.on(device, dtype)
        if isinstance(source, LoadedModel)
        else load_model(source, device, dtype)
        for source in sources
    ]


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
