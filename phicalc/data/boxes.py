"""Starting structures of liquids: boxes of water and of salt water, to equilibrate with a model."""

import numpy as np
from ase import Atoms
from ase.units import _amu
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from phicalc.errors import ConfigError

Array = NDArray[np.float64]

WATER_MASS = 18.015
"""g/mol."""
OH_LENGTH, HOH_ANGLE = 0.9572, 104.52
"""Å and degrees: the water molecule in the gas phase, which TIP3P keeps."""
WATER_CHARGES = np.array([-0.834, 0.417, 0.417])
"""e on O, H, H: TIP3P (doi 10.1063/1.445869). They only turn the molecules."""

_SITES = {
    "simple": [(0.0, 0.0, 0.0)],
    "body": [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)],
    "face": [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)],
}
_NEAREST = {"simple": 1.0, "body": np.sqrt(0.75), "face": np.sqrt(0.5)}

_JITTER = 0.1  # Å, largest displacement from a lattice site along each axis
_TRIALS = 24  # orientations tried per molecule and sweep
_SWEEPS = 6
_REACH = 5.0  # Å between centres, within which molecules see each other as they turn


def water_box(n_molecules: int, density: float = 1.0, seed: int = 0) -> Atoms:
    """Cubic periodic box of water: O H H, O H H, …, hydrogen-bonded but not equilibrated.

    Oxygens sit on a jittered cubic lattice; each molecule is then turned, a few times over, to the
    best of some random orientations in the electric field of its neighbours. No atoms overlap.

    Parameters
    ----------
    n_molecules
        At least 1.
    density
        g/cm³.
    seed
        The same seed gives the same box.

    Returns
    -------
    Atoms
        3·n_molecules atoms, periodic in three directions.

    Raises
    ------
    ConfigError
        A number out of range.
    """
    return salt_water(n_molecules, 0, density, seed)


def salt_water(n_water: int, n_pairs: int, density: float = 1.0, seed: int = 0) -> Atoms:
    """Cubic periodic box of sodium chloride in water: O H H, …, Na, …, Cl, …; see `water_box`.

    Parameters
    ----------
    n_water, n_pairs : int
        Molecules of water, at least 1, and pairs of Na⁺ and Cl⁻.
    density
        g/cm³ of the water that filled the box before ions took the places of 2·n_pairs molecules.
    seed
        The same seed gives the same box.

    Returns
    -------
    Atoms
        3·n_water + 2·n_pairs atoms, periodic in three directions.

    Raises
    ------
    ConfigError
        A number out of range.
    """
    for name, value, least in (("n_water", n_water, 1), ("n_pairs", n_pairs, 0)):
        if value < least:
            raise ConfigError(f"expected {name} ≥ {least}, got {value}")
    if not 0.0 < density <= 1.2:
        raise ConfigError(f"expected a density in g/cm³ in (0, 1.2], got {density}")
    random = np.random.default_rng(seed)
    count = n_water + 2 * n_pairs
    length = (count * WATER_MASS * _amu * 1e27 / density) ** (1.0 / 3.0)
    centres = _lattice(count, length, random)
    ions = centres[n_water:]
    charges = np.repeat([1.0, -1.0], n_pairs)
    arms = _turned_molecules(centres[:n_water], ions, charges, length, random)
    water = (centres[:n_water, None] + arms).reshape(-1, 3)
    return Atoms(
        ["O", "H", "H"] * n_water + ["Na"] * n_pairs + ["Cl"] * n_pairs,
        positions=np.concatenate([water, ions]),
        cell=[length] * 3,
        pbc=True,
    )


def _lattice(count: int, length: float, random: np.random.Generator) -> Array:
    """Sites (count, 3) in random order on the cubic lattice that keeps them furthest apart."""
    choices = []
    for kind, motif in _SITES.items():
        cells = 1
        while len(motif) * cells**3 < count:
            cells += 1
        choices.append((_NEAREST[kind] / cells, kind, cells))
    _, kind, cells = max(choices)
    corners = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), axis=-1)
    sites = (corners.reshape(-1, 1, 3) + np.array(_SITES[kind])).reshape(-1, 3) + 0.25
    chosen = random.permutation(len(sites))[:count]
    jitter = random.uniform(-_JITTER, _JITTER, (count, 3))
    placed: Array = sites[chosen] * length / cells + jitter
    return placed


def _turned_molecules(
    oxygens: Array, ions: Array, ion_charges: Array, length: float, random: np.random.Generator
) -> Array:
    """Atoms relative to the oxygen, (n, 3, 3), of molecules turned to low electrostatic energy."""
    count = len(oxygens)
    arms = _random_molecules(count, random)
    centres = np.concatenate([oxygens, ions])
    # An ion is three times the same atom with a third of the charge, so that all have one shape.
    arms = np.concatenate([arms, np.zeros((len(ions), 3, 3))])
    charges = np.concatenate(
        [np.tile(WATER_CHARGES, (count, 1)), np.tile(ion_charges[:, None] / 3, (1, 3))]
    )
    reach = min(_REACH, 0.499 * length)
    near = cKDTree(centres % length, boxsize=length).query_ball_point(oxygens % length, reach)
    for _ in range(_SWEEPS):
        trials = _random_molecules(count * _TRIALS, random).reshape(count, _TRIALS, 3, 3)
        for i in random.permutation(count):
            others = np.array([j for j in near[i] if j != i], dtype=int)
            if len(others) == 0:
                continue
            offset = centres[others] - centres[i]
            offset -= length * np.round(offset / length)
            field_atoms = (offset[:, None] + arms[others]).reshape(-1, 3)
            candidates = np.concatenate([arms[i : i + 1], trials[i]])
            energies = _energies(candidates, field_atoms, charges[others].reshape(-1))
            arms[i] = candidates[np.argmin(energies)]
    return arms[:count]


def _energies(candidates: Array, field_atoms: Array, field_charges: Array) -> Array:
    """Σ q_i q_j/r of molecules (k, 3, 3) among fixed charges; in e²/Å, which is enough to rank."""
    separations = candidates[:, :, None] - field_atoms
    distances = np.sqrt((separations**2).sum(axis=-1))
    energies: Array = np.einsum("i,kij,j->k", WATER_CHARGES, 1.0 / distances, field_charges)
    return energies


def _random_molecules(count: int, random: np.random.Generator) -> Array:
    """Water molecules (count, 3, 3), O H H relative to the oxygen, turned uniformly at random."""
    half = np.deg2rad(HOH_ANGLE / 2)
    shape = OH_LENGTH * np.array(
        [[0.0, 0.0, 0.0], [np.sin(half), np.cos(half), 0.0], [-np.sin(half), np.cos(half), 0.0]]
    )
    first, second = random.normal(size=(2, count, 3))
    x = first / np.linalg.norm(first, axis=1, keepdims=True)
    y = second - (second * x).sum(axis=1, keepdims=True) * x
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    turned: Array = shape @ np.stack([x, y, np.cross(x, y)], axis=1)
    return turned
