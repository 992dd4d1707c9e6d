"""What spectra need of a trajectory: velocities, dipoles, the time between frames."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import iread
from numpy.typing import NDArray

from phicalc.errors import DataError
from phicalc.workflows.constraints.freedom import free_motions, quiet, removed_by_constraints

FEWEST = 16
"""Frames below which there is no spectrum to speak of."""


@dataclass(frozen=True)
class Motion:
    """A trajectory as arrays. T frames of N atoms.

    Attributes
    ----------
    interval
        Time between frames, fs.
    velocities
        (T, N, 3) in Å/fs.
    masses
        (N,) in u.
    symbols
        (N,) chemical symbols.
    dipoles
        (T, 3) dipole moment in e·Å (of a crystal, polarisation times volume); None where the
        frames have none.
    volume
        Mean volume in Å³, None for molecules.
    temperature
        Mean kinetic temperature in K, of the degrees of freedom that move.
    """

    interval: float
    velocities: NDArray[np.float64]
    masses: NDArray[np.float64]
    symbols: NDArray[np.str_]
    dipoles: NDArray[np.float64] | None
    volume: float | None
    temperature: float


def read_motion(source: str | Path | Iterable[Atoms], interval: float | None = None) -> Motion:
    """Read a trajectory.

    Parameters
    ----------
    source
        A file that `phicalc md` wrote, any that ASE reads, or frames.
    interval
        Time between frames in fs; None: by the frames' `info["time_fs"]`.

    Raises
    ------
    DataError
        Unreadable; frames without momenta or times, or not evenly spaced; too few of them.
    """
    if isinstance(source, str | Path):
        source = _read(Path(source))
    velocities, dipoles, times, volumes, kinetic, free = [], [], [], [], [], []
    first: Atoms | None = None
    held = 0
    for number, frame in enumerate(source):
        if first is None:
            first, held = frame, _held(frame)
        _check_frame(frame, first, number)
        velocities.append(frame.get_velocities() * units.fs)
        kinetic.append(frame.get_kinetic_energy())
        # a run may begin without drift and end with it
        free.append(3 * len(frame) - held - quiet(free_motions(frame), frame.get_momenta()))
        times.append(frame.info.get("time_fs", np.nan))
        dipoles.append(_dipole(frame))
        volumes.append(abs(frame.cell.volume))
    if first is None or len(velocities) < FEWEST:
        raise DataError(f"expected at least {FEWEST} frames, got {len(velocities)}")
    known = [dipole for dipole in dipoles if dipole is not None]
    return Motion(
        interval=_interval(np.array(times), interval),
        velocities=np.array(velocities),
        masses=first.get_masses(),
        symbols=np.array(first.get_chemical_symbols()),
        dipoles=np.array(known) if len(known) == len(dipoles) else None,
        volume=float(np.mean(volumes)) if first.pbc.all() else None,
        temperature=2.0 * float(np.sum(kinetic)) / (max(sum(free), 1) * units.kB),
    )


def _read(path: Path) -> Iterable[Atoms]:
    """The frames of a file, one at a time."""
    try:
        # "@" in a name is no choice of frames
        yield from iread(path, index=":", do_not_split_by_at_sign=True)
    except Exception as error:
        raise DataError(f"expected a trajectory, got {path}: {error}") from error


def _held(frame: Atoms) -> int:
    """Degrees of freedom that constraints take, by the frame's word or by its constraints."""
    said = frame.info.get("constrained_degrees_of_freedom")
    return removed_by_constraints(frame) if said is None else int(said)


def _check_frame(frame: Atoms, first: Atoms, number: int) -> None:
    if not np.array_equal(frame.numbers, first.numbers):
        raise DataError(f"expected the same atoms in all frames, got others in frame {number}")
    if not frame.has("momenta"):
        raise DataError(
            f"expected frames with momenta, got none in frame {number}; phicalc md writes them"
        )


def _dipole(frame: Atoms) -> NDArray[np.float64] | None:
    """Dipole moment of a molecule, or polarisation times volume of a crystal, in e·Å."""
    results = {} if frame.calc is None else frame.calc.results
    if frame.pbc.all() and "polarization" in results:
        return np.asarray(results["polarization"] * frame.cell.volume, dtype=np.float64)
    if not frame.pbc.any() and "dipole" in results:
        return np.asarray(results["dipole"], dtype=np.float64)
    return None


def _interval(times: NDArray[np.float64], interval: float | None) -> float:
    if interval is not None:
        return interval
    steps = np.diff(times)
    if not np.isfinite(steps).all():
        raise DataError('expected the time of each frame as info["time_fs"]; give the interval')
    if steps.min() <= 0.0 or np.ptp(steps) > 1e-6 * steps.mean():
        raise DataError(
            f"expected evenly spaced frames, got intervals of {steps.min():g} to {steps.max():g} fs"
        )
    return float(steps.mean())
