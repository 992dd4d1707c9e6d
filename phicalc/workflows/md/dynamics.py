"""Molecular dynamics that can be killed at any moment and continued to the last bit."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.typing import NDArray

from phicalc.errors import ConfigError, SimulationError, UnsupportedError
from phicalc.machine.signals import stop_on_signals
from phicalc.workflows.constraints.freedom import removed_by_constraints
from phicalc.workflows.constraints.merging import apply_constraints
from phicalc.workflows.frames import snapshot
from phicalc.workflows.md.checkpoint import Checkpoint, read_structure, restore_structure
from phicalc.workflows.md.ensemble import (
    build_integrator,
    check_ensemble,
    degrees_of_freedom,
    prepare_momenta,
)
from phicalc.workflows.md.files import RunFiles
from phicalc.workflows.md.guards import Guards
from phicalc.workflows.md.integrators import Integrator, read_state, restore_state
from phicalc.workflows.md.log import counters, observables
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.remarks import on_momenta
from phicalc.workflows.same_calculator import (
    check_same_calculator,
    check_same_constraints,
    described,
    results_to_compare,
)
from phicalc.workflows.simulation import Simulation
from phicalc.workflows.watching import Display


@dataclass(frozen=True)
class MDResult:
    """What a run did.

    Attributes
    ----------
    atoms
        The structure and momenta at the end, with the calculator.
    steps
        Time steps done since the very start.
    stopped_by
        Name of the signal that ended the run early, None for a complete run.
    log
        The table since the very start, one record per row: step, time_fs, temperature_K,
        potential_eV, kinetic_eV, conserved_eV, (pressure_GPa, density_g_cm3,) ns_per_day and the
        calculator's counters.
    ns_per_day
        Speed of this call.
    trajectories
        The trajectory files.
    picture
        Temperature, energies and conserved quantity against time; None without a folder.
    """

    atoms: Atoms
    steps: int
    stopped_by: str | None
    log: NDArray[np.void]
    ns_per_day: float
    trajectories: tuple[Path, ...]
    picture: Path | None


class MolecularDynamics(Simulation):
    """Molecular dynamics of a structure with any ASE calculator.

        settings = MDSettings(steps=10_000, temperature=300, ensemble="nose-hoover")
        result = MolecularDynamics(atoms, settings, folder="run").run(progress=True)

    Writes `md.traj` (or `md.extxyz`), `md.log`, `md.checkpoint` and, when it ends, `md.png`. A
    run that ended early, in whatever way, continues with `run(restart=True)` from its last
    checkpoint: what was written after that is cut off and computed again, the same to the last
    bit on one thread. To that end the calculator forgets its history (ASE's `reset`) at every
    checkpoint, restarted or not.

    Parameters
    ----------
    atoms
        The start, with a calculator; not modified. Momenta that are not all zero are kept
        (thermostats other than Langevin's take out the drift), others drawn at the starting
        temperature.
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
        settings: MDSettings,
        folder: str | Path | None = None,
        name: str = "md",
    ) -> None:
        super().__init__(atoms, folder, name)
        apply_constraints(self.atoms, settings.fixed_atoms, settings.rigid_water)
        check_ensemble(self.atoms, settings)
        self.remarks += on_momenta(self.atoms)
        self.settings = settings

    def run(self, *, restart: bool = False, progress: bool = False) -> MDResult:
        """Run to the last step, or to the first SIGINT or SIGTERM.

        Parameters
        ----------
        restart
            Continue from the last checkpoint; from the start where there is none yet.
        progress
            Show a bar with the time left.

        Raises
        ------
        SimulationError
            A guard found something wrong; the frame is in `md-stopped.extxyz`.
        OutputError
            A file is in the way, or cannot be written; everything up to the last checkpoint is
            whole, and the run can be restarted from there.
        StructureError, UnsupportedError
            The calculator refuses the structure, or a property asked for.
        """
        self._check_properties()
        files = RunFiles(self.begin(), self.settings.formats)
        checkpoint = files.load() if restart else None
        if checkpoint is None:
            files.begin()
            run = _Run.begin(self.atoms, self.settings, files)
        else:
            run = _Run.resume(self.atoms, self.settings, files, checkpoint)
        try:
            with (
                stop_on_signals() as stop,
                Display(self.settings.steps, self.name, progress) as bar,
            ):
                run.arrive()
                while run.step < self.settings.steps and not stop:
                    run.advance()
                    run.arrive()
                    bar.show(run.step, f"{run.ns_per_day():.3g} ns/day")
        finally:
            files.close()
        return MDResult(
            atoms=self.atoms,
            steps=run.step,
            stopped_by=stop.name if run.step < self.settings.steps else None,
            log=files.table(),
            ns_per_day=run.ns_per_day(),
            trajectories=tuple(file.path for file in files.trajectories),
            picture=files.draw(),
        )

    def _check_properties(self) -> None:
        """A property that a model does not give is found before the first step, not after it."""
        for name in self.settings.properties:
            try:
                self.atoms.calc.get_property(name, self.atoms)
            except PropertyNotImplementedError as error:
                raise UnsupportedError(
                    f"properties: the calculator does not give {name!r} here ({error})"
                ) from error


class _Run:
    """A run under way: the integrator, the random numbers, the guards and the files."""

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        files: RunFiles,
        step: int,
        degrees_of_freedom: int,
        rng: np.random.Generator,
    ) -> None:
        self.atoms = atoms
        self.settings = settings
        self.files = files
        self.step = step
        self.degrees_of_freedom = degrees_of_freedom
        self.rng = rng
        self.guards = Guards(settings.guards, degrees_of_freedom)
        self.integrator: Integrator = build_integrator(atoms, settings, degrees_of_freedom, rng)
        self._first_step = step
        removed = removed_by_constraints(atoms)
        # extended XYZ holds no rigid bonds: who reads its velocities could not count them
        self._constrained = {"constrained_degrees_of_freedom": removed} if removed else {}
        self._started = time.perf_counter()

    @classmethod
    def begin(cls, atoms: Atoms, settings: MDSettings, files: RunFiles) -> "_Run":
        """From the structure as it was given."""
        _forget_history(atoms)
        rng = np.random.default_rng(settings.seed)
        prepare_momenta(atoms, settings, rng)
        run = cls(atoms, settings, files, 0, degrees_of_freedom(atoms, settings), rng)
        run._save()
        return run

    @classmethod
    def resume(
        cls, atoms: Atoms, settings: MDSettings, files: RunFiles, checkpoint: Checkpoint
    ) -> "_Run":
        """From a checkpoint of the same run."""
        changed = settings.changed(MDSettings(**checkpoint.settings))
        if changed:
            raise ConfigError(f"restart: expected the settings of the first run, but {changed[0]}")
        if checkpoint.step > settings.steps:
            raise ConfigError(
                f"steps: expected at least the {checkpoint.step} that the checkpoint has done, "
                f"got {settings.steps}"
            )
        place = files.checkpoint
        assert place is not None
        if checkpoint.constraints is not None:
            check_same_constraints(place, checkpoint.constraints, described(atoms.constraints))
        restore_structure(atoms, checkpoint.structure)
        _forget_history(atoms)
        check_same_calculator(place, checkpoint.results, atoms)
        files.cut(checkpoint)
        rng = np.random.default_rng()
        rng.bit_generator.state = checkpoint.random
        run = cls(atoms, settings, files, checkpoint.step, checkpoint.degrees_of_freedom, rng)
        restore_state(run.integrator, checkpoint.integrator)
        run._set_target()
        return run

    def advance(self) -> None:
        """One time step, forces at its end included."""
        self.step += 1
        self._set_target()
        try:
            self.integrator.step()
        except (ValueError, RuntimeError, ArithmeticError) as error:
            self._stop(str(error), error)

    def arrive(self) -> None:
        """Look at the step just reached; save and write what is due."""
        complaint = self.guards.complaint(self.atoms)
        if complaint is not None:
            self._stop(complaint)
        if self.step % self.settings.checkpoint_every == 0 and self.step > self._first_step:
            self._save()
            _forget_history(self.atoms)
        time_fs = self.step * self.settings.timestep
        if self.step % self.settings.trajectory_every == 0:
            info = {"step": self.step, "time_fs": time_fs} | self._constrained
            frame = snapshot(self.atoms, self.settings.properties, **info)
            self.files.append_frame(frame)
        if self.step % self.settings.log_every == 0:
            row = {"step": self.step, "time_fs": time_fs}
            row |= observables(self.atoms, self.integrator, self.degrees_of_freedom)
            row["ns_per_day"] = self.ns_per_day()
            self.files.append_row(row | counters(self.atoms.calc))

    def ns_per_day(self) -> float:
        """Simulated time per time since this call began."""
        nanoseconds = (self.step - self._first_step) * self.settings.timestep * 1e-6
        return nanoseconds / max(time.perf_counter() - self._started, 1e-9) * 86400.0

    def _set_target(self) -> None:
        self.integrator.set_target(
            self.settings.target_temperature(self.step),
            self.settings.target_pressure(self.step) * units.GPa,
        )

    def _save(self) -> None:
        self.files.save(
            Checkpoint(
                step=self.step,
                structure=read_structure(self.atoms),
                integrator=read_state(self.integrator),
                degrees_of_freedom=self.degrees_of_freedom,
                random=dict(self.rng.bit_generator.state),
                outputs={},
                settings=self.settings.model_dump(mode="json"),
                results=results_to_compare(self.atoms),
                constraints=described(self.atoms.constraints),
            )
        )

    def _stop(self, complaint: str, cause: Exception | None = None) -> NoReturn:
        time_fs = self.step * self.settings.timestep
        where = self.files.save_stopped(snapshot(self.atoms, step=self.step, time_fs=time_fs))
        raise SimulationError(
            f"stopped at step {self.step} ({time_fs:g} fs): {complaint}; {where}"
        ) from cause


def _forget_history(atoms: Atoms) -> None:
    """Let the calculator start anew, as it does after a restart, with forces at this step.

    A neighbour list or a solver's guess that is a few steps old changes the last bits of the
    forces, by which a restarted trajectory would leave the uninterrupted one.
    """
    reset = getattr(atoms.calc, "reset", None)
    if reset is not None:
        reset()
    atoms.get_forces()
