"""From settings and atoms to an integrator: velocities, degrees of freedom, constraints."""

import numpy as np
from ase import Atoms, units
from ase.constraints import FixBondLengths
from ase.md.velocitydistribution import Stationary, ZeroRotation
from numpy.typing import NDArray

from phicalc.errors import UnsupportedError
from phicalc.workflows.integrators import (
    NVE,
    FullCellNPT,
    Integrator,
    IsotropicNPT,
    Langevin,
    NoseHooverChain,
    StochasticRescaling,
)
from phicalc.workflows.md_settings import MDSettings

BALANCED = 1e-3
"""A sum of vectors below this share of their lengths counts as zero."""

ROUNDING = 0.01
"""Length (eV/Å for forces) that each vector counts for at least: a perfect crystal's forces are
noise."""


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
    rotation; thermostats that rescale momenta could never thermalise either, so there both are
    taken out of given momenta too, unless something outside acts on the atoms.

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
    if not _only_rigid_bonds(atoms) or len(atoms) < 2:
        return
    rescaled = settings.ensemble not in ("nve", "langevin")
    if drawn or (rescaled and _balanced(atoms.get_forces(apply_constraint=False))):
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            ZeroRotation(atoms, preserve_temperature=False)


def degrees_of_freedom(atoms: Atoms, settings: MDSettings) -> int:
    """Number of velocities that the bath heats: 3N − constraints − conserved momenta.

    Linear (and, out of a cell, angular) momentum counts as conserved when it is zero, nothing
    outside acts on the atoms, and the integrator leaves it alone. Langevin's does not.

    Raises
    ------
    UnsupportedError
        Nothing is left to move.
    """
    try:
        free = int(atoms.get_number_of_degrees_of_freedom())
    except NotImplementedError as error:
        raise UnsupportedError("expected constraints that count degrees of freedom") from error
    if settings.ensemble != "langevin" and _only_rigid_bonds(atoms):
        free -= quiet_motions(atoms, atoms.get_forces(apply_constraint=False), atoms.get_momenta())
    if free < 1:
        raise UnsupportedError(
            f"{settings.ensemble}: expected at least one degree of freedom, got none with "
            f"{len(atoms)} atoms; use langevin, or more atoms"
        )
    return free


def quiet_motions(atoms: Atoms, *fields: NDArray[np.float64]) -> int:
    """Rigid-body motions in which nothing moves.

    Parameters
    ----------
    atoms
        The structure; rotations are counted out of a cell only.
    fields
        (N, 3) each: momenta, forces …

    Returns
    -------
    int
        3 if every field adds up to zero, 5 or 6 if its moments do so too; else 0.
    """
    if not all(_balanced(field) for field in fields):
        return 0
    if atoms.pbc.any() or len(atoms) < 2:
        return 3
    arms = atoms.get_positions() - atoms.get_center_of_mass()
    if not all(_balanced(np.cross(arms, field)) for field in fields):
        return 3
    return 3 + _rotations(arms)


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


def _only_rigid_bonds(atoms: Atoms) -> bool:
    """Whether no constraint holds atoms in place, so that momentum can be conserved."""
    return all(isinstance(constraint, FixBondLengths) for constraint in atoms.constraints)


def _balanced(vectors: NDArray[np.float64]) -> bool:
    """Whether (N, 3) vectors add up to nothing."""
    scale = np.abs(vectors).sum() + ROUNDING * len(vectors)
    return bool(np.abs(vectors.sum(axis=0)).max() <= BALANCED * scale)


def _rotations(arms: NDArray[np.float64]) -> int:
    """Rotations of a body with these (N, 3) positions about its centre: 2 on a line, else 3."""
    widths = np.linalg.svd(arms, compute_uv=False)
    return 2 if widths[1] < 1e-3 * widths[0] else 3
