"""Elements by other names: what structure files and the atom types of MD engines call them."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from phicalc.errors import UnsupportedError

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


_MASS_TOLERANCE = 0.1
"""u; programs round masses (1.0, 15.9994, 35.5), and neighbours in the table lie further apart."""


def numbers_of_types(
    symbols: Sequence[str] | Mapping[int, str] | None,
    masses: NDArray[np.float64] | None,
    known: Collection[int],
) -> NDArray[np.int64]:
    """Atomic numbers of the atom types of an MD engine, 0 for those that nothing names.

    Parameters
    ----------
    symbols
        Of types 1, 2, … in this order, or by the types' numbers; None: by mass.
    masses
        Of types 1, 2, … in u, zero where a type has none; None where types have no masses.
    known
        Elements of the model, which are preferred where two have nearly the same mass.

    Returns
    -------
    array
        (types + 1,), of which the first is no type and 0.

    Raises
    ------
    UnsupportedError
        No symbol of an element; a mass that is none of an element's; or a symbol beside the mass
        of another element of the model.
    """
    if symbols is not None:
        given = symbols if isinstance(symbols, Mapping) else dict(enumerate(symbols, start=1))
        numbers = np.zeros(max(given, default=0) + 1, dtype=np.int64)
        for kind, symbol in given.items():
            if atomic_numbers.get(symbol, 0) < 1:
                raise UnsupportedError(
                    f"expected the symbol of an element for atom type {kind}, got {symbol!r}"
                )
            numbers[kind] = atomic_numbers[symbol]
            if masses is not None and 0 < kind <= len(masses):
                _refuse_mass_of_another(kind, symbol, float(masses[kind - 1]), known)
        return numbers
    own = np.zeros(0) if masses is None else masses
    kinds = [_number_of_mass(kind, mass, known) for kind, mass in enumerate(own, start=1)]
    return np.array([0, *kinds], dtype=np.int64)


def _refuse_mass_of_another(kind: int, symbol: str, mass: float, known: Collection[int]) -> None:
    """Isotopes have masses of their own; that of another element of the model is a mistake."""
    for number in known:
        near = abs(atomic_masses[number] - mass) <= _MASS_TOLERANCE
        if near and number != atomic_numbers[symbol]:
            raise UnsupportedError(
                f"expected an element of mass {mass:g} u for atom type {kind}, "
                f"{chemical_symbols[number]}, got {symbol}; name the elements in the order of types"
            )


def _number_of_mass(kind: int, mass: float, known: Collection[int]) -> int:
    if mass <= 0.0:
        return 0
    near = np.flatnonzero(np.abs(atomic_masses[1:] - mass) <= _MASS_TOLERANCE) + 1
    likely = [int(number) for number in near if number in known] or near.tolist()
    if len(likely) == 1:
        return int(likely[0])
    names = " and ".join(chemical_symbols[number] for number in likely)
    raise UnsupportedError(
        f"expected the mass of an element for atom type {kind}, got {mass:g} u, "
        f"{f'which is that of {names}' if likely else 'which is none'}; "
        "name the elements of all types: elements="
    )
