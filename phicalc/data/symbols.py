"""Names of atoms in structure files that are no chemical symbols, and what to write instead."""

import re

from ase.data import atomic_numbers, chemical_symbols

_ISOTOPES = {"D": "2.014", "T": "3.016"}


def unknown_symbol(error: Exception) -> str | None:
    """What an error of ASE's readers says about a name that is no element.

    Parameters
    ----------
    error
        A reader looks names up in its table of elements: a `KeyError` with the name.

    Returns
    -------
    str or None
        A sentence that names it and says what to write, None for any other error. Nothing is
        replaced: what a name means is for its owner to say.
    """
    if not isinstance(error, KeyError) or len(error.args) != 1:
        return None
    found = re.fullmatch(
        r"(?:Could not parse species from label )?(\S{1,8}?)\.?", str(error.args[0])
    )
    if found is None or not isinstance(error.args[0], str):
        return None
    name = found[1]
    return f"expected chemical symbols, got {name!r}; {_remedy(name)}"


def _remedy(name: str) -> str:
    if name in _ISOTOPES:
        return (
            f"it is an isotope of hydrogen: write H, with the mass {_ISOTOPES[name]} in a column "
            "masses (without it, its mass is that of H)"
        )
    if name.isdigit() and 0 < int(name) < len(chemical_symbols):
        return (
            f"if it is an atomic number, write {chemical_symbols[int(name)]}, or call the column "
            "Z:I:1 instead of species:S:1"
        )
    charged = re.fullmatch(r"([A-Za-z]{1,2})\d*[+-]\d*", name)
    if charged and charged[1].capitalize() in atomic_numbers:
        return (
            f"write {charged[1].capitalize()}; charges belong to no symbol: the total charge of a "
            "structure is charge= in its header"
        )
    for length in (2, 1):
        element = name[:length].capitalize()
        if len(name) > length and atomic_numbers.get(element, 0) > 0:
            return f"if it is a label of {element}, write {element}"
    return "write the symbol of an element, and leave out atoms that are none"
