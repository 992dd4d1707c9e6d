"""The training configuration: one YAML file, validated before anything is read or computed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from ase.data import atomic_numbers
from pydantic import (
    AfterValidator,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from phicalc import fields
from phicalc.checks.settings import BATCH_SIZE, Settings, validated
from phicalc.errors import ConfigError
from phicalc.model.config import ModelConfig


def _label(name: str) -> str:
    if name not in fields.LABELS:
        raise ValueError(f"expected one of {', '.join(fields.LABELS)}, got {name!r}")
    return name


Property = Annotated[str, AfterValidator(_label)]
"""A name of :data:`phicalc.fields.LABELS`."""


class LabelKeys(Settings):
    """Names of the columns in ``info``, ``arrays`` or stored results to read from, if not ours.

    What a frame has under our own name is then not looked at. ``phicalc eval`` takes the same as
    ``--key energy=REF_energy``.
    """

    energy: str | None = Field(default=None, description="total energy, eV")
    forces: str | None = Field(default=None, description="eV/Å")
    stress: str | None = Field(default=None, description="eV/Å³, tension positive")
    virial: str | None = Field(
        default=None, description="instead of stress: −stress·V in eV, as of MACE, GAP and NEP"
    )
    charges: str | None = Field(default=None, description="of the atoms, e")
    dipole: str | None = Field(default=None, description="e·Å")
    total_charge: str | None = Field(default=None, description='e; ours is info["charge"]')

    @model_validator(mode="after")
    def _one_stress(self) -> "LabelKeys":
        if self.stress is not None and self.virial is not None:
            raise ValueError("expected stress or virial, got both")
        return self

    @property
    def given(self) -> dict[str, str]:
        """Columns by our names, of those that were named."""
        return {name: key for name, key in self if key is not None}


class DataConfig(Settings):
    """Where the structures come from; paths are relative to the working directory.

    Any structure may lack any label that the loss asks for: it costs nothing there, and what each
    label had is counted in the log. Stress where not all three directions are periodic, and the
    dipole of periodic structures, count as lacking.
    """

    train: Path = Field(description="structures with labels, extxyz(.gz) or any ASE format")
    valid: Path | None = Field(
        default=None, description="validation structures; or set valid_fraction"
    )
    valid_fraction: float | None = Field(
        default=None, gt=0, lt=1, description="share of the training file held out for validation"
    )
    seed: int = Field(default=0, ge=0, description="seed of that split")
    skip_train: list[int] = Field(
        default=[], description="frames of the training file to leave out, counted from 0"
    )
    skip_valid: list[int] = Field(
        default=[], description="frames of the validation file to leave out, counted from 0"
    )
    keys: LabelKeys = Field(default=LabelKeys(), description="other names of labels")
    reference_energies: Literal["fit", "isolated"] | dict[str, float] | None = Field(
        default=None,
        description="energies of the elements by themselves: by symbol in eV (those not named are "
        "fitted), 'isolated' of the training frames with a single neutral atom (not periodic, or "
        "config_type=IsolatedAtom), 'fit' by least squares; by default isolated where each "
        "element has such a frame, else fit",
    )
    cache: bool = Field(
        default=True,
        description="keep graphs for later runs on the same structures, in phicalc/graphs of "
        "XDG_CACHE_HOME (~/.cache); they are checked before use; those not used for longest go "
        "where all take more than 20 GiB",
    )
    partial: list[Property] = Field(
        default=[], description="no longer needed: any label may be missing in any structure"
    )

    @field_validator("reference_energies", mode="before")
    @classmethod
    def _energies_of_elements(cls, value: object) -> object:
        if value is None or value in ("fit", "isolated"):
            return value
        if not isinstance(value, dict):
            raise ValueError(
                f"expected fit, isolated, or energies in eV by chemical symbol, got {value!r}"
            )
        for symbol, energy in value.items():
            if symbol not in atomic_numbers or symbol == "X":
                raise ValueError(f"expected chemical symbols, got {symbol!r}")
            number = isinstance(energy, int | float) and not isinstance(energy, bool)
            if not (number and math.isfinite(energy)):
                raise ValueError(f"expected the energy of {symbol} in eV, got {energy!r}")
        return value

    @model_validator(mode="after")
    def _one_source_of_validation(self) -> "DataConfig":
        if (self.valid is None) == (self.valid_fraction is None):
            raise ValueError("expected exactly one of valid and valid_fraction")
        if self.skip_valid and self.valid is None:
            raise ValueError("skip_valid without valid: use skip_train")
        return self


def _by_label(kind: str, defaults: Mapping[str, float | None], **limits: Any) -> type[Settings]:
    """A section with a number for each label."""
    described: dict[str, Any] = {
        name: (float, Field(default=default, description=_described(kind, name), **limits))
        for name, default in defaults.items()
    }
    return create_model(f"_{kind}", __base__=Settings, **described)


def _described(kind: str, name: str) -> str:
    row = fields.PROPERTY[name]
    if kind == "Deltas":
        return row.loss_unit
    return f"of the {name.replace('_', ' ')}{' per atom' if name == fields.ENERGY else ''}"


_Weights: Any = _by_label("Weights", {n: fields.PROPERTY[n].weight for n in fields.LABELS}, ge=0)
_Deltas: Any = _by_label("Deltas", {n: fields.PROPERTY[n].delta for n in fields.LABELS}, gt=0)


class LossWeights(_Weights):
    """Weight of each property in the loss; above zero, some training structures need its label.

    The mean that is weighted runs over all components of all structures of a batch: a label counts
    the same whether others of its batch have one, and a missing one as met.
    """

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossWeights":
        if not any(getattr(self, name) > 0 for name in fields.LABELS):
            raise ValueError("expected at least one weight above zero")
        return self


class LossDeltas(_Deltas):
    """Where the Huber loss turns from quadratic to linear, in the property's own unit."""


class LossConfig(Settings):
    """Weighted sum over properties of the mean loss of their components."""

    kind: Literal["huber", "mse"] = "huber"
    weights: LossWeights = LossWeights()
    deltas: LossDeltas = LossDeltas()
    auxiliary: float = Field(
        default=0.01,
        ge=0,
        description="weight in training of what a head asks for besides (phi-spectral: Poisson's "
        "equation and neutrality; learned base charges: that they sum to Q by themselves, in e²)",
    )

    @property
    def properties(self) -> tuple[Property, ...]:
        """The properties that are trained on, in canonical order."""
        return tuple(name for name in fields.LABELS if getattr(self.weights, name) > 0)


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Settings):
    """AdamW (arXiv 1711.05101); biases, embeddings and physical scalars are never decayed."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    physical_rate: float = Field(
        default=10.0,
        gt=0,
        description="learning rate of physical parameters (hardnesses, conductances, …) over it",
    )
    weight_decay: float = Field(
        default=1e-3, ge=0, description="decoupled decay of weight matrices"
    )
    betas: tuple[Decay, Decay] = (0.9, 0.999)


class SOAPConfig(Settings):
    """Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321), of each matrix.

    Biases and physical parameters have no basis of their own: theirs is plain Adam. Weight decay
    is as with AdamW.
    """

    kind: Literal["soap"] = "soap"
    learning_rate: float = Field(default=3e-3, gt=0, description="peak learning rate")
    physical_rate: float = Field(
        default=3.3,
        gt=0,
        description="learning rate of physical parameters (hardnesses, conductances, …) over it",
    )
    weight_decay: float = Field(
        default=1e-3, ge=0, description="decoupled decay of weight matrices"
    )
    betas: tuple[Decay, Decay] = (0.95, 0.95)
    basis_steps: int = Field(default=10, ge=1, description="steps from one basis to the next")
    largest_basis: int = Field(
        default=1000, ge=1, description="sides of matrices longer than this keep their own basis"
    )


OptimizerConfig = Annotated[AdamWConfig | SOAPConfig, Field(discriminator="kind")]


class CosineConfig(Settings):
    """Linear warm-up, then half a cosine down to ``final_fraction`` of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
    final_fraction: float = Field(default=0.01, ge=0, le=1)


class PlateauConfig(Settings):
    """Linear warm-up, then a cut by ``factor`` whenever the validation loss stops falling."""

    kind: Literal["plateau"] = "plateau"
    warmup_steps: int = Field(default=100, ge=0)
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(
        default=10, ge=0, description="validations without improvement before a cut"
    )
    threshold: float = Field(default=1e-3, ge=0, lt=1, description="relative fall that counts")
    final_fraction: float = Field(default=0.01, gt=0, le=1, description="training ends below this")


ScheduleConfig = Annotated[CosineConfig | PlateauConfig, Field(discriminator="kind")]


class TrainConfig(Settings):
    """Everything a training run depends on."""

    output: Path = Field(description="directory of checkpoints and logs")
    initial: Path | None = Field(
        default=None,
        description="checkpoint to start from: weights are taken over, by element; what it lacks, "
        "an element or a head, starts at random; reference energies follow the new data",
    )
    data: DataConfig
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = CosineConfig()

    epochs: int | None = Field(
        default=None, ge=1, description="length of the run; or set max_steps"
    )
    max_steps: int | None = Field(default=None, ge=1, description="length of the run in steps")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="stop sooner when this much time was spent, resumes included",
    )
    batch_size: int = Field(
        default=4,
        ge=1,
        description="structures per step, over all processes; with a head that sums Coulomb, "
        "memory grows as it and as the square of the atoms of the largest",
    )
    valid_batch_size: int = Field(default=BATCH_SIZE, ge=1)
    validate_epochs: int = Field(default=1, ge=1, description="epochs between validations")
    gradient_clip: float | None = Field(
        default=10.0, gt=0, description="largest global gradient norm"
    )
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="0 switches the average off")
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    seed: int = Field(
        default=0, ge=0, description="of initial weights and of the order of structures"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads per process")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    tensorboard: bool = True

    @field_validator("optimizer", mode="before")
    @classmethod
    def _kind_of_optimizer(cls, value: object) -> object:
        """``soap`` alone is the kind; a mapping without one is AdamW's, as it was before kinds."""
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": "adamw", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("expected exactly one of epochs and max_steps")
        return self

    @classmethod
    def stored(cls, content: dict[str, Any]) -> "TrainConfig":
        """The configuration that a file of an earlier run holds, as it was then."""
        model = ModelConfig.stored(content.get("model", {}))
        return cls(**{**content, "model": model})

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the whole run in optimiser steps; the cosine is planned by it."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return self.epochs * steps_per_epoch


def load_config(path: str | Path) -> TrainConfig:
    """Read and validate a YAML training configuration.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or holds an unknown key or a wrong value. The message
        is one line that names the key by its dotted path.
    """
    return parse_config(read_mapping(path), source=str(path))


def parse_config(content: dict[str, Any], source: str = "config") -> TrainConfig:
    """Validate a configuration that is already a dict; errors as in :func:`load_config`."""
    return validated(TrainConfig, content, source)


class _NoKeyTwice(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake: the first would be lost silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return node


def read_mapping(path: str | Path) -> dict[str, Any]:
    """What a YAML file holds, still to be validated.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or is no mapping of keys to values.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _NoKeyTwice)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file: {reason}") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else type(content).__name__
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {found}")
    return content
