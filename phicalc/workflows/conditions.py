"""What a structure is in, beside its atoms and cell: total charge, electric field, spin."""

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

CONDITIONS = ("charge", "external_field", "spin", "multiplicity")
"""Keys of `info` by which calculators are told."""


def field_of(atoms: Atoms) -> NDArray[np.float64]:
    """The electric field (3,) in V/Å that any later calculation is in; 0 where there is none."""
    return np.asarray(conditions_of(atoms).get("external_field", np.zeros(3)), dtype=np.float64)


def conditions_of(atoms: Atoms) -> dict[str, Any]:
    """Entries of `info` with which any later calculation is of the same charge, field and spin.

    The structure's own, and for what it does not say what its calculator takes instead, by the
    method `conditions(atoms)` where it has one.
    """
    method = getattr(atoms.calc, "conditions", None)
    found: dict[str, Any] = {} if method is None else dict(method(atoms))
    found |= {name: atoms.info[name] for name in CONDITIONS if name in atoms.info}
    return {
        name: np.array(value) if isinstance(value, np.ndarray | list | tuple) else value
        for name, value in found.items()
    }
