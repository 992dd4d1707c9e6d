"""What a model file says about itself, read without torch.

A file is checked as a zip archive, and what it says of itself as JSON, before any other part of it
is looked at: a pickle given the name of a model is refused unread.
"""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phicalc import __version__
from phicalc.checks import ChargeRange
from phicalc.errors import ModelFileError

FORMAT_VERSION: Final = 1
"""Raised by one whenever an older phicalc could misread a newer file."""

METADATA_NAME: Final = "phicalc.json"

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
    supports_total_charge: bool = False
    supports_partial_pbc: bool = Field(default=True, description="slabs and wires")
    basis_size: int = Field(default=16, ge=0, description="Laplacian eigenvectors to keep cached")
    parameters: int = Field(default=0, ge=0, description="number of learned parameters")
    units: dict[str, str] = Field(default_factory=lambda: dict(UNITS))
    config: dict[str, Any] = Field(default={}, description="the model's configuration")
    provenance: Provenance = Provenance()
    description: str = Field(default="", description="what the model may and may not be used for")
    licence: str = Field(default="", description="licence of the weights")
    data_licence: str = Field(
        default="", description="licence and attribution of the training data"
    )

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
    return check_archive(*content_of(source))


def content_of(source: str | Path | bytes) -> tuple[bytes, str]:
    """The bytes of a model file, if they are not given, and what to call it in messages.

    Raises
    ------
    ModelFileError
        It cannot be read.
    """
    if isinstance(source, bytes):
        return source, "model data"
    path = Path(source)
    try:
        return path.read_bytes(), str(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; expected a phicalc model") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_archive(data: bytes, name: str) -> ModelMetadata:
    """Check an archive's structure, then what it says about itself; torch sees nothing of it.

    Raises
    ------
    ModelFileError
        See :func:`read_metadata`.
    """
    names, description = _archive(data, name)
    root = names[0].split("/", 1)[0]
    has_code = any(entry.startswith(f"{root}/code/") for entry in names)
    if not has_code or f"{root}/constants.pkl" not in names:
        kind = (
            "a torch.save file (a training checkpoint? turn it into a model with `phicalc export`)"
            if f"{root}/data.pkl" in names
            else "a zip file without TorchScript in it"
        )
        raise ModelFileError(f"{name}: expected a phicalc model, got {kind}")
    if description is None:
        raise ModelFileError(
            f"{name}: expected a model written by `phicalc export`, got a TorchScript file of "
            f"another program (it has no {METADATA_NAME})"
        )
    return _parse_metadata(description, name)


def _archive(data: bytes, name: str) -> tuple[list[str], bytes | None]:
    """Names in a zip file and its ``phicalc.json``, if any; checksums are verified."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
            described = [entry for entry in names if entry.endswith(f"/extra/{METADATA_NAME}")]
            description = archive.read(described[0]) if described and not damaged else None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        kind = "one that is cut short" if data.startswith(b"PK\x03\x04") else "another kind of file"
        raise ModelFileError(
            f"{name}: expected a phicalc model (a zip archive), got {kind} of {len(data)} bytes; "
            "nothing in it was loaded"
        ) from error
    if damaged is not None:
        raise ModelFileError(f"{name}: damaged, its part {damaged!r} fails the checksum")
    if not names:
        raise ModelFileError(f"{name}: expected a phicalc model, got an empty zip file")
    return names, description


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
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{name}: {METADATA_NAME}, key {key!r}: {first['msg']}") from error
