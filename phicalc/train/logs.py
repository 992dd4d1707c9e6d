"""What a training run tells: progress, lines, CSV, TensorBoard and the training curve."""

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from phicalc import fields
from phicalc.machine.files import prepare_folder, replacing
from phicalc.train.metrics import Evaluation
from phicalc.train.report import customary, describe_errors, write_training_curve

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LINE_SECONDS = 60.0
PICTURE_SECONDS = 30.0


@dataclass(frozen=True)
class Record:
    """One validation: where the run stood and what it found."""

    step: int
    epoch: int
    minutes: float
    learning_rate: float
    train_loss: float
    valid_loss: float
    gradient_norm: float
    evaluation: Evaluation

    def row(self) -> dict[str, float]:
        """The record as one row of the CSV file; column names bear the unit."""
        row: dict[str, float] = {
            "step": self.step,
            "epoch": self.epoch,
            "minutes": round(self.minutes, 3),
            "learning_rate": self.learning_rate,
            "train_loss": self.train_loss,
            "valid_loss": self.valid_loss,
            "gradient_norm": self.gradient_norm,
        }
        for name, error in self.evaluation.errors.items():
            if name != fields.ENERGY:
                shown = customary(error)
                row[f"{name}_mae [{shown.unit}]"] = shown.mae
                row[f"{name}_rmse [{shown.unit}]"] = shown.rmse
        return row


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Logs:
    """Writes everything a run tells; a process that is not the first gets a silent one."""

    def __init__(
        self, directory: Path, total_steps: int, *, tensorboard: bool, console: Console | None
    ) -> None:
        self.directory = directory
        self.total_steps = total_steps
        self.rows: list[dict[str, Any]] = []
        self.console = console or Console(soft_wrap=True, highlight=False, markup=False)
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._progress: Progress | None = None
        self._last_line = self._started = time.monotonic()
        self._last_picture = -math.inf
        self._first_step = 0
        self._valid = ""

    @property
    def csv_path(self) -> Path:
        """metrics.csv, one row per validation."""
        return self.directory / "metrics.csv"

    def start(self, step: int) -> None:
        """Begin at ``step``; rows that an interrupted run wrote beyond it are dropped."""
        prepare_folder(self.directory)
        self._first_step = step
        self._started = self._last_line = time.monotonic()
        if step > 0 and self.csv_path.exists():
            with self.csv_path.open(newline="", encoding="utf-8") as stream:
                self.rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= step]
        if self._tensorboard:
            self._writer = self._open_tensorboard(step)
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[eta]} left, loss {task.fields[loss]}{task.fields[valid]}"),
                console=self.console,
            )
            self._progress.add_task(
                "training", total=self.total_steps, completed=step, eta="?", loss="?", valid=""
            )
            self._progress.start()

    def _open_tensorboard(self, step: int) -> "SummaryWriter | None":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.line("tensorboard is not installed: no TensorBoard log (pip install tensorboard)")
            return None
        return SummaryWriter(self.directory / "tensorboard", purge_step=step + 1)

    def line(self, text: str) -> None:
        """Say something, above the progress bar where there is one."""
        self.console.print(text)

    def stepped(self, step: int, loss: float, learning_rate: float) -> None:
        """Show progress after an optimiser step."""
        now = time.monotonic()
        pace = (now - self._started) / max(1, step - self._first_step)
        eta = clock(pace * (self.total_steps - step))
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                completed=step,
                eta=eta,
                loss=f"{loss:.3g}",
                valid=self._valid,
            )
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.line(
                f"step {step}/{self.total_steps} loss {loss:.4g} rate {learning_rate:.2e} "
                f"{pace:.3f} s/step, {eta} left"
            )

    def validated(self, record: Record, is_best: bool) -> None:
        """Report a validation everywhere."""
        row = record.row()
        self.rows.append(row)
        self._write_csv()
        if time.monotonic() - self._last_picture > PICTURE_SECONDS:
            self._draw()
        if self._writer is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name.split(" ")[0], value, record.step)
            self._writer.flush()
        self._valid = ", valid " + describe_errors(record.evaluation.errors)
        self.line(
            f"epoch {record.epoch} step {record.step}/{self.total_steps} "
            f"{clock(60 * record.minutes)} rate {record.learning_rate:.2e} "
            f"loss {record.train_loss:.4g} valid {record.valid_loss:.4g}: "
            f"{describe_errors(record.evaluation.errors)}{' *' if is_best else ''}"
        )

    def _write_csv(self) -> None:
        """All rows anew: small, and a crash never leaves half a line behind."""
        with (
            replacing(self.csv_path) as new,
            new.open("w", newline="", encoding="utf-8") as stream,
        ):
            columns = dict.fromkeys(column for row in self.rows for column in row)
            writer = csv.DictWriter(stream, list(columns), restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def _draw(self) -> None:
        write_training_curve(self.rows, self.directory / "training_curve.png")
        self._last_picture = time.monotonic()

    def close(self) -> None:
        """Take down the progress bar, draw the final curve and flush the logs."""
        if self.rows:
            self._draw()
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()
