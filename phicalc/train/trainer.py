"""The training loop: exact resume, clean stops, one process or many.

Why not a library's loop (Lightning, Ignite): a run that was killed at any step must go on to the
last bit, so that all that moves in the loop is saved with it here, which is most of what a loop is.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from rich.console import Console

from phicalc.errors import ConfigError, ConvergenceError
from phicalc.machine.allocator import keep_freed_memory
from phicalc.machine.modes import own_modes
from phicalc.machine.signals import StopRequest, stop_on_signals
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.train.config import TrainConfig
from phicalc.train.dataset import TrainingData, load_training_data
from phicalc.train.describe import describe_data, reference_record
from phicalc.train.distributed import Processes, join_processes
from phicalc.train.ema import MovingAverage
from phicalc.train.initial import new_potential
from phicalc.train.logs import Logs, Record, clock
from phicalc.train.objective import Objective
from phicalc.train.optimizer import build_optimizer
from phicalc.train.schedule import Schedule
from phicalc.train.state import Position, RunState, as_begun, load_resumable, same_measure

RUNNING, FINISHED, OUT_OF_TIME, INTERRUPTED = range(4)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes
    ----------
    step
        Optimiser steps made, resumes included.
    best_loss
        Lowest validation loss.
    stopped_by
        Name of the signal that ended it early, such as "SIGINT"; None for a complete run.
    last, best
        The two checkpoints.
    """

    step: int
    best_loss: float
    stopped_by: str | None
    last: Path
    best: Path


@own_modes()
def train(
    config: TrainConfig,
    resume: bool = False,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a potential as configured; write checkpoints and logs to ``config.output``.

    ``last.pt`` is the run as it stands, to be resumed; ``best.pt`` the averaged weights of the
    lowest validation loss, to be exported. SIGINT and SIGTERM end the run after the current step,
    with ``last.pt`` written. On one CPU thread a resumed run goes on bit for bit.

    Parameters
    ----------
    config
        On resume, length, pace, loss and validation set may differ from before (with another
        loss or validation set the search for the best starts anew); model, kind of optimiser and
        training data not.
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
        If the loss is not a number or a solve does not converge; ``last.pt`` is left as it was.
    """
    last = config.output / "last.pt"
    if resume and not last.exists():
        raise ConfigError(f"output: {last} does not exist, so there is nothing to resume")
    if last.exists() and not (resume or overwrite):
        raise ConfigError(f"output: {config.output} already holds a run; resume it or overwrite it")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    processes = join_processes(config.device)
    devices = [processes.device] if processes.device.type == "cuda" else []
    try:
        if resume:
            config = as_begun(config, load_checkpoint(last).config)
        with torch.random.fork_rng(devices), stop_on_signals(sigterm_repeats=True) as stop:
            trainer = Trainer(config, load_training_data(config), processes, console, not resume)
            if resume:
                trainer.resume()
            result = trainer.run(stop)
    except BaseException:
        processes.leave(failed=True)
        raise
    processes.leave()
    return result


class Trainer:
    """One training run: its state, and the steps that move it forward.

    A run that is taken up has weights of its own, and looks at no initial checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        processes: Processes,
        console: Console | None = None,
        from_initial: bool = True,
    ) -> None:
        self.config = config
        self.data = data
        self.processes = processes
        torch.manual_seed(config.seed)
        self.notes: list[str] = []  # on what was taken from another run
        initial = config.initial if from_initial else None
        self.potential = new_potential(config.model, data, initial, self.notes.append)
        self.potential.to(processes.device)
        processes.broadcast(self.potential)
        model = Differentiated(self.potential).to(processes.device)
        self.objective = Objective(model, config.loss, processes)
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.state = RunState(
            Position(),
            build_optimizer(self.potential, config.optimizer),
            Schedule(config.schedule, self.total_steps),
            MovingAverage(self.potential, config.ema_decay),
            processes.device,
        )
        self.logs = Logs(
            config.output,
            self.total_steps,
            tensorboard=config.tensorboard,
            console=console if processes.is_first else Console(quiet=True),
        )
        self._order: tuple[int, list[int]] = (-1, [])
        self._moment = self._saved = time.monotonic()

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.state.position

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, stop: StopRequest) -> TrainResult:
        """Train to the end of the run, of its time, or to a signal; whichever comes first."""
        self._begin()
        try:
            ending = self._train(stop)
            if ending != INTERRUPTED and self.position.validated_step != self.position.step:
                self.validate()
            self.save()
            stopped_by = self._stopped_by(stop) if ending == INTERRUPTED else None
            self._say_end(ending, stopped_by)
        finally:
            self.logs.close()
        return TrainResult(
            self.position.step,
            self.position.best_loss,
            stopped_by,
            self.config.output / "last.pt",
            self.config.output / "best.pt",
        )

    def _train(self, stop: StopRequest) -> int:
        """Steps and validations until there is a reason to end; returns the reason."""
        while (ending := self._ending(stop)) != INTERRUPTED:
            if self.position.batch == self.steps_per_epoch:
                self._end_epoch()
                ending = self._ending(stop)
            if ending != RUNNING:
                break
            self.step()
            if time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes:
                self.save()
        return ending

    def step(self) -> float:
        """One optimiser step on the next batch; returns its loss.

        Raises
        ------
        ConvergenceError
            If loss or gradient is not finite, or a solve did not converge; names the structures.
        """
        position, optimizer = self.position, self.state.optimizer
        batch = self.batch(position.epoch, position.batch)
        try:
            loss = self.objective.gradients(self.data.train, batch)
        except ConvergenceError as error:
            raise self._unsolved(error, "skip_train") from None
        norm = self._clip_gradients()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ConvergenceError(
                f"step {position.step}: loss {loss}, gradient norm {norm} on the training "
                f"structures {sorted(batch)} (counted from 0); look there for absurd labels or "
                f"lower optimizer.learning_rate; {self.config.output / 'last.pt'} is as it was"
            )
        rate = self.config.optimizer.learning_rate * self.state.schedule.fraction(position.step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        optimizer.step()
        self.state.average.update()
        position.step += 1
        position.batch += 1
        position.loss_sum += loss
        position.loss_count += 1
        position.gradient_norm = norm
        self.logs.stepped(position.step, loss, rate)
        return loss

    def _unsolved(self, error: ConvergenceError, skip: str) -> ConvergenceError:
        """The error of a solve, with what to do about it."""
        return ConvergenceError(
            f"step {self.position.step}: {error}; lower optimizer.learning_rate and resume, or "
            f"leave the structure out by data.{skip}; {self.config.output / 'last.pt'} is as it was"
        )

    def batch(self, epoch: int, number: int) -> list[int]:
        """Indices of a joint batch; the order depends on the seed and the epoch alone."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + epoch)
            order = torch.randperm(len(self.data.train), generator=generator).tolist()
            self._order = (epoch, order)
        start = number * self.config.batch_size
        return self._order[1][start : start + self.config.batch_size]

    def _clip_gradients(self) -> float:
        """Scale the gradients to the largest norm allowed; returns their norm before."""
        largest = self.config.gradient_clip
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        return float(torch.nn.utils.clip_grad_norm_(parameters, largest or math.inf))

    # --- validation -------------------------------------------------------------------------------

    def validate(self) -> Record:
        """Validate the averaged weights, report, and keep them if they are the best so far."""
        position, config = self.position, self.config
        try:
            with self.state.average.applied():
                loss, evaluation = self.objective.evaluate(self.data.valid, config.valid_batch_size)
        except ConvergenceError as error:
            raise self._unsolved(error, "skip_valid") from None
        if not math.isfinite(loss):
            raise ConvergenceError(
                f"step {position.step}: the validation loss is {loss}; look for atoms much too "
                "close to each other among the validation structures (data.skip_valid leaves them "
                f"out), or lower optimizer.learning_rate; {config.output / 'last.pt'} is as it was"
            )
        record = Record(
            step=position.step,
            epoch=position.epoch,
            minutes=self._seconds() / 60,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            train_loss=position.loss_sum / max(1, position.loss_count),
            valid_loss=loss,
            gradient_norm=position.gradient_norm,
            evaluation=evaluation,
        )
        position.validated_step = position.step
        position.loss_sum, position.loss_count = 0.0, 0
        is_best = loss < position.best_loss
        if is_best:
            position.best_loss = loss
            self._first_only(lambda: self._save_best(record))
        self._first_only(lambda: self.logs.validated(record, is_best))
        return record

    def _end_epoch(self) -> None:
        if (self.position.epoch + 1) % self.config.validate_epochs == 0:
            self.state.schedule.validated(self.validate().valid_loss)
        self.position.epoch += 1
        self.position.batch = 0

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write ``last.pt``: all that the run depends on from here."""
        self.position.seconds = self._seconds()
        self._moment = self._saved = time.monotonic()
        extra = {"provenance": self._provenance(), "training": self.state.state_dict()}
        path = self.config.output / "last.pt"
        self._first_only(lambda: save_checkpoint(path, self.potential, extra))

    def _save_best(self, record: Record) -> None:
        provenance = {
            **self._provenance(),
            "valid_errors": {
                name: asdict(error) for name, error in record.evaluation.errors.items()
            },
            "valid_loss": record.valid_loss,
        }
        with self.state.average.applied():
            path = self.config.output / "best.pt"
            save_checkpoint(path, self.potential, {"provenance": provenance})

    def _provenance(self) -> dict[str, Any]:
        return {
            "data": self.data.provenance,
            "charges": self.data.charges,
            "reference": reference_record(self.data, self.potential, self.config),
            "config": self.config.model_dump(mode="json"),
            "step": self.position.step,
            "torch": str(torch.__version__),
        }

    def resume(self) -> None:
        """Take up the run from ``last.pt``; errors as :func:`load_resumable`."""
        path = self.config.output / "last.pt"
        checkpoint = load_resumable(path, self.config, self.data.provenance)
        self.potential.load_state_dict(checkpoint.potential.state_dict())
        self.state.load_state_dict(checkpoint.extra["training"])
        if not same_measure(checkpoint.extra["provenance"], self._provenance()):
            self.logs.line("loss or validation set have changed: the best so far no longer counts")
            self.position.best_loss = math.inf
            self.state.schedule.forget()

    # --- beginnings and endings -------------------------------------------------------------------

    def _seconds(self) -> float:
        """Time spent training, over all resumes."""
        return self.position.seconds + time.monotonic() - self._moment

    def _ending(self, stop: StopRequest) -> int:
        """Why to stop now, if at all; the same answer in every process."""
        limit = self.config.max_minutes
        ending = RUNNING
        if stop:
            ending = INTERRUPTED
        elif limit is not None and self._seconds() > 60 * limit:
            ending = OUT_OF_TIME
        elif self.position.step >= self.total_steps or self.state.schedule.exhausted:
            ending = FINISHED
        return self.processes.maximum(ending)

    def _stopped_by(self, stop: StopRequest) -> str:
        """Name of the signal, whichever process it came to.

        The processes meet here, so that none ends, at which torchrun ends the others, before the
        first has saved.
        """
        number = self.processes.maximum(0 if stop.name is None else Signals[stop.name])
        return Signals(number).name

    def _begin(self) -> None:
        self._moment = self._saved = time.monotonic()
        self._first_only(lambda: self.logs.start(self.position.step))
        data = self.data
        parameters = sum(p.numel() for p in self.potential.parameters() if p.requires_grad)
        self.logs.line(
            f"{parameters} parameters, {len(data.train)} training and {len(data.valid)} "
            f"validation structures, {self.total_steps} steps of {self.config.batch_size}, "
            f"{self.processes.size} process(es) on {self.processes.device} with "
            f"{torch.get_num_threads()} thread(s)"
        )
        for line in describe_data(data, self.config):
            self.logs.line(line)
        for line in self.notes if self.position.step == 0 else ():
            self.logs.line(f"initial: {line}")
        if self.position.step > 0:
            self.logs.line(f"resumed at step {self.position.step}, epoch {self.position.epoch}")

    def _say_end(self, ending: int, stopped_by: str | None) -> None:
        reason = {
            FINISHED: "finished",
            OUT_OF_TIME: "time is up (max_minutes)",
            INTERRUPTED: f"stopped by {stopped_by}",
        }[ending]
        self.logs.line(
            f"{reason} at step {self.position.step} after {clock(self.position.seconds)}; "
            f"best validation loss {self.position.best_loss:.4g}; "
            f"saved {self.config.output / 'last.pt'}"
        )

    def _first_only(self, action: Callable[[], object]) -> None:
        """What only one of several processes may do: write files."""
        if self.processes.is_first:
            action()
