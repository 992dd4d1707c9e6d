"""Stop a simulation where its numbers no longer mean anything."""

import numpy as np
from ase import Atoms, units

from phicalc.errors import ConfigError
from phicalc.workflows.md.settings import GuardSettings


class Guards:
    """Looks at each step; says in one line what is wrong, or nothing.

    Parameters
    ----------
    settings
        The limits.
    degrees_of_freedom
        By which the kinetic energy makes a temperature.
    """

    def __init__(self, settings: GuardSettings, degrees_of_freedom: int) -> None:
        self.settings = settings
        self.degrees_of_freedom = degrees_of_freedom
        self._last_energy: float | None = None

    def complaint(self, atoms: Atoms) -> str | None:
        """What is wrong with the atoms at this step, None where all is well.

        Raises
        ------
        ConfigError
            A limit on the committee's spread, and no committee.
        """
        energy = float(atoms.get_potential_energy())
        momenta = atoms.get_momenta()
        # every integrator ends its step with the forces' kick: NaN forces are in the momenta
        finite = np.isfinite(momenta).all(axis=1)
        if not finite.all():
            return f"the forces on {_atom(atoms, int(np.argmin(finite)))} are NaN or infinite"
        if not np.isfinite(energy):
            return f"the potential energy is {energy}"
        speeds = np.sqrt((momenta**2).sum(axis=1)) / atoms.get_masses() * units.fs
        if speeds.max() > self.settings.max_speed:
            return (
                f"{_atom(atoms, int(np.argmax(speeds)))} moves at {speeds.max():.3g} Å/fs "
                f"(limit {self.settings.max_speed:g})"
            )
        temperature = 2.0 * atoms.get_kinetic_energy() / (self.degrees_of_freedom * units.kB)
        if temperature > self.settings.max_temperature:
            return (
                f"the temperature is {temperature:.4g} K (limit {self.settings.max_temperature:g})"
            )
        return self._energy_complaint(energy, len(atoms)) or self._spread_complaint(atoms)

    def _energy_complaint(self, energy: float, count: int) -> str | None:
        before, self._last_energy = self._last_energy, energy
        if before is None or abs(energy - before) <= self.settings.max_energy_jump * count:
            return None
        return (
            f"the potential energy went from {before:.6g} to {energy:.6g} eV in one step "
            f"(limit {self.settings.max_energy_jump:g} eV per atom)"
        )

    def _spread_complaint(self, atoms: Atoms) -> str | None:
        if self.settings.max_spread is None:
            return None
        spread = np.asarray(getattr(atoms.calc, "forces_spread", 0.0))
        if not spread.any():
            raise ConfigError(
                "max_spread: expected a committee of models, got a calculator whose forces_spread "
                "is missing or zero; give several models, or no max_spread"
            )
        largest = float(spread.max())
        if largest <= self.settings.max_spread:
            return None
        return (
            f"the committee disagrees by {largest:.3g} eV/Å about the forces "
            f"(limit {self.settings.max_spread:g}); the models do not know this structure"
        )


def _atom(atoms: Atoms, index: int) -> str:
    return f"atom {index} ({atoms.symbols[index]})"
