"""Rigid bonds, for all molecules of a liquid at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLengths
from ase.geometry import find_mic
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from phicalc.errors import ConfigError, SimulationError

WATER_BOND = 1.3
"""Longest O–H distance (Å) that still counts as a bond of a water molecule."""


class FixedBonds(FixBondLengths):
    """ASE's `FixBondLengths` (SHAKE and RATTLE), swept over many bonds at a time.

    Bonds are sorted into groups in which no atom occurs twice; a group is corrected in one
    array operation, groups after one another as in the sequential algorithm. Files hold it as a
    plain `FixBondLengths`.

    Parameters
    ----------
    atoms
        The structure; the present lengths of the bonds are the ones that are kept.
    pairs
        (B, 2) atoms of each bond.

    Notes
    -----
    J.-P. Ryckaert et al., J. Comput. Phys. 23, 327 (1977), doi 10.1016/0021-9991(77)90098-5;
    H. C. Andersen, J. Comput. Phys. 52, 24 (1983), doi 10.1016/0021-9991(83)90014-1.
    """

    def __init__(self, atoms: Atoms, pairs: Sequence[Sequence[int]] | NDArray[np.int64]) -> None:
        super().__init__(np.asarray(pairs, dtype=int).reshape(-1, 2))
        self.bondlengths = self.initialize_bond_lengths(atoms)
        self.groups = _disjoint_groups(self.pairs)

    def adjust_positions(self, atoms: Atoms, new: NDArray[np.float64]) -> None:
        old = atoms.positions
        vectors = self._vectors(atoms)
        masses = atoms.get_masses()

        def correction(bonds: NDArray[np.int64]) -> tuple[Any, Any]:
            first, second = self.pairs[bonds].T
            before = vectors[bonds]
            after = new[first] - new[second] - (old[first] - old[second]) + before
            excess = self.bondlengths[bonds] ** 2 - np.sum(after * after, axis=1)
            factor = 0.5 * excess / np.sum(before * after, axis=1)
            reduced = 1.0 / (1.0 / masses[first] + 1.0 / masses[second])
            return factor, (factor * reduced)[:, None] * before

        self._sweep(correction, new, 1.0 / masses)

    def adjust_momenta(self, atoms: Atoms, momenta: NDArray[np.float64]) -> None:
        vectors = self._vectors(atoms)
        masses = atoms.get_masses()

        def correction(bonds: NDArray[np.int64]) -> tuple[Any, Any]:
            first, second = self.pairs[bonds].T
            relative = momenta[first] / masses[first, None] - momenta[second] / masses[second, None]
            factor = -np.sum(relative * vectors[bonds], axis=1) / self.bondlengths[bonds] ** 2
            reduced = 1.0 / (1.0 / masses[first] + 1.0 / masses[second])
            return factor, (factor * reduced)[:, None] * vectors[bonds]

        self._sweep(correction, momenta, np.ones_like(masses))

    def _vectors(self, atoms: Atoms) -> NDArray[np.float64]:
        """(B, 3) bond vectors in Å, first minus second atom, nearest image."""
        difference = atoms.positions[self.pairs[:, 0]] - atoms.positions[self.pairs[:, 1]]
        vectors, _ = find_mic(difference, atoms.cell, atoms.pbc)
        return np.asarray(vectors)

    def _sweep(
        self, correction: Any, values: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        """Correct all groups, again and again, until no bond asks for more."""
        for _ in range(self.maxiter):
            converged = True
            for bonds in self.groups:
                factor, change = correction(bonds)
                if not np.all(np.abs(factor) <= self.tolerance):
                    first, second = self.pairs[bonds].T
                    values[first] += weights[first, None] * change
                    values[second] -= weights[second, None] * change
                    converged = False
            if converged:
                return
        raise SimulationError("the rigid bonds did not converge; a smaller time step may help")


def rigid_water(atoms: Atoms) -> FixedBonds:
    """Keep every water molecule rigid: its two O–H bonds and its H–H distance.

    Raises
    ------
    ConfigError
        The structure has no water molecule.
    """
    oxygen, hydrogen = neighbor_list("ij", atoms, {("O", "H"): WATER_BOND})
    from_oxygen = atoms.numbers[oxygen] == 8
    oxygen, hydrogen = oxygen[from_oxygen], hydrogen[from_oxygen]
    owners = np.bincount(hydrogen, minlength=len(atoms))
    pairs: list[tuple[int, int]] = []
    for centre in np.unique(oxygen):
        arms = hydrogen[oxygen == centre]
        if len(arms) == 2 and np.all(owners[arms] == 1) and not _has_heavy_bond(atoms, centre):
            first, second = int(arms[0]), int(arms[1])
            pairs += [(int(centre), first), (int(centre), second), (first, second)]
    if not pairs:
        raise ConfigError("rigid_water: expected a structure with water molecules, got none")
    return FixedBonds(atoms, pairs)


def apply_constraints(atoms: Atoms, fixed_atoms: Sequence[int], water: bool) -> None:
    """Add the constraints that settings ask for to those that the structure has.

    Parameters
    ----------
    atoms
        Changed in place.
    fixed_atoms
        Atoms that do not move, counted from 0.
    water
        Keep water molecules rigid.

    Raises
    ------
    ConfigError
        An atom that does not exist, or no water where it was asked for.
    """
    constraints = list(atoms.constraints)
    if fixed_atoms:
        beyond = [index for index in fixed_atoms if not 0 <= index < len(atoms)]
        if beyond:
            raise ConfigError(f"fixed_atoms: expected 0 to {len(atoms) - 1}, got {beyond[0]}")
        constraints.append(FixAtoms(indices=sorted(set(fixed_atoms))))
    if water:
        constraints.append(rigid_water(atoms))
    atoms.set_constraint(constraints)


def _has_heavy_bond(atoms: Atoms, centre: int) -> bool:
    """Whether an oxygen has a neighbour other than hydrogen at a bond's distance."""
    heavy = np.flatnonzero((atoms.numbers != 1) & (np.arange(len(atoms)) != centre))
    if len(heavy) == 0:
        return False
    return bool(atoms.get_distances(centre, heavy, mic=bool(atoms.pbc.any())).min() < 1.8)


def _disjoint_groups(pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of the pairs in groups where no atom occurs twice, filled first come first."""
    groups: list[list[int]] = []
    used: list[set[int]] = []
    for index, (first, second) in enumerate(pairs.tolist()):
        for group, atoms in zip(groups, used, strict=True):
            if first not in atoms and second not in atoms:
                group.append(index)
                atoms.update((first, second))
                break
        else:
            groups.append([index])
            used.append({first, second})
    return [np.array(group, dtype=int) for group in groups]
