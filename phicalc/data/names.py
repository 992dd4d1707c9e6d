"""Other people's names of labels."""

import re

import numpy as np
from ase import Atoms

from phicalc.checks.conditions import plain

_NAMES = {
    "energy": "u0?|e0?|.*energ(y|ies)|.*e(tot|pot)|(tot|pot)e(n|ng)?|toten|pe|.*hof|.*enthalpy",
    "forces": ".*forces?|f|frc|.*grad(ient)?s?",
    "stress": ".*stress(es)?|.*virials?|.*pressure",
    "charges": ".*charges?|.*chg|q|"
    ".*(hirshfeld|mulliken|mbis|bader|lowdin|löwdin|resp|npa|ddec|cm5).*",
    "dipole": ".*dipoles?|mu|dip|.*dipolemoment|.*moment",
}
"""What a key may look like that means a label, in lower case and without signs."""

_RELATIONS = (
    ("virial", "stress is minus the virial over the volume"),
    ("grad", "forces are minus the gradient"),
    ("pressure", "stress is minus the pressure"),
    ("moment", "in e·Å: 1 Debye is 0.20819"),
)


def similar(atoms: Atoms, name: str) -> str:
    """Entries of a structure that may be a missing label under another name, as a parenthesis.

    Parameters
    ----------
    atoms
        The structure.
    name
        Of the label.
    """
    results = getattr(atoms.calc, "results", None) or {}
    entries = {**atoms.info, **atoms.arrays, **results}
    keys = [
        str(key)
        for key, value in entries.items()
        if re.fullmatch(_NAMES[name], plain(key)) and key != name and _fits(value, name, len(atoms))
    ]
    if not keys:
        return ""
    told = [text for part, text in _RELATIONS if any(part in plain(key) for key in keys)]
    return f" (but {', '.join(keys)}: rename it to {name}{''.join(f'; {t}' for t in told)})"


def _fits(value: object, name: str, number: int) -> bool:
    """Whether a value has the size of a label of ``number`` atoms."""
    sizes = {"energy": {1}, "forces": {3 * number}, "stress": {1, 6, 9}, "charges": {number}}
    array = np.asarray(value)
    return array.dtype.kind in "fi" and array.size in sizes.get(name, {1, 3})
