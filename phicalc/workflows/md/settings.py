"""What a molecular-dynamics run is asked to do."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from phicalc.checks.settings import Positive, Settings

Ensemble = Literal["nve", "langevin", "nose-hoover", "bussi", "npt", "npt-cell"]


class GuardSettings(Settings):
    """Limits beyond which a simulation is stopped, because no model means anything there."""

    max_speed: Positive = Field(0.3, description="largest speed of an atom, Å/fs")
    max_temperature: Positive = Field(2e4, description="largest kinetic temperature, K")
    max_energy_jump: Positive = Field(
        1.0, description="largest change of the potential energy in one step, eV per atom"
    )
    max_spread: Positive | None = Field(
        None,
        description="largest disagreement of a committee about a force, eV/Å (its calculator's "
        "forces_spread)",
    )


class MDSettings(Settings):
    """A molecular-dynamics run. Times in fs, temperatures in K, pressures in GPa.

    `temperature` and `pressure` may be lists: the target then goes linearly from value to value,
    in intervals of equal length over the whole run (a ramp: `[300, 600]`; up and down again:
    `[300, 600, 300]`).
    """

    steps: int = Field(ge=1, description="number of time steps")
    ensemble: Ensemble = Field(
        "langevin",
        description="integrator: nve; langevin (BAOAB), nose-hoover (chain) or bussi at constant "
        "temperature; npt (volume free) or npt-cell (whole cell free) at constant pressure too",
    )
    timestep: Positive = Field(1.0, description="time step, fs")
    temperature: Positive | tuple[Positive, ...] | None = Field(
        None,
        description="target temperature, K; several are a ramp; nve: of the starting velocities",
    )
    pressure: float | tuple[float, ...] = Field(
        0.0, description="target pressure, GPa, of npt and npt-cell; several are a ramp"
    )
    thermostat_time: Positive = Field(
        100.0, description="relaxation time of the thermostat, fs (Langevin: 1 / friction)"
    )
    barostat_time: Positive = Field(1000.0, description="relaxation time of the barostat, fs")
    seed: int = Field(0, ge=0, description="seed of the starting velocities and the thermostat")
    fixed_atoms: tuple[int, ...] = Field((), description="atoms that do not move, from 0")
    rigid_water: bool = Field(False, description="keep water molecules rigid (SHAKE, RATTLE)")
    trajectory_every: int = Field(100, ge=1, description="steps between frames")
    log_every: int = Field(100, ge=1, description="steps between rows of the log")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    formats: tuple[Literal["traj", "extxyz"], ...] = Field(
        ("traj",), description="trajectory files to write"
    )
    properties: tuple[str, ...] = Field(
        (),
        description="ASE properties to compute for each frame, beyond those that the calculator "
        "gives anyway, such as polarization",
    )
    guards: GuardSettings = GuardSettings()

    @model_validator(mode="after")
    def _check_bath(self) -> "MDSettings":
        for name in ("temperature", "pressure"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}: expected at least one value, got none")
        if self.ensemble != "nve" and self.temperature is None:
            raise ValueError(f"temperature: expected a value in K for {self.ensemble}, got none")
        if self.ensemble == "nve" and isinstance(self.temperature, tuple):
            raise ValueError("temperature: expected one value for nve, got a ramp")
        if not self.constant_pressure and self.pressure != 0.0:
            raise ValueError(f"pressure: expected npt or npt-cell, got {self.ensemble}")
        return self

    @property
    def constant_pressure(self) -> bool:
        """Whether the cell moves."""
        return self.ensemble in ("npt", "npt-cell")

    def target_temperature(self, step: int) -> float:
        """The bath's temperature (K) at a step; 0 where there is none."""
        return 0.0 if self.temperature is None else self._on_ramp(self.temperature, step)

    def target_pressure(self, step: int) -> float:
        """The bath's pressure (GPa) at a step."""
        return self._on_ramp(self.pressure, step)

    def changed(self, earlier: "MDSettings") -> list[str]:
        """Settings in which a continued run differs from the earlier one where it must not.

        The number of steps may change, unless a ramp is stretched over it.
        """
        ramp = isinstance(self.temperature, tuple) or isinstance(self.pressure, tuple)
        free = {"guards"} if ramp else {"guards", "steps"}
        return [
            f"{name} was {getattr(earlier, name)!r} and is {getattr(self, name)!r}"
            for name in type(self).model_fields
            if name not in free and getattr(self, name) != getattr(earlier, name)
        ]

    def _on_ramp(self, values: float | tuple[float, ...], step: int) -> float:
        if not isinstance(values, tuple):
            return values
        position = step / self.steps * (len(values) - 1)
        return float(np.interp(position, np.arange(len(values)), values))
