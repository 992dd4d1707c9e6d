"""The training checkpoint: configuration + state_dict, plain data that loads without unpickling.

A checkpoint can always be turned into a model file again (``phicalc export``).
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from pydantic import ValidationError

from phicalc.errors import ModelFileError
from phicalc.files import write_bytes
from phicalc.model.config import ModelConfig
from phicalc.model.potential import Potential

FORMAT_VERSION = 1
KIND = "phicalc checkpoint"


@dataclass
class Checkpoint:
    """What a checkpoint holds: the potential, rebuilt, and whatever was saved beside it."""

    potential: Potential
    config: ModelConfig
    elements: list[int]
    extra: dict[str, Any]


def save_checkpoint(
    path: str | Path, potential: Potential, extra: Optional[dict[str, Any]] = None
) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    extra
        tensors and plain Python values (dicts, lists, strings, numbers) to keep beside the model

    Raises
    ------
    OutputError
        the file cannot be written; an earlier one is as it was
    """
    payload = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": potential.config.model_dump(),
        "elements": potential.elements,
        "state_dict": potential.state_dict(),
        "extra": extra or {},
    }
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_bytes(Path(path), buffer.getvalue())


def load_checkpoint(path: str | Path, dtype: Optional[str] = None) -> Checkpoint:
    """Read a checkpoint and rebuild its potential on the CPU.

    Parameters
    ----------
    dtype
        ``"float32"`` or ``"float64"`` to rebuild the network in another precision

    Raises
    ------
    ModelFileError
        missing, truncated or foreign file, or one written by a newer phicalc
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"expected a checkpoint file, got nothing at {path}")
    if not zipfile.is_zipfile(path):
        raise ModelFileError(
            f"expected a phicalc checkpoint, got a file of another kind or cut short: {path}"
        )
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(
            f"expected a phicalc checkpoint, could not read {path}: {reason}"
        ) from None
    if not isinstance(payload, dict) or payload.get("kind") != KIND:
        raise ModelFileError(f"expected a phicalc checkpoint, got another file: {path}")
    version = payload.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"expected checkpoint format up to {FORMAT_VERSION}, got {version} in {path}: "
            "it was written by a newer phicalc, please upgrade"
        )
    try:
        config = ModelConfig.stored(payload["config"])
        if dtype is not None:
            config = ModelConfig.model_validate({**config.model_dump(), "dtype": dtype})
        potential = Potential(config, payload["elements"])
        state = payload["state_dict"]
        state.setdefault("contact.closest", potential.contact.closest)  # new since format 1 began
        state.setdefault("charge_scale", potential.charge_scale)
        potential.load_state_dict(state)
    except (KeyError, RuntimeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"expected a complete phicalc checkpoint in {path}: {reason}"
        ) from None
    return Checkpoint(potential, config, potential.elements, payload["extra"])
