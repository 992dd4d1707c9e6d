"""The files of one run: trajectories and log that grow, and the checkpoint they are cut back to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from phicalc.errors import OutputError
from phicalc.machine.files import refuse_existing, replacing
from phicalc.workflows.figures import save_figure
from phicalc.workflows.frames import ExtxyzFile, Mark, TrajFile, as_extxyz
from phicalc.workflows.md.checkpoint import Checkpoint
from phicalc.workflows.md.figures import draw_dynamics
from phicalc.workflows.md.log import LogFile, read_log
from phicalc.workflows.records import as_table


class RunFiles:
    """What a run writes; without a folder, the table in memory and nothing else.

    Parameters
    ----------
    stem
        Start of the files' paths, in a folder that exists; None: write nothing.
    formats
        Of the trajectory: "traj", "extxyz" or both.
    """

    def __init__(self, stem: Path | None, formats: tuple[str, ...]) -> None:
        self.trajectories: list[TrajFile | ExtxyzFile] = []
        self.log: LogFile | None = None
        self.checkpoint: Path | None = None
        self.stopped: Path | None = None
        self.picture: Path | None = None
        self._rows: list[dict[str, float]] = []
        self._marks: dict[str, Mark] = {}
        if stem is None:
            return
        name = stem.name
        for kind in formats:
            path = stem.with_name(f"{name}.{kind}")
            self.trajectories.append(TrajFile(path) if kind == "traj" else ExtxyzFile(path))
        self.log = LogFile(stem.with_name(f"{name}.log"))
        self.checkpoint = stem.with_name(f"{name}.checkpoint")
        self.picture = stem.with_name(f"{name}.png")
        self.stopped = stem.with_name(f"{name}-stopped.extxyz")

    def begin(self) -> None:
        """Make sure that no earlier run is in the way.

        Raises
        ------
        OutputError
            One is.
        """
        if self.checkpoint is not None:
            refuse_existing(self.checkpoint, *(file.path for file in self._growing))

    def load(self) -> Checkpoint | None:
        """The last checkpoint, None where there is none.

        Raises
        ------
        ModelFileError
            The file is something else.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        return Checkpoint.load(self.checkpoint)

    def cut(self, checkpoint: Checkpoint) -> None:
        """Drop whatever was written after this checkpoint.

        Raises
        ------
        OutputError
            A file is missing, or shorter than it was then.
        """
        self._marks = checkpoint.outputs
        for file in self._growing:
            mark = self._marks.get(file.path.name, {"bytes": 0})
            if mark["bytes"] and file.mark()["bytes"] < mark["bytes"]:
                raise OutputError(
                    f"{file.path} is shorter than at the last checkpoint; put it back, or begin "
                    "a new run in another folder"
                )
        self._cut()

    def save(self, checkpoint: Checkpoint) -> None:
        """Make the present moment the one to which a restart returns.

        Raises
        ------
        OutputError
            The disk is full, or the like; all files are as at the checkpoint before.
        """
        if self.checkpoint is None:
            return
        with self._writing():
            marks = {file.path.name: file.mark() for file in self._growing}
            replace(checkpoint, outputs=marks).save(self.checkpoint)
            self._marks = marks

    def append_frame(self, frame: Atoms) -> None:
        """Write a frame to every trajectory.

        Raises
        ------
        OutputError
            As `save`.
        """
        with self._writing():
            for file in self.trajectories:
                file.append_frame(frame)

    def append_row(self, row: dict[str, float]) -> None:
        """Write a row of the table.

        Raises
        ------
        OutputError
            As `save`.
        """
        if self.log is None:
            self._rows.append(row)
            return
        with self._writing():
            self.log.append_row(row)

    def save_stopped(self, frame: Atoms) -> str:
        """Keep the frame at which a guard stopped the run; says where."""
        if self.stopped is None:
            return "the frame was not saved, for want of a folder"
        with replacing(self.stopped) as new:
            new.write_text(as_extxyz(frame), encoding="utf-8")
        return f"the frame is in {self.stopped}"

    def table(self) -> NDArray[np.void]:
        """All rows since the start of the run."""
        if self.log is None or not self.log.path.exists():
            return as_table(self._rows)
        return read_log(self.log.path)

    def draw(self) -> Path | None:
        """The table as a picture; None without a folder, or before there is a curve.

        Raises
        ------
        OutputError
            It cannot be written; all other files are whole.
        """
        table = self.table()
        if self.picture is None or len(table) < 2:
            return None
        with replacing(self.picture) as new:
            save_figure(draw_dynamics(table), new)
        return self.picture

    def close(self) -> None:
        """Let go of all files."""
        for file in self._growing:
            file.close()

    @property
    def _growing(self) -> list[TrajFile | ExtxyzFile | LogFile]:
        return [*self.trajectories, *([] if self.log is None else [self.log])]

    def _cut(self) -> None:
        for file in self._growing:
            file.cut(self._marks.get(file.path.name, {"bytes": 0, "items": 0, "table": 0}))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Where writing fails, leave the files as at the last checkpoint."""
        try:
            yield
        except (OSError, OutputError) as error:
            self._cut()
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"cannot write to {self.checkpoint.parent if self.checkpoint else '.'}: {reason}; "
                "all files are whole up to the last checkpoint: make room and restart"
            ) from error
