"""How much of a structure can move: degrees of freedom, and the motions of the whole."""

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from phicalc.workflows.constraints.gradients import Gradients, gradients_of

Array = NDArray[np.float64]

LOCAL = 3
"""Most atoms of a condition that is treated together with its neighbours' alone."""

DEPENDENT = 1e-6
"""Conditions of length one that add less than this to the others say nothing new."""

BALANCED = 1e-3
"""A sum of vectors below this share of their lengths counts as zero."""

ROUNDING = 0.01
"""Length (eV/Å for forces) that each vector counts for at least: a perfect crystal's forces are
noise."""


def removed_by_constraints(atoms: Atoms) -> int:
    """Degrees of freedom that the constraints take away: the rank of their gradients.

    What several constraints say counts once: a fixed atom is three, however often it is fixed.

    Raises
    ------
    UnsupportedError
        A constraint whose degrees of freedom cannot be counted.
    """
    gradients = gradients_of(atoms)
    local = [g for g in gradients if g.atoms.shape[1] <= LOCAL]
    wide = [g for g in gradients if g.atoms.shape[1] > LOCAL]
    rest = _dense(wide, len(atoms))
    count = 0
    for members, bases, ranks in _groups(local, len(atoms)):
        count += int(ranks.sum())
        if len(rest):
            # what the local conditions say already is taken out of the wide ones
            seen = rest[:, members].reshape(len(rest), len(members), -1)
            along = np.einsum("wgx,grx->wgr", seen, bases)
            seen = seen - np.einsum("wgr,grx->wgx", along, bases)
            rest[:, members] = seen.reshape(len(rest), *members.shape, 3)
    if not len(rest):
        return count
    return count + int(np.sum(np.linalg.svd(rest.reshape(len(rest), -1))[1] > DEPENDENT))


def free_motions(atoms: Atoms) -> Array:
    """Motions of the whole, (n, N, 3), that no constraint hinders.

    Shifts along the three axes and, out of a cell, turns about the centre of mass: those of them,
    or mixtures of them, that leave all constraints satisfied. Their momenta are conserved where
    nothing outside acts on the atoms. One atom that is held leaves the turns about it, a plane the
    shifts along it. Linear molecules turn about two axes only.

    Raises
    ------
    UnsupportedError
        As `removed_by_constraints`.
    """
    motions = _rigid_motions(atoms)
    gradients = gradients_of(atoms)
    if not gradients:
        return motions
    broken = np.concatenate(
        [np.stack([g.along(motion) for motion in motions], axis=1) for g in gradients]
    )
    hindrance, mixtures = np.linalg.eigh(broken.T @ broken)
    free = hindrance < DEPENDENT**2 * max(1.0, hindrance[-1])
    return motions if free.all() else np.asarray(np.tensordot(mixtures[:, free].T, motions, 1))


def quiet(motions: Array, *fields: Array) -> int:
    """Number of motions (n, N, 3) along which every one of these (N, 3) fields adds up to zero."""
    return int(np.sum([all(_balanced(m, field) for field in fields) for m in motions]))


def take_out(atoms: Atoms, motions: Array) -> None:
    """Stop these motions (n, N, 3) of the whole; all other motion stays."""
    if not len(motions):
        return
    weighted = atoms.get_masses()[:, None] * motions
    inertia = np.einsum("mac,nac->mn", motions, weighted)
    momenta = atoms.get_momenta()
    rates = np.linalg.solve(inertia, np.einsum("mac,ac->m", motions, momenta))
    atoms.set_momenta(momenta - np.tensordot(rates, weighted, 1))


def outer_forces(atoms: Atoms) -> Array:
    """Forces (N, 3) in eV/Å on atoms that nothing holds, springs to fixed places included."""
    forces = np.array(atoms.get_forces(apply_constraint=False))
    for constraint in atoms.constraints:
        if hasattr(constraint, "adjust_potential_energy"):
            constraint.adjust_forces(atoms, forces)
    return forces


def _rigid_motions(atoms: Atoms) -> Array:
    """(3 to 6, N, 3) shifts and, out of a cell, turns; of a size of about one."""
    shifts = np.tile(np.eye(3)[:, None], (1, len(atoms), 1))
    if atoms.pbc.any() or len(atoms) < 2:
        return shifts
    arms = atoms.get_positions() - atoms.get_center_of_mass()
    _, axes = np.linalg.eigh(arms.T @ arms)
    turns = np.cross(axes.T[:, None], arms)
    sizes = np.sqrt(np.mean(np.sum(turns**2, axis=2), axis=1))
    turning = sizes > 1e-3 * sizes.max()  # not about the line that all atoms are on
    return np.concatenate([shifts, turns[turning] / sizes[turning, None, None]])


def _balanced(motion: Array, field: Array) -> bool:
    sizes = np.sqrt(np.sum(motion**2, axis=1))
    scale = np.sum(sizes * (np.sqrt(np.sum(field**2, axis=1)) + ROUNDING))
    return bool(abs(np.sum(motion * field)) <= BALANCED * scale)


def _dense(gradients: list[Gradients], number: int) -> Array:
    """(R, N, 3) of all conditions."""
    rows = []
    for group in gradients:
        dense = np.zeros((len(group.atoms), number, 3))
        np.add.at(dense, (np.arange(len(group.atoms))[:, None], group.atoms), group.vectors)
        rows.append(dense)
    return np.concatenate(rows) if rows else np.zeros((0, number, 3))


def _groups(
    gradients: list[Gradients], number: int
) -> Iterator[tuple[NDArray[np.int64], Array, NDArray[np.int64]]]:
    """Atoms that hang together by conditions, all groups of one size and count at once.

    Yields
    ------
    (G, n) atoms, (G, r, 3 n) orthonormal rows that span the conditions (zero beyond the rank), and
    (G,) ranks.
    """
    links = [(g.atoms[:, 0], other) for g in gradients for other in g.atoms.T]
    if not links:
        return
    ends = np.array([np.concatenate(side) for side in zip(*links, strict=True)])
    graph = coo_array((np.ones(ends.shape[1]), ends), shape=(number, number))
    _, label = connected_components(graph, directed=False)
    conditions: dict[int, list[tuple[NDArray[np.int64], Array]]] = {}
    for group in gradients:
        for indices, vectors in zip(group.atoms, group.vectors, strict=True):
            conditions.setdefault(int(label[indices[0]]), []).append((indices, vectors))
    members = _members(label, conditions)
    shapes: dict[tuple[int, int], list[int]] = {}
    for key, rows in conditions.items():
        shapes.setdefault((len(rows), len(members[key])), []).append(key)
    for (count, size), keys in shapes.items():
        matrix = np.zeros((len(keys), count, size, 3))
        for number_in_group, key in enumerate(keys):
            for row, (indices, vectors) in enumerate(conditions[key]):
                places = np.searchsorted(members[key], indices)
                np.add.at(matrix[number_in_group, row], places, vectors)
        rows_of_all = matrix.reshape(len(keys), count, 3 * size)
        squares, mixtures = np.linalg.eigh(rows_of_all @ rows_of_all.swapaxes(1, 2))
        independent = squares > DEPENDENT**2 * count
        lengths = np.sqrt(np.where(independent, squares, np.inf))
        bases = mixtures.swapaxes(1, 2) @ rows_of_all / lengths[..., None]
        yield (
            np.array([members[key] for key in keys]),
            bases,
            independent.sum(axis=1),
        )


def _members(
    label: NDArray[np.int64], wanted: dict[int, list[tuple[NDArray[np.int64], Array]]]
) -> dict[int, NDArray[np.int64]]:
    """The atoms of each group, ascending."""
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(label.max() + 2))
    return {key: order[starts[key] : starts[key + 1]] for key in wanted}
