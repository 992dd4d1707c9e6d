"""Where a run stands, and its way into a checkpoint and back."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phicalc.errors import ConfigError
from phicalc.model.checkpoint import Checkpoint, load_checkpoint
from phicalc.model.config import ModelConfig
from phicalc.train.config import TrainConfig
from phicalc.train.ema import MovingAverage
from phicalc.train.schedule import Schedule

STATE_VERSION = 1


@dataclass
class Position:
    """How far a run has come; all plain numbers."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of the epoch, next to be trained on
    validated_step: int = -1
    seconds: float = 0.0
    best_loss: float = math.inf
    loss_sum: float = 0.0  # over the steps since the last validation
    loss_count: int = 0
    gradient_norm: float = 0.0


@dataclass
class RunState:
    """Everything beside the weights that the next step depends on."""

    position: Position
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: MovingAverage
    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "version": STATE_VERSION,
            "position": asdict(self.position),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "random": random,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.position = Position(**state["position"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)


def as_begun(config: TrainConfig, begun: ModelConfig) -> TrainConfig:
    """A configuration with what it does not say as the run has it, where a default has changed."""
    if "charge_embedding" in config.model.model_fields_set:
        return config
    told = config.model.model_copy(update={"charge_embedding": begun.charge_embedding})
    return config.model_copy(update={"model": told})


def load_resumable(path: Path, config: TrainConfig, origin: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint that a run of this configuration can go on from.

    Parameters
    ----------
    path
        ``last.pt`` of the run.
    config, origin
        The configuration, and the provenance of its data.

    Raises
    ------
    ConfigError
        If it has no training state, or its model, optimiser, training data or reference energies
        are others.
    ModelFileError
        If it is no checkpoint.
    """
    checkpoint = load_checkpoint(path)
    training = checkpoint.extra.get("training")
    if not isinstance(training, dict) or training.get("version") != STATE_VERSION:
        raise ConfigError(f"{path}: holds no state of a run that this version can resume")
    if checkpoint.config != config.model:
        raise ConfigError(f"model: is not the model of {path}; resume with the same, or start anew")
    if not same_origin(checkpoint.extra["provenance"]["data"]["train"], origin["train"]):
        raise ConfigError(
            f"data: is not that of {path} (file, keys, skipped frames, valid_fraction and seed of "
            "the split); resume with the same, or start anew"
        )
    begun = checkpoint.extra["provenance"]["config"]
    energies = begun["data"].get("reference_energies")
    if energies != config.data.reference_energies:
        raise ConfigError(
            f"data.reference_energies: is not that of {path}, {energies or 'none'}; resume with "
            "the same, or start anew"
        )
    before = {"kind": "adamw", **begun["optimizer"]}
    for name, wanted in config.optimizer.model_dump(mode="json").items():
        held = before.get(name, wanted)
        held = list(held) if isinstance(held, tuple) else held
        if held != wanted and name != "learning_rate":  # which is the pace, and may differ
            raise ConfigError(
                f"optimizer.{name}: expected that of {path}, {held}, got {wanted}; resume with the "
                "same, or start anew with the other from it (initial: best.pt)"
            )
    return checkpoint


IDENTITY = ("name", "sha256", "structures", "skipped", "split", "keys")
"""What tells one set of structures from another, of all that is noted about it."""


def same_origin(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two sets of structures are the same; old checkpoints do not tell how they split."""
    names = [name for name in IDENTITY if name != "split" or "split" in before]
    return all(before.get(name) == now.get(name) for name in names)


def same_measure(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two provenances measure validation loss alike: same loss, same structures."""
    return bool(
        same_origin(before["data"]["valid"], now["data"]["valid"])
        and before["config"]["loss"] == now["config"]["loss"]
    )
