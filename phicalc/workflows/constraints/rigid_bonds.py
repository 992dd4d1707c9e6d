"""Rigid bonds, for all molecules of a liquid at once, where ASE goes through bonds one by one."""

from collections.abc import Collection, Sequence

import numpy as np
from ase import Atoms
from ase.constraints import FixBondLengths
from ase.geometry import find_mic
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from phicalc.errors import ConfigError, SimulationError

WATER_BOND = 1.3
"""Longest O–H distance (Å) that still counts as a bond of a water molecule."""

HEAVY_BOND = 1.8
"""Å within which an oxygen with another neighbour than hydrogen is no water's."""


class FixedBonds(FixBondLengths):
    """ASE's `FixBondLengths`, solved for all molecules at once (SHAKE and RATTLE).

    Bonds that share atoms form a cluster; the Lagrange multipliers of a cluster come from its
    small linear system, all clusters of one size in one batch: for momenta directly, for
    positions by Newton's method. Files hold the constraint as a plain `FixBondLengths`.

    Parameters
    ----------
    atoms
        The structure; the present lengths of the bonds are the ones that are kept.
    pairs
        (B, 2) atoms of each bond.
    lengths
        (B,) in Å that are kept, None: the present ones.
    immobile
        Atoms that do not move, because something else holds them; no bond between two of them.

    Notes
    -----
    J.-P. Ryckaert et al., J. Comput. Phys. 23, 327 (1977), doi 10.1016/0021-9991(77)90098-5;
    H. C. Andersen, J. Comput. Phys. 52, 24 (1983), doi 10.1016/0021-9991(83)90014-1.
    """

    def __init__(
        self,
        atoms: Atoms,
        pairs: Sequence[Sequence[int]] | NDArray[np.int64],
        lengths: NDArray[np.float64] | None = None,
        immobile: Collection[int] = (),
    ) -> None:
        super().__init__(np.asarray(pairs, dtype=int).reshape(-1, 2), tolerance=1e-10)
        self.bondlengths = self.initialize_bond_lengths(atoms) if lengths is None else lengths
        self.clusters = _clusters(self.pairs)
        self.immobile = np.array(sorted(immobile), dtype=int)

    def adjust_positions(self, atoms: Atoms, new: NDArray[np.float64]) -> None:
        masses = self._masses(atoms)
        displaced = new - atoms.positions
        for bonds in self.clusters:
            pairs = self.pairs[bonds]
            old = self._vectors(atoms, pairs)
            coupling = _coupling(pairs, masses)
            squares = self.bondlengths[bonds] ** 2
            for _ in range(self.maxiter):
                vectors = old + displaced[pairs[..., 0]] - displaced[pairs[..., 1]]
                missing = squares - np.sum(vectors**2, axis=-1)
                if np.all(np.abs(missing) <= self.tolerance * squares):
                    break
                jacobian = 2.0 * coupling * (vectors @ old.swapaxes(-1, -2))
                multipliers = np.linalg.solve(jacobian, missing[..., None])
                _add_along_bonds(displaced, pairs, multipliers * old, masses)
            else:
                raise SimulationError("rigid bonds did not converge; a smaller time step may help")
        new[:] = atoms.positions + displaced

    def adjust_momenta(self, atoms: Atoms, momenta: NDArray[np.float64]) -> None:
        masses = self._masses(atoms)
        weights = np.where(np.isinf(masses), np.inf, 1.0)
        for bonds in self.clusters:
            pairs = self.pairs[bonds]
            vectors = self._vectors(atoms, pairs)
            velocities = momenta[pairs] / masses[pairs][..., None]
            along = np.sum((velocities[..., 0, :] - velocities[..., 1, :]) * vectors, axis=-1)
            matrix = _coupling(pairs, masses) * (vectors @ vectors.swapaxes(-1, -2))
            multipliers = np.linalg.solve(matrix, -along[..., None])
            _add_along_bonds(momenta, pairs, multipliers * vectors, weights)

    def _masses(self, atoms: Atoms) -> NDArray[np.float64]:
        """(N,) in u; what does not move is infinitely heavy."""
        masses: NDArray[np.float64] = atoms.get_masses()
        masses[self.immobile] = np.inf
        return masses

    @staticmethod
    def _vectors(atoms: Atoms, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """(clusters, bonds, 3) bond vectors in Å, first minus second atom, nearest image."""
        difference = atoms.positions[pairs[..., 0]] - atoms.positions[pairs[..., 1]]
        vectors, _ = find_mic(difference.reshape(-1, 3), atoms.cell, atoms.pbc)
        return np.asarray(vectors).reshape(difference.shape)


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
    atom, other = neighbor_list("ij", atoms, HEAVY_BOND)
    crowded = set(atom[(atoms.numbers[other] != 1) & (atom != other)].tolist())
    owners = np.bincount(hydrogen, minlength=len(atoms))
    pairs: list[tuple[int, int]] = []
    for centre in np.unique(oxygen):
        arms = hydrogen[oxygen == centre]
        if len(arms) == 2 and np.all(owners[arms] == 1) and centre not in crowded:
            first, second = int(arms[0]), int(arms[1])
            pairs += [(int(centre), first), (int(centre), second), (first, second)]
    if not pairs:
        raise ConfigError("rigid_water: expected a structure with water molecules, got none")
    return FixedBonds(atoms, pairs)


def _clusters(pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Bonds that hang together, as (clusters, bonds) indices for each size of cluster."""
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(int(pairs.max()) + 1,) * 2)
    _, label = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for bond, atom in enumerate(pairs[:, 0]):
        members.setdefault(int(label[atom]), []).append(bond)
    sizes = sorted({len(bonds) for bonds in members.values()})
    return [np.array([b for b in members.values() if len(b) == size]) for size in sizes]


def _coupling(pairs: NDArray[np.int64], masses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(clusters, bonds, bonds) in 1/u: how a pull along one bond moves the ends of another."""
    coupling = np.zeros((*pairs.shape[:2], pairs.shape[1]))
    for end, sign in ((0, 1.0), (1, -1.0)):
        for other_end, other_sign in ((0, 1.0), (1, -1.0)):
            shared = pairs[:, :, None, end] == pairs[:, None, :, other_end]
            coupling += sign * other_sign * shared / masses[pairs[:, :, None, end]]
    return coupling


def _add_along_bonds(
    values: NDArray[np.float64],
    pairs: NDArray[np.int64],
    pulls: NDArray[np.float64],
    masses: NDArray[np.float64],
) -> None:
    """Add (clusters, bonds, 3) pulls / mass to the first, subtract them from the second atoms."""
    for bond in range(pairs.shape[1]):
        first, second = pairs[:, bond].T
        values[first] += pulls[:, bond] / masses[first, None]
        values[second] -= pulls[:, bond] / masses[second, None]
