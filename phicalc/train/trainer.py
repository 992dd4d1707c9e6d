"""The training loop: exact resume, clean stops, one process or many."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from phicalc import fields
from phicalc.allocator import keep_freed_memory
from phicalc.data.graph import collate, graph_dict
from phicalc.errors import ConfigError, ConvergenceError
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential, build_potential
from phicalc.train.config import TrainConfig
from phicalc.train.dataset import TrainingData, load_training_data
from phicalc.train.distributed import Processes, join_processes
from phicalc.train.ema import MovingAverage
from phicalc.train.logs import Logs, Record, clock, describe_errors
from phicalc.train.losses import joint_loss, residuals, summed_losses
from phicalc.train.metrics import ErrorSums, Evaluation, batches
from phicalc.train.optimizer import build_optimizer
from phicalc.train.schedule import Schedule
from phicalc.train.stopping import StopRequest, stop_on_signals

STATE_VERSION = 1
RUNNING, OUT_OF_TIME, INTERRUPTED, FINISHED = range(4)


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


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    best_loss: float
    interrupted: bool
    last: Path
    best: Path


def train(
    config: TrainConfig,
    resume: bool = False,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a potential as configured; write checkpoints and logs to ``config.output``.

    ``last.pt`` is the run as it stands (resumable), ``best.pt`` the averaged weights of the
    lowest validation loss. SIGINT and SIGTERM end the run after the current step with ``last.pt``
    written. On one thread a resumed run goes on bit for bit.

    Parameters
    ----------
    config
        On resume, length and pace of the run may differ from before; model and data may not.
    resume
        Go on from ``last.pt``.
    overwrite
        Start anew although the output directory holds a run.
    console
        Where to write; by default standard output.

    Raises
    ------
    ConfigError
        If the output directory holds a run and neither ``resume`` nor ``overwrite`` is given,
        or there is none to resume, or it is of another model or data.
    DataError
        If the data is unusable.
    ConvergenceError
        If the loss is not a number; ``last.pt`` is left as it was.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    processes = join_processes(config.device)
    devices = [processes.device] if processes.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), stop_on_signals() as stop:
            last = config.output / "last.pt"
            if resume and not last.exists():
                raise ConfigError(f"{last}: no checkpoint to resume")
            if last.exists() and not (resume or overwrite):
                raise ConfigError(
                    f"output: {config.output} already holds a run; resume it, or choose another"
                )
            trainer = Trainer(config, load_training_data(config), processes, console)
            if resume:
                trainer.resume()
            return trainer.run(stop)
    finally:
        processes.leave()


class Trainer:
    """One training run: its state, and the steps that move it forward."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        processes: Processes,
        console: Console | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.processes = processes
        torch.manual_seed(config.seed)
        self.potential: Potential = build_potential(
            config.model,
            data.elements,
            reference_energies=data.reference.energies if data.reference else None,
            energy_scale=data.energy_scale,
            average_neighbours=data.average_neighbours,
        ).to(processes.device)
        self.model = Differentiated(self.potential)
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.optimizer = build_optimizer(self.potential, config.optimizer)
        self.schedule = Schedule(config.schedule, self.total_steps)
        self.average = MovingAverage(self.potential, config.ema_decay)
        self.position = Position()
        self.logs = Logs(
            config.output,
            self.total_steps,
            tensorboard=config.tensorboard and processes.is_first,
            console=console if processes.is_first else Console(quiet=True),
        )
        self._order: tuple[int, list[int]] = (-1, [])
        self._clock = self._saved = time.monotonic()

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, stop: StopRequest) -> TrainResult:
        """Train to the end of the run, of its time, or to a signal; whichever comes first."""
        self._begin()
        try:
            while True:
                ending = self._ending(stop)
                if ending == INTERRUPTED:
                    break
                if self.position.batch == self.steps_per_epoch:
                    self._end_epoch()
                    ending = self._ending(stop)
                if ending != RUNNING:
                    break
                self.step()
                if time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes:
                    self.save()
            if ending != INTERRUPTED and self.position.validated_step != self.position.step:
                self.validate()
            self.save()
            self._say_end(ending, stop)
        finally:
            self.logs.close()
        directory = self.config.output
        return TrainResult(
            self.position.step,
            self.position.best_loss,
            ending == INTERRUPTED,
            directory / "last.pt",
            directory / "best.pt",
        )

    def step(self) -> float:
        """One optimiser step on the next batch; returns its loss.

        Raises
        ------
        ConvergenceError
            If loss or gradient is not finite; names the structures of the batch.
        """
        position = self.position
        frames = self._batch(position.epoch, position.batch)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.processes.sum_gradients(self.potential, self.backward(frames))
        norm = self._clip_gradients()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ConvergenceError(
                f"step {position.step}: loss {loss}, gradient norm {norm} on training structures "
                f"{sorted(frames)} (0-based); look for absurd labels there or lower "
                f"optimizer.learning_rate. {self.config.output / 'last.pt'} is as it was"
            )
        rate = self.config.optimizer.learning_rate * self.schedule.fraction(position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update()
        position.step += 1
        position.batch += 1
        position.loss_sum += loss
        position.loss_count += 1
        position.gradient_norm = norm
        self.logs.stepped(position.step, loss, rate)
        return loss

    def backward(self, frames: list[int]) -> Tensor:
        """Gradients of this process's share of the loss of a joint batch; returns the share.

        Parameters
        ----------
        frames
            Indices into the training set, of the joint batch.
        """
        graphs = self.data.train
        own = self.processes.share(frames)
        if not own:
            return torch.zeros((), dtype=torch.float64, device=self.processes.device)
        graph = graph_dict(collate([graphs[i] for i in own]).to(self.processes.device))
        atoms = sum(graphs[i][fields.SPECIES].shape[0] for i in frames)
        loss = joint_loss(self._loss_sums(graph)[0], self.config.loss, len(frames), atoms)
        loss.backward()
        return loss.detach()

    def _loss_sums(self, graph: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Summed losses and the residuals they come from."""
        properties = self.config.loss.properties
        prediction: Mapping[str, Tensor] = self.model(graph)
        for name in properties:
            if name not in prediction:
                raise ConfigError(f"loss.weights.{name}: this model does not predict {name}")
        differences = residuals(prediction, graph, properties)
        return summed_losses(differences, self.config.loss), differences

    def _clip_gradients(self) -> float:
        largest = self.config.gradient_clip
        return float(
            torch.nn.utils.clip_grad_norm_(
                [p for p in self.potential.parameters() if p.requires_grad],
                math.inf if largest is None else largest,
            )
        )

    def _batch(self, epoch: int, batch: int) -> list[int]:
        """Indices of a joint batch; the order depends on seed and epoch alone."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + epoch)
            order = torch.randperm(len(self.data.train), generator=generator).tolist()
            self._order = (epoch, order)
        start = batch * self.config.batch_size
        return self._order[1][start : start + self.config.batch_size]

    # --- validation -------------------------------------------------------------------------------

    def validate(self) -> Record:
        """Validate the averaged weights, report, and keep them if they are the best so far."""
        position = self.position
        loss, evaluation = self._evaluate()
        position.validated_step = position.step
        record = Record(
            step=position.step,
            epoch=position.epoch,
            minutes=self.seconds() / 60,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=position.loss_sum / max(1, position.loss_count),
            valid_loss=loss,
            gradient_norm=position.gradient_norm,
            evaluation=evaluation,
        )
        position.loss_sum, position.loss_count = 0.0, 0
        is_best = loss < position.best_loss
        if is_best:
            position.best_loss = loss
            with self.average.applied():
                self._first_only(lambda: self._write_best(record))
        self._first_only(lambda: self.logs.validated(record, is_best))
        return record

    def _evaluate(self) -> tuple[float, Evaluation]:
        """Loss and errors of the averaged weights on the whole validation set."""
        device = self.processes.device
        share = self.processes.share(range(len(self.data.valid)))
        graphs = [self.data.valid[i] for i in share]
        sums = ErrorSums(device)
        losses = {
            name: torch.zeros((), dtype=torch.float64, device=device)
            for name in self.config.loss.properties
        }
        self.model.eval()
        with self.average.applied():
            for graph, _ in batches(graphs, self.config.valid_batch_size, device):
                batch_losses, differences = self._loss_sums(graph)
                sums.add({name: r.detach() for name, r in differences.items()}, graph)
                for name, value in batch_losses.items():
                    losses[name] += value.detach()
        for tensor in (sums.table, sums.size, *losses.values()):
            self.processes.sum_(tensor)
        structures, atoms = (round(value) for value in sums.size.tolist())
        loss = float(joint_loss(losses, self.config.loss, structures, atoms))
        return loss, Evaluation(structures, atoms, *sums.errors())

    def _end_epoch(self) -> None:
        position = self.position
        if (position.epoch + 1) % self.config.validate_epochs == 0:
            self.schedule.validated(self.validate().valid_loss)
        position.epoch += 1
        position.batch = 0

    # --- beginnings and endings -------------------------------------------------------------------

    def seconds(self) -> float:
        """Time spent training, over all resumes."""
        return self.position.seconds + time.monotonic() - self._clock

    def _ending(self, stop: StopRequest) -> int:
        """Why to stop now, if at all; the same answer in every process."""
        limit = self.config.max_minutes
        ending = RUNNING
        if stop:
            ending = INTERRUPTED
        elif limit is not None and self.seconds() > 60 * limit:
            ending = OUT_OF_TIME
        ending = self.processes.maximum(ending)
        if ending == RUNNING and (
            self.position.step >= self.total_steps or self.schedule.exhausted
        ):
            return FINISHED
        return ending

    def _begin(self) -> None:
        self._clock = self._saved = time.monotonic()
        self._first_only(lambda: self.logs.start(self.position.step))
        parameters = sum(p.numel() for p in self.potential.parameters() if p.requires_grad)
        self.logs.line(
            f"{parameters} parameters, {len(self.data.train)} training and "
            f"{len(self.data.valid)} validation structures, {self.total_steps} steps of "
            f"{self.config.batch_size}, {self.processes.size} process(es) on "
            f"{self.processes.device} with {torch.get_num_threads()} thread(s)"
        )
        if self.position.step > 0:
            self.logs.line(f"resumed at step {self.position.step}, epoch {self.position.epoch}")

    def _say_end(self, ending: int, stop: StopRequest) -> None:
        last = self.config.output / "last.pt"
        reason = {
            OUT_OF_TIME: "time is up (max_minutes)",
            INTERRUPTED: f"stopped by {stop.name or 'a signal to another process'}",
            FINISHED: "finished",
        }[ending]
        self.logs.line(
            f"{reason} at step {self.position.step} after {clock(self.seconds())}; "
            f"best validation loss {self.position.best_loss:.4g}; saved {last}"
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write ``last.pt``: everything the run depends on from here."""
        self._first_only(
            lambda: save_checkpoint(
                self.config.output / "last.pt",
                self.potential,
                {"provenance": self._provenance(), "training": self.state_dict()},
            )
        )
        self._saved = time.monotonic()

    def _write_best(self, record: Record) -> None:
        errors = {name: asdict(error) for name, error in record.evaluation.errors.items()}
        provenance = {**self._provenance(), "valid_errors": errors, "valid_loss": record.valid_loss}
        save_checkpoint(self.config.output / "best.pt", self.potential, {"provenance": provenance})

    def _provenance(self) -> dict[str, Any]:
        return {
            "data": self.data.provenance,
            "config": self.config.model_dump(mode="json"),
            "step": self.position.step,
            "torch": str(torch.__version__),
        }

    def state_dict(self) -> dict[str, Any]:
        """State of the run beside the weights: tensors and plain types only."""
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.processes.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.processes.device)
        return {
            "version": STATE_VERSION,
            "position": {**asdict(self.position), "seconds": self.seconds()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "random": random,
        }

    def resume(self) -> None:
        """Take up the run from ``last.pt``.

        Raises
        ------
        ConfigError
            If the checkpoint has no training state, or its model or data are not the configured.
        ModelFileError
            If it is not a checkpoint.
        """
        path = self.config.output / "last.pt"
        checkpoint = load_checkpoint(path)
        training = checkpoint.extra.get("training")
        if training is None or training["version"] != STATE_VERSION:
            raise ConfigError(f"{path}: holds no state of a run that this version can resume")
        if checkpoint.config != self.config.model:
            raise ConfigError(f"model: is not the model of {path}, which cannot be resumed with it")
        if checkpoint.extra["provenance"]["data"] != self.data.provenance:
            raise ConfigError(f"data: is not the data of {path}; resume needs the same files")
        self.potential.load_state_dict(checkpoint.potential.state_dict())
        self.position = Position(**training["position"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        self.average.load_state_dict(training["average"])
        torch.set_rng_state(training["random"]["cpu"].cpu())
        if self.processes.device.type == "cuda" and "cuda" in training["random"]:
            torch.cuda.set_rng_state(training["random"]["cuda"].cpu(), self.processes.device)

    def _first_only(self, action: Callable[[], object]) -> None:
        if self.processes.is_first:
            action()
