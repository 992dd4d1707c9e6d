"""What surrounds a structure: its total charge, electric field and spin, under whatever name.

Used are `info["charge"]` and `info["external_field"]`, and no spin. Programs and data sets call
them otherwise (`total_charge`, `Charge`, `efield`, `multiplicity` …). A value that is used nowhere
would make the result that of another system, so it is refused with the name that it should have;
one that changes nothing (0, or what is used anyway) is let pass. `info["charge"]` or
`info["external_field"]`, 0 included, settles the matter.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from phicalc.checks import structure
from phicalc.errors import StructureError, UnusedWarning
from phicalc.machine.threads import OneThreadCalculator

Array = NDArray[np.float64]

_OF_ALL = "(total|tot|net|system|molecular|molecule|mol|cell|ion|structure|global|overall|formal|t)"
KINDS = {
    kind: re.compile(f"(ref|dft)?({pattern})")
    for kind, pattern in {
        "charge": f"charges?|chg|q|{_OF_ALL}(charges?|chg|q)|(charge|chg|q)(total|tot)",
        "field": "(external|ext|applied|uniform|homogeneous)?(electric|e)?field",
        "multiplicity": "(total)?spin|mult|multi|multiplicity|spinmult|spinmultiplicity",
        "unpaired electrons": "uhf|n?unpaired(electrons)?|(total|tot|net)?"
        "(magmom|magmoment|magneticmoment|magnetization|mag)",
        "cell": "lattice|latt|cell|box|(unit|simulation)(cell|box)|hmat|hmatrix|cryst1|acell|"
        "(lattice|cell|box|unitcell)"
        "(vectors?|sizes?|lengths?|dimensions?|matrix|parameters?|params?|par|abcabc)",
        "pbc": "pbc|(is)?periodic|periodicity|(periodic)?boundary(conditions?)?|"
        "periodic(boundaries|directions)",
        "columns": "properties",
        "unit": ".*units?",
        "occupancy": "(site)?occ(upanc(y|ies)|upation)?",
        "masses": "(atomic|atom|isotope|a)?mass(es)?",
        "momenta": "velo?s?|(atomic)?velocit(y|ies)|v|moment(um|a)",
        "move_mask": "movemask|(is)?fix(ed)?(atoms)?|frozen|freeze|constrain(ed|ts?)|"
        "selective(dynamics)?|ifpos|mov(e?able)|mobile",
    }.items()
}
"""What a key may mean, by its name in lower case and without signs."""

WHOLE = 0.025
"""e; atomic charges whose sum is so near to a whole number are meant to sum to it."""

LOWEST = 0.5
"""Unpaired electrons beyond those of the lowest spin that are still no other spin state."""


@lru_cache(maxsize=4096)
def kind_of(key: object) -> str | None:
    """Which of `KINDS` a key looks like: "Total-charge" is a charge; None: none of them."""
    name = plain(key)
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(name)), None)


def plain(key: object) -> str:
    """A key in lower case without signs; "" for what is no text."""
    return re.sub(r"[\W_]+", "", key.lower()) if isinstance(key, str) else ""


def total_charge(atoms: Atoms, default: float | None = None) -> float:
    """Total charge in e of a structure: `info["charge"]`, else the default, else 0.

    Raises
    ------
    StructureError
        Not one finite number, more than the charge of all nuclei; or none is given as
        `info["charge"]`, but under another name one that would not be used: there, or as initial
        charges that sum to a whole number.
    """
    info = atoms.info
    stated = stated_charge(info)
    used = structure.total_charge(
        {} if stated is None else {"charge": stated}, default, atoms.numbers
    )
    if stated is None:
        _refuse_other_charges(info, used, "info")
        _refuse_attribute(atoms, used)
        _refuse_other_charges(_kept(atoms), used, "calc.parameters")
        if default is None:
            _refuse_initial_charges(atoms)
    return used


def stated_charge(info: Mapping[str, Any]) -> object | None:
    """`info["charge"]`, None where it is absent, None or "None".

    Raises
    ------
    StructureError
        True or False: what a key without a value is read as.
    """
    charge = info.get("charge")
    if isinstance(charge, bool | np.bool_):
        raise StructureError(
            f"expected the total charge as one finite number in e, got {bool(charge)}, which is "
            "how a key without a value is read; write charge=0, or leave it out"
        )
    return None if isinstance(charge, str) and plain(charge) in ("", "none", "null") else charge


def external_field(atoms: Atoms, default: Array | None = None) -> Array:
    """Electric field (3,) in V/Å: `info["external_field"]`, else the default, else 0.

    Raises
    ------
    StructureError
        Not three finite numbers; or it stands only under another name.
    """
    info = atoms.info
    used = structure.external_field(info, default)
    if info.get("external_field") is None:
        _refuse_other_fields(info, used, "info")
        _refuse_other_fields(_kept(atoms), used, "calc.parameters")
    return used


def name_spins(frames: Sequence[Atoms], charges: Sequence[float], labelled: bool = False) -> None:
    """Warn of spins other than the lowest, which no model here knows.

    Parameters
    ----------
    frames
        Structures, numbered from 0 in the message.
    charges
        Their total charges in e.
    labelled
        Whether their labels may depend on initial magnetic moments, too. Elsewhere these are
        another calculator's first guess, which `ase.build.molecule` sets unasked.

    Warns
    -----
    UnusedWarning
        A multiplicity, a number of unpaired electrons or magnetic moments that say more than
        zero or one unpaired electron, whichever the number of electrons allows.
    """
    pairs = zip(frames, charges, strict=True)
    found = [unused_spin(atoms, charge, labelled) for atoms, charge in pairs]
    numbers = [number for number, spin in enumerate(found) if spin is not None]
    if numbers:
        where = f" in {structure.list_frames(numbers)}" if len(frames) > 1 else ""
        warnings.warn(
            f"{found[numbers[0]]}{where}: no model here knows spin, so it is not used; the energy "
            "is that of whichever spin states the model was trained on",
            UnusedWarning,
            stacklevel=2,
        )


def unused_spin(atoms: Atoms, charge: float, labelled: bool) -> str | None:
    """What states a spin other than the lowest, as in 'info["spin"] = 3'; None: nothing."""
    odd = round(float(atoms.numbers.sum()) - charge) % 2
    results = getattr(atoms.calc, "results", None) or {}
    stated = {f'info["{key}"]': (kind_of(key), value) for key, value in atoms.info.items()}
    stated["magmom"] = ("unpaired electrons", results.get("magmom"))
    pymatgens = getattr(atoms, "spin_multiplicity", None)  # as its adaptor leaves a molecule's
    stated["atoms.spin_multiplicity"] = ("multiplicity", pymatgens)
    for key, (kind, value) in stated.items():
        # 0, whatever the number of electrons, is what programs write where no spin was asked for
        if kind == "multiplicity":
            # S, 2S and 2S + 1 are all called spin
            lowest = [0.0, 0.5, 1.0, 2.0] if odd else [0.0, 1.0]
        elif kind == "unpaired electrons":
            lowest = [0.0, float(odd)]
        else:
            continue
        found = numbers_of(value)
        if found is not None and found.size == 1 and min(abs(abs(found) - x) for x in lowest) > 0.1:
            return f"{key} = {float(found):g}"
    moments = atoms.arrays.get("initial_magmoms") if labelled else None
    if moments is not None and moments.ndim == 1 and abs(moments.sum()) > odd + LOWEST:
        return f"initial magnetic moments that sum to {float(moments.sum()):g}"
    return None


def _kept(atoms: Atoms) -> Mapping[str, Any]:
    """What a structure that was read has kept of the program that computed it.

    A calculator of ours that is attached has defaults of its own, which are no part of the
    structure: another may well be asked beside it.
    """
    if isinstance(atoms.calc, OneThreadCalculator):
        return {}
    return getattr(atoms.calc, "parameters", None) or {}


def _refuse_other_fields(stated: Mapping[str, Any], used: Array, place: str) -> None:
    """Raise if an electric field under another name is neither 0 nor what is used."""
    for key, value in stated.items():
        if kind_of(key) != "field":
            continue
        found = numbers_of(value)
        # a scalar, too, is a field, but for the vaguest of the names
        if found is None or found.size not in ((3,) if plain(key) == "field" else (1, 3)):
            continue
        if found.any() and not (found.size == 3 and np.allclose(found, used)):
            raise StructureError(
                f'expected an electric field as info["external_field"] in V/Å, got '
                f'{place}["{key}"] = {found.tolist()}, which is not used; rename it, or set '
                'info["external_field"] = (0, 0, 0)'
            )


def _refuse_other_charges(stated: Mapping[str, Any], used: float, place: str) -> None:
    """Raise if a total charge under another name is neither 0 nor what is used."""
    for key, value in stated.items():
        if isinstance(value, dict):
            _refuse_other_charges(value, used, f'{place}["{key}"]')
        elif kind_of(key) == "charge" and (key, place) != ("charge", "info"):
            found = numbers_of(value)
            if found is None or found.size != 1 or float(found) in (0.0, used):
                continue
            if plain(key) == "q" and not float(found).is_integer():
                continue  # an order parameter, a wave number
            raise StructureError(
                f'expected the total charge as info["charge"] in e, got {place}["{key}"] = '
                f"{float(found):g}, while {used:g} would be used; rename it to charge, or set "
                f'info["charge"] = {used:g}'
            )


def _refuse_attribute(atoms: Atoms, used: float) -> None:
    """Raise if pymatgen's adaptor has left a molecule's charge as an attribute: copies lose it."""
    found = numbers_of(getattr(atoms, "charge", None))
    if found is not None and found.size == 1 and float(found) != used:
        raise StructureError(
            f'expected the total charge as info["charge"] in e, got atoms.charge = '
            f"{float(found):g} of pymatgen, while {used:g} would be used; set "
            f'info["charge"], in pymatgen molecule.properties["charge"], to {float(found):g}'
        )


def _refuse_initial_charges(atoms: Atoms) -> None:
    """Raise if initial charges sum to a whole number other than 0."""
    charges = atoms.arrays.get("initial_charges")
    if charges is None or charges.ndim != 1:
        return
    total = float(charges.sum())
    whole = round(total) if np.isfinite(total) else 0
    if whole and abs(total - whole) <= WHOLE:
        raise StructureError(
            'expected the total charge as info["charge"] in e, got initial charges that sum to '
            f'{total:.4g} e, while 0 would be used; set info["charge"] = {whole}, or 0 if they '
            "mean nothing"
        )


def numbers_of(value: Any) -> Array | None:
    """A value as finite numbers; None where it is something else."""
    if value is None or isinstance(value, bool | np.bool_ | dict):
        return None
    try:
        array = np.array(value, dtype=np.float64).squeeze()
    except (TypeError, ValueError):
        return None
    return array if np.isfinite(array).all() else None
