"""From settings and atoms to an integrator: velocities, degrees of freedom, constraints."""

import numpy as np
from ase import Atoms, units

from phicalc.errors import UnsupportedError
from phicalc.workflows.constraints.freedom import (
    free_motions,
    outer_forces,
    quiet,
    removed_by_constraints,
    take_out,
)
from phicalc.workflows.md.integrators import (
    NVE,
    FullCellNPT,
    Integrator,
    IsotropicNPT,
    Langevin,
    NoseHooverChain,
    StochasticRescaling,
)
from phicalc.workflows.md.settings import MDSettings


def check_ensemble(atoms: Atoms, settings: MDSettings) -> None:
    """The integrator can treat this structure.

    Raises
    ------
    UnsupportedError
        Constant pressure with constraints, without a three-dimensional cell or without stress.
    """
    if not settings.constant_pressure:
        return
    if atoms.constraints:
        raise UnsupportedError(
            f"{settings.ensemble}: expected no constraints, got "
            f"{type(atoms.constraints[0]).__name__}; use a constant volume"
        )
    if not atoms.pbc.all():
        raise UnsupportedError(
            f"{settings.ensemble}: expected a cell periodic in three directions, got pbc "
            f"{atoms.pbc.tolist()}"
        )
    if "stress" not in atoms.calc.implemented_properties:
        raise UnsupportedError(f"{settings.ensemble}: expected a calculator with stress")


def prepare_momenta(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> None:
    """The momenta that a run begins with.

    Momenta that are not all zero are kept, others are drawn from the Maxwell–Boltzmann
    distribution of the starting temperature. Drawn ones have no drift and, out of a cell, no
    rotation, as far as no constraint hinders these; thermostats that rescale momenta could never
    thermalise either, so there both are taken out of given momenta too, unless something outside
    acts on the atoms.

    Parameters
    ----------
    atoms
        With a calculator; its momenta change.
    settings
        Temperature (K) and ensemble.
    rng
        Source of the velocities.
    """
    temperature = settings.target_temperature(0)
    drawn = temperature > 0.0 and not atoms.get_momenta().any()
    if drawn:
        widths = np.sqrt(units.kB * temperature * atoms.get_masses())
        atoms.set_momenta(widths[:, None] * rng.standard_normal((len(atoms), 3)))
    if len(atoms) < 2:
        return
    motions = free_motions(atoms)
    rescaled = settings.ensemble not in ("nve", "langevin")
    if drawn or (rescaled and quiet(motions, outer_forces(atoms)) == len(motions)):
        take_out(atoms, motions)


def degrees_of_freedom(atoms: Atoms, settings: MDSettings) -> int:
    """Number of velocities that the bath heats: 3N − constraints − conserved momenta.

    Linear (and, out of a cell, angular) momentum counts as conserved when it is zero, nothing
    outside acts on the atoms, no constraint hinders it, and the integrator leaves it alone.
    Langevin's does not.

    Raises
    ------
    UnsupportedError
        Nothing is left to move, or constraints of which that is not known.
    """
    free = 3 * len(atoms) - removed_by_constraints(atoms)
    if settings.ensemble != "langevin":
        free -= quiet(free_motions(atoms), outer_forces(atoms), atoms.get_momenta())
    if free < 1:
        raise UnsupportedError(
            f"{settings.ensemble}: expected at least one degree of freedom, got none with "
            f"{len(atoms)} atoms; use langevin, or more atoms"
        )
    return free


def build_integrator(
    atoms: Atoms, settings: MDSettings, freedom: int, rng: np.random.Generator
) -> Integrator:
    """The integrator of the settings' ensemble at the bath's first temperature and pressure."""
    timestep = settings.timestep * units.fs
    relaxation = settings.thermostat_time * units.fs
    temperature = settings.target_temperature(0)
    if settings.ensemble == "nve":
        return NVE(atoms, timestep)
    if settings.ensemble == "langevin":
        return Langevin(atoms, timestep, temperature, relaxation, rng)
    if settings.ensemble == "nose-hoover":
        return NoseHooverChain(atoms, timestep, temperature, relaxation, freedom)
    if settings.ensemble == "bussi":
        return StochasticRescaling(atoms, timestep, temperature, relaxation, freedom, rng)
    constant_pressure = IsotropicNPT if settings.ensemble == "npt" else FullCellNPT
    return constant_pressure(
        atoms,
        timestep,
        temperature_K=temperature,
        pressure_au=settings.target_pressure(0) * units.GPa,
        tdamp=relaxation,
        pdamp=settings.barostat_time * units.fs,
        degrees_of_freedom=freedom,
    )
