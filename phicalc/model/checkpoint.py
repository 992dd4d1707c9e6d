"""The training checkpoint: configuration + state_dict, plain data that loads without unpickling.

A checkpoint can always be turned into a model file again (``phicalc export``).
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from phicalc.errors import ConfigError, ModelFileError
from phicalc.machine.archive import anew, read_whole, sound_parts
from phicalc.machine.files import write_bytes
from phicalc.machine.modes import own_modes
from phicalc.model.config import ModelConfig
from phicalc.model.potential import Potential

FORMAT_VERSION = 1
KIND = "phicalc checkpoint"

ADDED = ("contact.closest", "charge_scale")
"""Buffers that are new since format 1 began: where a file has none, a new potential's stands."""


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


@own_modes()
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
    kind = "a phicalc checkpoint"
    parts = sound_parts(read_whole(path, kind), str(path), kind)
    try:
        payload = torch.load(anew(parts), map_location="cpu", weights_only=True)
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
        config, elements = payload["config"], payload["elements"]
        potential = rebuild(config, elements, payload["state_dict"], dtype)
        extra = dict(payload["extra"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"expected a complete phicalc checkpoint in {path}: {reason}"
        ) from None
    return Checkpoint(potential, potential.config, potential.elements, extra)


def rebuild(
    config: Mapping[str, Any],
    elements: Sequence[int],
    state: Mapping[str, Tensor],
    dtype: Optional[str] = None,
) -> Potential:
    """The potential of a configuration and its weights, from a checkpoint or a model file.

    Parameters
    ----------
    config
        what `ModelConfig` dumped
    elements
        atomic numbers
    state
        weights and buffers by name; those of `ADDED` may be missing
    dtype
        precision of the network, instead of the configuration's own

    Raises
    ------
    KeyError, TypeError, AttributeError, RuntimeError, ConfigError
        they are not those of one potential
    """
    known = ModelConfig.stored(config)
    if dtype is not None:
        known = ModelConfig.model_validate({**known.model_dump(), "dtype": dtype})
    potential = Potential(known, elements)
    own = potential.state_dict()
    # TorchScript saves what a network computes from its configuration, too.
    computed = {name for name, _ in potential.named_buffers()} - own.keys()
    given = {name: value for name, value in state.items() if name not in computed}
    potential.load_state_dict({**{name: own[name] for name in ADDED}, **given})
    return potential
