"""The constraints of a structure and those that settings add, as one set that holds together."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLengths, FixedLine, FixedPlane
from numpy.typing import NDArray

from phicalc.errors import ConfigError, UnsupportedError
from phicalc.workflows.constraints.freedom import removed_by_constraints
from phicalc.workflows.constraints.gradients import complement, gradients_of, site_directions
from phicalc.workflows.constraints.rigid_bonds import FixedBonds, rigid_water

HELD = 1e-6
"""Share of the velocities that may break a constraint after all of them were applied."""


def apply_constraints(atoms: Atoms, fixed_atoms: Sequence[int], water: bool) -> None:
    """Add the constraints that settings ask for to those that the structure has.

    ASE applies constraints one after the other, so that of two on the same atoms only the last
    one holds. Here they become one: atoms held by several are held in all directions of these,
    bonds named twice are one bond, and bonds to a fixed atom move the other atom only.

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
    UnsupportedError
        Constraints that cannot hold at once.
    """
    constraints = list(atoms.constraints)
    if fixed_atoms:
        beyond = [index for index in fixed_atoms if not 0 <= index < len(atoms)]
        if beyond:
            raise ConfigError(f"fixed_atoms: expected 0 to {len(atoms) - 1}, got {beyond[0]}")
        constraints.append(FixAtoms(indices=sorted(set(fixed_atoms))))
    if water:
        constraints.append(rigid_water(atoms))
    if len(constraints) > 1:
        constraints = _sites_merged(constraints, atoms)
        constraints = _bonds_merged(constraints, atoms)
    atoms.set_constraint(constraints)
    _check(atoms)


def _sites_merged(constraints: Sequence[Any], atoms: Atoms) -> list[Any]:
    """Every atom held by one constraint only, which comes before all that are no such."""
    directions: dict[int, list[NDArray[np.float64]]] = {}
    for constraint in constraints:
        rows = site_directions(constraint, atoms)
        if rows is not None and len(rows):
            for index in constraint.index.tolist():
                directions.setdefault(index, []).append(rows)
    fixed = {
        index
        for constraint in constraints
        if isinstance(constraint, FixAtoms)
        for index in constraint.index.tolist()
    }
    sites: list[Any] = []
    for index, held in directions.items():
        if len(held) < 2 or index in fixed:
            continue
        free = complement(np.concatenate(held))
        if len(free) == 0:
            fixed.add(index)
        elif len(free) == 1:
            sites.append(FixedLine([index], free[0]))
        else:
            sites.append(FixedPlane([index], np.cross(free[0], free[1])))
    alone = [index for index, held in directions.items() if len(held) == 1 and index not in fixed]
    others = []
    for constraint in constraints:
        if site_directions(constraint, atoms) is None:
            others.append(constraint)
        elif not isinstance(constraint, FixAtoms):
            kept = constraint.index[np.isin(constraint.index, alone)]
            if len(kept):
                part = copy.copy(constraint)
                part.index = kept
                sites.append(part)
    return [*([FixAtoms(indices=sorted(fixed))] if fixed else []), *sites, *others]


def _bonds_merged(constraints: Sequence[Any], atoms: Atoms) -> list[Any]:
    """All rigid bonds in one constraint that knows which atoms are fixed, where that matters."""
    bonds = [c for c in constraints if isinstance(c, FixBondLengths)]
    fixed = {index for c in constraints if isinstance(c, FixAtoms) for index in c.index.tolist()}
    touched = any(fixed & set(c.get_indices().tolist()) for c in bonds)
    if not bonds or (len(bonds) == 1 and not touched):
        return list(constraints)
    lengths: dict[tuple[int, int], float] = {}
    for constraint in bonds:
        known = constraint.bondlengths
        if known is None:
            known = constraint.initialize_bond_lengths(atoms)
        for pair, length in zip(constraint.pairs.tolist(), known, strict=True):
            first, second = sorted(pair)
            if abs(lengths.setdefault((first, second), length) - length) > 1e-6:
                raise UnsupportedError(
                    f"constraints: expected one length of the bond of atoms {first} and {second}, "
                    f"got {lengths[first, second]:g} and {length:g} Å; take one of them off"
                )
    pairs = [pair for pair in lengths if not fixed.issuperset(pair)]
    rest = [c for c in constraints if not isinstance(c, FixBondLengths)]
    if not pairs:
        return rest
    kept = np.array([lengths[pair] for pair in pairs])
    merged: Any = FixedBonds(atoms, pairs, kept, fixed.intersection(np.ravel(pairs).tolist()))
    trial = atoms.copy()
    trial.set_constraint([*(c for c in rest if isinstance(c, FixAtoms)), merged])
    if removed_by_constraints(trial) < 3 * len(fixed) + len(pairs):
        # bonds that follow from others: ASE's solver, one bond after the other, copes with them
        merged = FixBondLengths(pairs, tolerance=1e-10, bondlengths=kept)
    return [*rest, merged]


def _check(atoms: Atoms) -> None:
    """All constraints hold after each of them was applied, as ASE does it."""
    if len(atoms.constraints) < 2:
        return
    try:
        gradients = gradients_of(atoms)
    except UnsupportedError:
        return  # of a kind of which nothing is known; dynamics refuse it when they count
    masses = atoms.get_masses()[:, None]
    momenta = np.random.default_rng(0).standard_normal((len(atoms), 3)) * np.sqrt(masses)
    for constraint in atoms.constraints:
        constraint.adjust_momenta(atoms, momenta)
    velocities = momenta * np.sqrt(masses.mean()) / masses
    if any(np.abs(group.along(velocities)).max() > HELD for group in gradients):
        names = sorted({type(constraint).__name__ for constraint in atoms.constraints})
        raise UnsupportedError(
            f"constraints: expected some that hold at once, got {' and '.join(names)} on the same "
            "atoms, of which ASE lets only the last one hold; take one of them off"
        )
