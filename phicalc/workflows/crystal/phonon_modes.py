"""The standard path through the Brillouin zone, and modes as moving pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.dft.kpoints import parse_path_string
from numpy.typing import NDArray

from phicalc.errors import ConfigError

if TYPE_CHECKING:
    from phonopy import Phonopy

LARGEST_PERIOD = 12
"""Most primitive cells along an axis that an animation repeats."""


def as_atoms(cell: Any) -> Atoms:
    """A phonopy cell as ASE atoms."""
    return Atoms(
        numbers=cell.numbers,
        cell=cell.cell,
        scaled_positions=cell.scaled_positions,
        masses=cell.masses,
        pbc=True,
    )


def modes_at(
    phonopy: "Phonopy", q: Sequence[float], direction: Sequence[float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Normal modes at one wave vector.

    Parameters
    ----------
    phonopy
        With force constants.
    q
        In reciprocal lattice vectors of the primitive cell.
    direction
        At Γ, from where it is approached; None: no non-analytical correction there.

    Returns
    -------
    ndarray, ndarray
        (modes,) frequencies in THz, negative where imaginary, ascending; (3 atoms, modes)
        eigenvectors of the dynamical matrix.
    """
    phonopy.run_qpoints([q], with_eigenvectors=True, nac_q_direction=direction)
    qpoints = phonopy.qpoints
    assert qpoints is not None and qpoints.eigenvectors is not None
    return np.array(qpoints.frequencies[0]), np.array(qpoints.eigenvectors[0])


def standard_path(phonopy: "Phonopy", path: str | None, points: int) -> dict[str, Any]:
    """The standard path of the Bravais lattice, as `phonopy.run_band_structure` takes it.

    Parameters
    ----------
    phonopy
        For its primitive cell.
    path
        Special points as in "GXWKGL,UX"; None: the standard path by Setyawan and Curtarolo,
        doi 10.1016/j.commatsci.2010.05.010, as ASE has it.
    points
        Number of points on the longest line.

    Raises
    ------
    ConfigError
        A point that this lattice does not have.
    """
    from phonopy.phonon.band_structure import get_band_qpoints_and_path_connections

    try:
        band_path = as_atoms(phonopy.primitive).cell.bandpath(path, npoints=0)
        lines = [
            [band_path.special_points[name] for name in line]
            for line in parse_path_string(band_path.path)
        ]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"path: expected special points of this lattice, got {path!r}") from error
    names = [name.replace("G", "Γ") for line in parse_path_string(band_path.path) for name in line]
    qpoints, connections = get_band_qpoints_and_path_connections(
        lines,
        npoints=points,
        rec_lattice=np.asarray(np.linalg.inv(phonopy.primitive.cell), dtype=np.float64),
    )
    return {"paths": qpoints, "path_connections": connections, "labels": names}


def animate(
    phonopy: "Phonopy",
    q: tuple[float, float, float],
    band: int,
    frames: int = 24,
    amplitude: float = 0.3,
) -> list[Atoms]:
    """One period of a normal mode.

    Parameters
    ----------
    phonopy
        With force constants.
    q
        Wave vector in reciprocal lattice vectors of the primitive cell, rational.
    band
        Number of the mode at q, from 0 by frequency.
    frames
        Pictures in the period.
    amplitude
        Largest displacement in Å.

    Returns
    -------
    list of Atoms
        Of the smallest cell that holds whole waves; `info["frequency_THz"]` of each.

    Raises
    ------
    ConfigError
        A wave that does not fit twelve cells, or a band that does not exist.
    """
    repeats = _repeats(q)
    frequencies, eigenvectors = modes_at(phonopy, q)
    if not 0 <= band < len(frequencies):
        raise ConfigError(f"band: expected 0 to {len(frequencies) - 1}, got {band}")
    primitive = as_atoms(phonopy.primitive)
    atoms = primitive.repeat(repeats)
    wave = _wave(atoms, primitive, np.asarray(q), eigenvectors[:, band])
    wave *= amplitude / np.sqrt((np.abs(wave) ** 2).sum(axis=1)).max()
    pictures = []
    for phase in 2.0 * np.pi * np.arange(frames) / frames:
        picture = atoms.copy()
        picture.positions += (wave * np.exp(-1j * phase)).real
        picture.info["frequency_THz"] = float(frequencies[band])
        pictures.append(picture)
    return pictures


def _repeats(q: tuple[float, float, float]) -> list[int]:
    """Cells along each axis after which the wave is back in phase."""
    repeats = []
    for component in q:
        for period in range(1, LARGEST_PERIOD + 1):
            if abs(component * period - round(component * period)) < 1e-4 * period:
                repeats.append(period)
                break
        else:
            raise ConfigError(
                f"q: expected fractions with denominators up to {LARGEST_PERIOD}, got {component}"
            )
    return repeats


def _wave(
    atoms: Atoms, primitive: Atoms, q: NDArray[np.float64], eigenvector: NDArray[np.complex128]
) -> NDArray[np.complex128]:
    """(N, 3) complex displacements e/√m · exp(2πi q·r), r the atoms' own positions."""
    places = np.linalg.solve(primitive.cell.array.T, atoms.positions.T).T
    phases = np.exp(2j * np.pi * places @ q)
    one_cell = eigenvector.reshape(-1, 3) / np.sqrt(primitive.get_masses())[:, None]
    copies = len(atoms) // len(primitive)
    return np.asarray(np.tile(one_cell, (copies, 1)) * phases[:, None])
