"""Relaxation of atoms and cell to the nearest minimum of energy or enthalpy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.io import Trajectory
from ase.optimize import BFGS, FIRE, LBFGS
from numpy.typing import NDArray
from pydantic import Field, model_validator

from phicalc.checks.settings import Positive, Settings
from phicalc.errors import (
    ConfigError,
    ConvergenceError,
    OutputError,
    SimulationError,
    StoppedError,
    UnsupportedError,
)
from phicalc.machine.files import refuse_existing, replacing
from phicalc.machine.signals import Interrupted, StopRequest, stop_on_signals
from phicalc.workflows.constraints.merging import apply_constraints
from phicalc.workflows.frames import TrajFile, as_extxyz, snapshot
from phicalc.workflows.records import as_table
from phicalc.workflows.same_calculator import (
    check_same_calculator,
    check_same_constraints,
    described,
)
from phicalc.workflows.simulation import Simulation
from phicalc.workflows.symmetry import keep_symmetry, space_group
from phicalc.workflows.watching import Display

_OPTIMIZERS = {"fire": FIRE, "bfgs": BFGS, "lbfgs": LBFGS}


VOLUME_CHANGE = 4.0
"""Factor by which the volume may change, up or down, before a relaxation counts as run away."""

FLIGHT = 100.0
"""Å by which a structure that is not periodic may grow, likewise."""


class RelaxSettings(Settings):
    """A relaxation. Lengths in Å, energies in eV, pressures in GPa."""

    optimizer: Literal["fire", "bfgs", "lbfgs"] = Field(
        "bfgs", description="minimiser: bfgs for some hundred atoms at most; fire where others fail"
    )
    steps: int = Field(500, ge=1, description="most steps to take")
    max_force: Positive = Field(0.01, description="largest force left, eV/Å")
    max_stress: Positive = Field(0.01, description="largest stress left beside the pressure, GPa")
    cell: Literal["fixed", "full", "volume", "shape"] = Field(
        "fixed", description="what of the cell may change"
    )
    pressure: float = Field(0.0, description="pressure on the cell, GPa; with cell full or volume")
    keep_symmetry: bool = Field(False, description="keep the space group")
    symmetry_tolerance: Positive = Field(
        1e-3, description="distance by which atoms may miss their symmetric places, Å"
    )
    fixed_atoms: tuple[int, ...] = Field((), description="atoms that do not move, from 0")

    @model_validator(mode="after")
    def _check_pressure(self) -> "RelaxSettings":
        if self.pressure != 0.0 and self.cell not in ("full", "volume"):
            raise ValueError(f"pressure: expected cell full or volume, got {self.cell}")
        return self


@dataclass(frozen=True)
class RelaxResult:
    """A converged relaxation.

    Attributes
    ----------
    atoms
        The relaxed structure with the calculator.
    steps
        Steps taken since the very start.
    history
        One record for each step of this call: step, energy_eV, max_force_eV_A, max_stress_GPa
        (where the cell moves), volume_A3 (of crystals).
    energy, initial_energy
        In eV, at the end and at the beginning of this call.
    max_force
        Largest force left, eV/Å.
    max_stress
        Largest stress left beside the pressure in GPa, None where the cell is fixed.
    space_group, initial_space_group
        Such as "Fm-3m (225)"; None for molecules and surfaces.
    trajectory, structure
        The files of all steps and of the relaxed structure, None without a folder.
    """

    atoms: Atoms
    steps: int
    history: NDArray[np.void]
    energy: float
    initial_energy: float
    max_force: float
    max_stress: float | None
    space_group: str | None
    initial_space_group: str | None
    trajectory: Path | None
    structure: Path | None


class Relaxation(Simulation):
    """Relaxation with any ASE calculator.

        result = Relaxation(atoms, RelaxSettings(cell="full"), folder="run").run()

    Writes `relax.traj`, a frame for each step, and at the end `relax-final.extxyz`. A relaxation
    that ended early continues from its last frame with `run(restart=True)`.

    Parameters
    ----------
    atoms
        The start, with a calculator; not modified.
    settings
        What to do.
    folder
        Where to write; None: nowhere.
    name
        Start of the files' names.

    Raises
    ------
    ConfigError, StructureError, UnsupportedError
        Settings, structure and calculator that do not go together.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: RelaxSettings,
        folder: str | Path | None = None,
        name: str = "relax",
    ) -> None:
        super().__init__(atoms, folder, name)
        self.settings = settings
        if settings.cell != "fixed":
            if not atoms.pbc.all():
                raise UnsupportedError(
                    f"cell: expected a structure periodic in three directions to change its cell, "
                    f"got pbc {atoms.pbc.tolist()}"
                )
            if "stress" not in atoms.calc.implemented_properties:
                raise UnsupportedError("cell: expected a calculator with stress")
        self._initial_space_group = space_group(self.atoms, settings.symmetry_tolerance)
        self.atoms.arrays.pop("momenta", None)  # relaxed atoms are at rest
        apply_constraints(self.atoms, settings.fixed_atoms, water=False)
        if settings.keep_symmetry:
            keep_symmetry(self.atoms, settings.symmetry_tolerance)

    def run(self, *, restart: bool = False, progress: bool = False) -> RelaxResult:
        """Relax until forces and stress are small enough.

        Parameters
        ----------
        restart
            Continue from the last frame; from the start where there is none yet.
        progress
            Show a bar and the largest force.

        Raises
        ------
        ConvergenceError
            Still not converged after the allowed steps, or stopped by a signal; the steps so far
            are in the trajectory.
        SimulationError
            The forces became NaN, the calculator refused a structure, or the structure collapsed
            or flew apart.
        ConfigError
            Restarted with another structure, calculator or constraints.
        OutputError
            A file is in the way or cannot be written.
        StructureError, UnsupportedError
            The calculator refuses the structure.
        """
        stem = self.begin()
        trajectory = None if stem is None else TrajFile(stem.with_name(f"{self.name}.traj"))
        structure = None if stem is None else stem.with_name(f"{self.name}-final.extxyz")
        first = 0
        if trajectory is not None and structure is not None:
            if restart and trajectory.path.exists() and trajectory.path.stat().st_size:
                first = self._continue_from(trajectory.path)
            else:
                refuse_existing(trajectory.path, structure)
        rows: list[dict[str, float]] = []
        self._volume = abs(self.atoms.cell.volume) or 1.0
        self._extent = _extent(self.atoms)
        try:
            with (
                stop_on_signals() as stop,
                Display(first + self.settings.steps, self.name, progress) as bar,
            ):
                for step, row in enumerate(_interruptible(self._steps(), stop), start=first):
                    rows.append({"step": step} | row)
                    if trajectory is not None and not (step == first and first > 0):
                        _append(trajectory, snapshot(self.atoms, step=step))
                    bar.show(step, f"{row['max_force_eV_A']:.3g} eV/Å")
                    if self._converged(row) or stop:
                        break
                    self._check_bounds(row)
        except Interrupted:
            _reset(self.atoms.calc)
        finally:
            if trajectory is not None:
                trajectory.close()
        if not rows or not self._converged(rows[-1]):
            self._fail(first + max(len(rows) - 1, 0), rows, stop.name)
        if structure is not None:
            with replacing(structure) as new:
                new.write_text(as_extxyz(snapshot(self.atoms, step=step)), encoding="utf-8")
        return RelaxResult(
            atoms=self.atoms,
            steps=step,
            history=as_table(rows),
            energy=row["energy_eV"],
            initial_energy=rows[0]["energy_eV"],
            max_force=row["max_force_eV_A"],
            max_stress=row.get("max_stress_GPa"),
            space_group=space_group(self.atoms, self.settings.symmetry_tolerance),
            initial_space_group=self._initial_space_group,
            trajectory=None if trajectory is None else trajectory.path,
            structure=structure,
        )

    def _continue_from(self, path: Path) -> int:
        """Take the last frame's positions and cell; the number of steps done until then."""
        try:
            with Trajectory(path) as frames:
                frame = frames[-1]
        except Exception as error:
            raise OutputError(f"expected the trajectory of a relaxation, got {path}") from error
        for name, kept, now in (
            ("elements", frame.numbers, self.atoms.numbers),
            ("pbc", frame.pbc, self.atoms.pbc),
        ):
            if not np.array_equal(kept, now):
                raise ConfigError(f"restart: expected the structure in {path}, got other {name}")
        constraints = described(self.atoms.constraints)
        check_same_constraints(path, described(frame.constraints), constraints)
        self.atoms.set_cell(frame.cell, apply_constraint=False)
        self.atoms.set_positions(frame.positions, apply_constraint=False)
        check_same_calculator(path, {} if frame.calc is None else frame.calc.results, self.atoms)
        return int(frame.info.get("step", 0))

    def _steps(self) -> Iterator[dict[str, float]]:
        """What is left to relax, at the start and after each step."""
        settings = self.settings
        target: Any = self.atoms
        if settings.cell != "fixed":
            target = FrechetCellFilter(
                self.atoms,
                scalar_pressure=settings.pressure * units.GPa,
                hydrostatic_strain=settings.cell == "volume",
                constant_volume=settings.cell == "shape",
            )
        optimizer = _OPTIMIZERS[settings.optimizer](target, logfile=None)
        try:
            for _ in optimizer.irun(fmax=0.0, steps=settings.steps):
                yield self._residuals()
        except (ValueError, RuntimeError, ArithmeticError) as error:
            raise SimulationError(f"the relaxation broke off: {error}") from error

    def _residuals(self) -> dict[str, float]:
        """Energy, largest force, largest stress beside the pressure, volume."""
        forces = self.atoms.get_forces()
        row = {
            "energy_eV": float(self.atoms.get_potential_energy()),
            "max_force_eV_A": float(np.sqrt((forces**2).sum(axis=1)).max()),
        }
        if not np.isfinite(list(row.values())).all():
            raise SimulationError("the energy or the forces are NaN or infinite")
        if self.settings.cell != "fixed":
            stress = self.atoms.get_stress(voigt=False) / units.GPa
            excess = stress + self.settings.pressure * np.eye(3)
            mean = np.trace(excess) / 3.0 * np.eye(3)
            part = {"full": excess, "volume": mean, "shape": excess - mean}[self.settings.cell]
            row["max_stress_GPa"] = float(np.abs(part).max())
        if self.atoms.pbc.all():
            row["volume_A3"] = float(self.atoms.get_volume())
        return row

    def _check_bounds(self, row: dict[str, float]) -> None:
        """Stop a structure that collapses or flies apart, before its neighbours fill the memory."""
        ratio, spread = row.get("volume_A3", self._volume) / self._volume, _extent(self.atoms)
        problem = None
        if not 1.0 / VOLUME_CHANGE < ratio < VOLUME_CHANGE:
            problem = f"the volume is {ratio:.3g} times that of the start (limits 1/4 and 4)"
        elif spread > self._extent + FLIGHT:
            problem = f"the atoms are spread over {spread:.4g} Å, {self._extent:.4g} Å at the start"
        if problem is not None:
            raise SimulationError(
                f"the relaxation ran away: {problem}; the model has no minimum near this "
                "structure; a restart goes on from the last frame, if this was meant"
            )

    def _converged(self, row: dict[str, float]) -> bool:
        return (
            row["max_force_eV_A"] <= self.settings.max_force
            and row.get("max_stress_GPa", 0.0) <= self.settings.max_stress
        )

    def _fail(self, step: int, rows: list[dict[str, float]], signal: str | None) -> None:
        left = ""
        if rows:
            row = rows[-1]
            left = f": {row['max_force_eV_A']:.3g} eV/Å (limit {self.settings.max_force:g})"
            if "max_stress_GPa" in row:
                left += f" and {row['max_stress_GPa']:.3g} GPa (limit {self.settings.max_stress:g})"
            left += " left"
        if signal is not None:
            raise StoppedError(
                f"relaxation stopped by {signal} after {step} steps{left}; restart it",
                signal,
            )
        raise ConvergenceError(
            f"relaxation not converged after {step} steps{left}; restart it with more "
            "steps, or try another optimizer"
        )


def _extent(atoms: Atoms) -> float:
    """Longest extension along an axis that is not periodic, Å."""
    sizes = np.ptp(atoms.positions, axis=0)[~atoms.pbc] if not atoms.pbc.all() else [0.0]
    return float(np.max(sizes))


def _interruptible(
    steps: Iterator[dict[str, float]], stop: StopRequest
) -> Iterator[dict[str, float]]:
    """The same, each step ended at once by a signal."""
    while True:
        with stop.interrupting():
            row = next(steps, None)
        if row is None:
            return
        yield row


def _reset(calculator: Any) -> None:
    """An evaluation that was interrupted is forgotten."""
    reset = getattr(calculator, "reset", None)
    if reset is not None:
        reset()


def _append(trajectory: TrajFile, frame: Atoms) -> None:
    """Write a frame, or leave the file as it was before."""
    mark = trajectory.mark()
    try:
        trajectory.append_frame(frame)
    except OSError as error:
        trajectory.cut(mark)
        raise OutputError(f"cannot write {trajectory.path}: {error.strerror or error}") from error
