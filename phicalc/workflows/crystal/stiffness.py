"""The tensor of elastic constants, and what follows from it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Voigt's order, as ASE's: xx yy zz yz xz xy."""


class Averages(NamedTuple):
    """Of a polycrystal, GPa: upper bound (equal strain), lower bound (equal stress), mean."""

    voigt: float
    reuss: float
    hill: float


@dataclass(frozen=True, eq=False)
class Stiffness:
    """Elastic constants C_IJ = ∂σ_I/∂η_J, shear strains η twice the tensor's.

    Polycrystal averages by R. Hill, Proc. Phys. Soc. A 65, 349 (1952), doi
    10.1088/0370-1298/65/5/307.

    Attributes
    ----------
    matrix
        (6, 6) in GPa, symmetric, in Voigt's order xx yy zz yz xz xy of the cell's Cartesian axes.
    asymmetry
        Largest |C_IJ − C_JI| as computed, GPa.
    symmetry_error
        Largest change of an element by averaging over the crystal's point group, GPa.
    """

    matrix: Array
    asymmetry: float
    symmetry_error: float

    @property
    def compliance(self) -> Array:
        """The inverse (6, 6), 1/GPa."""
        return np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)

    @property
    def eigenvalues(self) -> Array:
        """Of the matrix (6,), ascending, GPa."""
        return np.asarray(np.linalg.eigvalsh(self.matrix), dtype=np.float64)

    @property
    def stable(self) -> bool:
        """Born's criterion for any crystal: all eigenvalues are positive.

        F. Mouhat, F.-X. Coudert, Phys. Rev. B 90, 224104 (2014), doi 10.1103/PhysRevB.90.224104.
        """
        return bool(self.eigenvalues[0] > 0.0)

    @property
    def bulk_modulus(self) -> Averages:
        """K of a polycrystal."""
        stretch, cross, _ = _sums(self.matrix)
        soft, soft_cross, _ = _sums(self.compliance)
        return _averages((stretch + 2.0 * cross) / 9.0, 1.0 / (soft + 2.0 * soft_cross))

    @property
    def shear_modulus(self) -> Averages:
        """G of a polycrystal."""
        stretch, cross, shear = _sums(self.matrix)
        soft, soft_cross, soft_shear = _sums(self.compliance)
        reuss = 15.0 / (4.0 * soft - 4.0 * soft_cross + 3.0 * soft_shear)
        return _averages((stretch - cross + 3.0 * shear) / 15.0, reuss)

    @property
    def young_modulus(self) -> float:
        """E of a polycrystal by Hill's means, GPa."""
        bulk, shear = self.bulk_modulus.hill, self.shear_modulus.hill
        return 9.0 * bulk * shear / (3.0 * bulk + shear)

    @property
    def poisson_ratio(self) -> float:
        """ν of a polycrystal by Hill's means."""
        bulk, shear = self.bulk_modulus.hill, self.shear_modulus.hill
        return (3.0 * bulk - 2.0 * shear) / (2.0 * (3.0 * bulk + shear))

    @property
    def anisotropy(self) -> float:
        """Universal index, 0 for an isotropic crystal, doi 10.1103/PhysRevLett.101.055504."""
        bulk, shear = self.bulk_modulus, self.shear_modulus
        return 5.0 * shear.voigt / shear.reuss + bulk.voigt / bulk.reuss - 6.0


def symmetrised(measured: Array, rotations: Array) -> Stiffness:
    """Elastic constants with the symmetry that they must have.

    Parameters
    ----------
    measured
        (6, 6) in GPa, [I, J] = ∂σ_I/∂η_J.
    rotations
        (n, 3, 3) orthogonal matrices of the crystal's point group, which act on columns.
    """
    even = 0.5 * (measured + measured.T)
    full = _to_tensor(even)
    mean = np.mean(
        [np.einsum("ia,jb,kc,ld,abcd->ijkl", r, r, r, r, full) for r in rotations], axis=0
    )
    matrix = np.array([[mean[(*p, *q)] for q in PAIRS] for p in PAIRS])
    return Stiffness(
        matrix=matrix,
        asymmetry=float(np.abs(measured - measured.T).max()),
        symmetry_error=float(np.abs(matrix - even).max()),
    )


def _to_tensor(matrix: Array) -> Array:
    """(3, 3, 3, 3) from (6, 6)."""
    index = np.zeros((3, 3), dtype=int)
    for number, (i, j) in enumerate(PAIRS):
        index[i, j] = index[j, i] = number
    return np.asarray(matrix[index[:, :, None, None], index[None, None]], dtype=np.float64)


def _sums(matrix: Array) -> tuple[float, float, float]:
    """Σ of 11 22 33, of 12 13 23 and of 44 55 66."""
    cross = matrix[0, 1] + matrix[0, 2] + matrix[1, 2]
    return float(np.trace(matrix[:3, :3])), float(cross), float(np.trace(matrix[3:, 3:]))


def _averages(voigt: float, reuss: float) -> Averages:
    return Averages(voigt, reuss, 0.5 * (voigt + reuss))
