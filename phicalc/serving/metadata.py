"""What a model file says about itself, read without torch.

A file is checked as a zip archive, and what it says of itself as JSON, before any other part of it
is looked at: a pickle given the name of a model is refused unread.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from phicalc import __version__
from phicalc.checks.settings import mistake
from phicalc.checks.support import ChargeRange
from phicalc.errors import ConfigError, ModelFileError
from phicalc.machine.archive import holds_program, read_whole, sound_parts
from phicalc.model.config import ModelConfig
from phicalc.serving.capabilities import Capabilities, combined

FORMAT_VERSION: Final = 1
"""Raised by one whenever an older phicalc could misread a newer file."""

METADATA_NAME: Final = "phicalc.json"

KIND: Final = "a phicalc model"

UNITS: Final[dict[str, str]] = {
    "energy": "eV",
    "length": "Å",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "charge": "e",
    "potential": "V",
    "dipole": "e·Å",
    "field": "V/Å",
}


class DataSource(BaseModel):
    """A file of training or validation structures."""

    name: str
    sha256: str
    structures: int
    labels: dict[str, int] = Field(default={}, description="structures that had it, by property")
    periodicity: dict[str, int] = Field(
        default={}, description="structures by the number of their periodic directions"
    )
    keys: dict[str, str] = Field(default={}, description="columns that labels were read from")


class ChargesSeen(BaseModel):
    """Total charges of the training structures."""

    structures: dict[str, int] = Field(description="how many, by total charge in e")
    per_atom: tuple[float, float] = Field(description="lowest and highest Q/N in e")

    @property
    def total(self) -> tuple[float, float]:
        """Lowest and highest Q in e."""
        values = [float(charge) for charge in self.structures]
        return min(values), max(values)


class ReferenceEnergies(BaseModel):
    """E⁰ of the elements as training began."""

    energies: dict[str, float] = Field(description="eV by chemical symbol")
    source: str = Field(description="where they come from")
    open: list[str] = Field(
        default=[],
        description="elements of which the compositions of the data fix only sums: energies of "
        "other compositions mean nothing",
    )


@dataclass(frozen=True)
class ErrorSummary:
    """Mean absolute and root-mean-square error over ``count`` scalar components."""

    mae: float
    rmse: float
    count: int
    unit: str


class Provenance(BaseModel):
    """Where the weights come from."""

    data: dict[str, DataSource] = Field(default={}, description="by use: train, valid")
    valid_errors: dict[str, ErrorSummary] = Field(default={}, description="by property")
    charges: ChargesSeen | None = Field(default=None, description="of training; None: not noted")
    reference: ReferenceEnergies | None = Field(default=None, description="None: not noted")
    step: int | None = Field(default=None, description="optimiser steps until these weights")
    config: dict[str, Any] = Field(default={}, description="the training configuration")
    checkpoint_sha256: str = Field(default="", description="of the exported checkpoint")


def _torch_version() -> str:
    import torch  # only by those who write a file: a reader need not wait for it

    return str(torch.__version__)


_FORMER: Final = {
    "supports_total_charge": "total_charge",
    "supports_partial_pbc": "partial_pbc",
    "basis_size": "basis_size",
}
"""Keys of files from before capabilities."""


class ModelMetadata(BaseModel):
    """What a model file says about itself, readable without loading the network."""

    model_config = ConfigDict(frozen=True)

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    phicalc_version: str = __version__
    torch_version: str = Field(default_factory=_torch_version)
    elements: list[int] = Field(min_length=1, description="atomic numbers the model knows")
    cutoff: float = Field(gt=0, description="r_c in Å")
    dtype: Literal["float32", "float64"] = "float32"
    backbone: str = Field(default="", description="message-passing network, e.g. painn")
    heads: list[str] = Field(default=[], description="electrostatics heads, e.g. phi")
    capabilities: Capabilities = Field(
        default=Capabilities(), description="what may be asked of it; older files get theirs here"
    )
    devices: list[str] = Field(
        default=["cpu"],
        description="kinds of device that it computes on; files that do not say so are older, and "
        "their heads make tensors on the CPU wherever the others are",
    )
    parameters: int = Field(default=0, ge=0, description="number of learned parameters")
    units: dict[str, str] = Field(default_factory=lambda: dict(UNITS))
    config: dict[str, Any] = Field(default={}, description="the model's configuration")
    provenance: Provenance = Provenance()
    description: str = Field(default="", description="what the model may and may not be used for")
    licence: str = Field(default="", description="licence of the weights")
    data_licence: str = Field(
        default="", description="licence and attribution of the training data"
    )

    @model_validator(mode="before")
    @classmethod
    def _capabilities_of_older_files(cls, content: Any) -> Any:
        """A file that does not say what may be asked of it says what it was made of."""
        if not isinstance(content, dict) or "capabilities" in content:
            return content
        made_of = content.get("config") or {
            "heads": [{"kind": kind} for kind in content.get("heads", [])]
        }
        said = {name: content[key] for key, name in _FORMER.items() if key in content}
        try:
            known = combined(ModelConfig.stored(made_of)).model_dump()
        except ConfigError:  # made of what is not ours
            known = {}
        said |= {"keeps_inverse": False}  # its program is from before that
        return {**content, "capabilities": {**known, "total_charge": False, **said}}

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of :attr:`elements`."""
        return [chemical_symbols[number] for number in self.elements]

    @property
    def charge_range(self) -> ChargeRange | None:
        """Total charges that it may be asked for, of those that it can be told of; None: any."""
        return charge_range(self.provenance.charges, self.config.get("charge_embedding", "total"))


def charge_range(seen: ChargesSeen | None, embedding: str) -> ChargeRange | None:
    """What charges that were seen allow, by the model's ``charge_embedding``."""
    if seen is None:
        return None
    per_atom = embedding == "per-atom"
    return ChargeRange(*(seen.per_atom if per_atom else seen.total), per_atom)


def read_metadata(source: str | Path | bytes) -> ModelMetadata:
    """Describe a model file without loading its network.

    Raises
    ------
    ModelFileError
        The file is missing, damaged outside the network itself, no phicalc model, or of a newer
        format.
    """
    return read_parts(*content_of(source))[0]


def content_of(source: str | Path | bytes) -> tuple[bytes, str]:
    """The bytes of a model file, if they are not given, and what to call it in messages.

    Raises
    ------
    ModelFileError
        It cannot be read.
    """
    if isinstance(source, bytes):
        return source, "model data"
    return read_whole(Path(source), KIND), str(source)


def read_parts(data: bytes, name: str) -> tuple[ModelMetadata, dict[str, bytes]]:
    """What a model file says about itself, and its parts, sound; torch sees nothing of it.

    Raises
    ------
    ModelFileError
        See :func:`read_metadata`.
    """
    parts = sound_parts(data, name, KIND)
    if not holds_program(parts):
        kind = (
            "a torch.save file (a training checkpoint? turn it into a model with `phicalc export`)"
            if any(part.endswith("/data.pkl") for part in parts)
            else "a zip file without TorchScript in it"
        )
        raise ModelFileError(f"{name}: expected {KIND}, got {kind}")
    described = [part for part in parts if part.endswith(f"/extra/{METADATA_NAME}")]
    if not described:
        raise ModelFileError(
            f"{name}: expected a model written by `phicalc export`, got a TorchScript file of "
            f"another program (it has no {METADATA_NAME})"
        )
    return _parse_metadata(parts[described[0]], name), parts


def _parse_metadata(text: bytes, name: str) -> ModelMetadata:
    try:
        content = json.loads(text)
        version = int(content["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{name}: its {METADATA_NAME} is no description of a model") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{name}: expected format version ≤ {FORMAT_VERSION}, got {version}, written by "
            f"phicalc {content.get('phicalc_version', '?')}; upgrade phicalc "
            f"({__version__} here) to read it"
        )
    try:
        return ModelMetadata.model_validate(content)
    except ValidationError as error:
        raise ModelFileError(f"{name}: {METADATA_NAME}: {mistake(error, content)}") from error
