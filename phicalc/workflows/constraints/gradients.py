"""What constraints forbid, as directions in the space of velocities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import (
    ExternalForce,
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    Hookean,
)
from ase.geometry import find_mic
from numpy.typing import NDArray

from phicalc.errors import UnsupportedError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """R conditions on velocities, each on k atoms: Σ_j vectors[r, j] · v[atoms[r, j]] = 0.

    Attributes
    ----------
    atoms
        (R, k) indices.
    vectors
        (R, k, 3), each row of length one.
    """

    atoms: NDArray[np.int64]
    vectors: Array

    def along(self, velocities: Array) -> Array:
        """(R,) how far velocities (N, 3) break each condition."""
        return np.asarray(np.einsum("rkc,rkc->r", self.vectors, velocities[self.atoms]))


def gradients_of(atoms: Atoms) -> list[Gradients]:
    """All that the structure's constraints forbid, repeated as often as they say it.

    Raises
    ------
    UnsupportedError
        A constraint of which that is not known.
    """
    found = [_gradients(constraint, atoms) for constraint in atoms.constraints]
    return [gradients for gradients in found if gradients is not None and gradients.atoms.size]


def site_directions(constraint: Any, atoms: Atoms) -> Array | None:
    """(r, 3) orthonormal directions in which a constraint holds each atom of its `index`.

    None for constraints that tie atoms to one another.
    """
    if isinstance(constraint, FixAtoms):
        return np.eye(3)
    if isinstance(constraint, FixCartesian):
        return np.asarray(np.eye(3)[np.broadcast_to(constraint.mask, 3)])
    if isinstance(constraint, FixScaled):
        return _orthonormal(np.linalg.inv(atoms.cell.array).T[np.broadcast_to(constraint.mask, 3)])
    if isinstance(constraint, FixedPlane):
        return _orthonormal(constraint.dir[None])
    if isinstance(constraint, FixedLine):
        return complement(constraint.dir[None])
    return None


def complement(directions: Array) -> Array:
    """Orthonormal directions (3 − r, 3) at right angles to these (r, 3)."""
    _, widths, rows = np.linalg.svd(directions)
    rank = int(np.sum(widths > 1e-6 * max(widths.max(initial=0.0), 1e-300)))
    return np.asarray(rows[rank:])


def _orthonormal(directions: Array) -> Array:
    return complement(complement(directions))


def _gradients(constraint: Any, atoms: Atoms) -> Gradients | None:
    sites = site_directions(constraint, atoms)
    if sites is not None:
        index = np.asarray(constraint.index)
        return _normalised(
            np.repeat(index, len(sites))[:, None], np.tile(sites, (len(index), 1))[:, None]
        )
    if isinstance(constraint, Hookean | ExternalForce):
        return None
    if isinstance(constraint, FixBondLengths):
        bonds = _bonds(atoms, *np.asarray(constraint.pairs).T)
        return _normalised(np.asarray(constraint.pairs), np.stack([bonds, -bonds], axis=1))
    if isinstance(constraint, FixLinearTriatomic):
        return _linear_molecules(constraint, atoms)
    if isinstance(constraint, FixCom):
        index = np.arange(len(atoms))[constraint.index]
        weighted = atoms.get_masses()[index, None] * np.eye(3)[:, None]
        return _normalised(np.tile(index, (3, 1)), weighted)
    if isinstance(constraint, FixedMode):
        weighted = atoms.get_masses()[:, None] * constraint.mode.reshape(-1, 3)
        return _normalised(np.arange(len(atoms))[None], weighted[None])
    if isinstance(constraint, FixInternals):
        return _by_trial(constraint, atoms)
    raise UnsupportedError(
        "expected constraints whose degrees of freedom can be counted, got "
        f"{type(constraint).__name__}; take it off, or relax instead"
    )


def _bonds(atoms: Atoms, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
    vectors, _ = find_mic(atoms.positions[first] - atoms.positions[second], atoms.cell, atoms.pbc)
    return np.asarray(vectors)


def _linear_molecules(constraint: Any, atoms: Atoms) -> Gradients:
    """The length of each molecule, and the place of its middle atom on it."""
    first, middle, last = np.asarray(constraint.triples).T
    whole, part = _bonds(atoms, first, last), _bonds(atoms, middle, last)
    share = np.sum(whole * part, axis=1) / np.sum(whole * whole, axis=1)
    zeros = np.zeros_like(whole)
    conditions = [np.stack([whole, zeros, -whole], axis=1)]
    for axis in np.eye(3):
        weights = np.stack([share, -np.ones_like(share), 1.0 - share], axis=1)
        conditions.append(weights[:, :, None] * axis)
    indices = np.stack([first, middle, last], axis=1)
    return _normalised(np.tile(indices, (4, 1)), np.concatenate(conditions))


def _by_trial(constraint: Any, atoms: Atoms) -> Gradients:
    """From what the constraint does to the momentum of each of its atoms along each axis."""
    indices = np.asarray(constraint.get_indices())
    masses = atoms.get_masses()[indices]
    size = 3 * len(indices)
    removed = np.zeros((size, size))
    for column in range(size):
        momenta = np.zeros((len(atoms), 3))
        atom, axis = divmod(column, 3)
        momenta[indices[atom], axis] = masses[atom]
        before = momenta.copy()
        constraint.adjust_momenta(atoms, momenta)
        removed[:, column] = ((before - momenta)[indices] / masses[:, None]).ravel()
    return _normalised(np.tile(indices, (size, 1)), removed.reshape(size, len(indices), 3))


def _normalised(indices: NDArray[np.int64], vectors: Array) -> Gradients:
    """Rows of length one; those that forbid nothing are left out."""
    lengths = np.sqrt(np.sum(vectors**2, axis=(1, 2)))
    kept = lengths > 1e-8
    return Gradients(indices[kept], vectors[kept] / lengths[kept, None, None])
