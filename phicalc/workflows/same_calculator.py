"""Whether a restarted run goes on with the calculator that began it: by results, not by names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from phicalc.errors import ConfigError

Array = NDArray[np.float64]

COMPARED = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
"""ASE property → by how much it may differ between two machines or numbers of threads: eV per
atom, eV/Å, eV/Å³. Single precision differs by a tenth of that at most."""

_UNITS = {"energy": "eV per atom", "forces": "eV/Å", "stress": "eV/Å³"}


def results_to_compare(atoms: Atoms) -> dict[str, Array]:
    """What the calculator says about these atoms, without the constraints' part.

    Only what comes with the forces; no calculation is started for more.
    """
    atoms.get_forces(apply_constraint=False)
    found = {}
    for name in COMPARED:
        if name in atoms.calc.implemented_properties:
            value = atoms.calc.get_property(name, atoms, allow_calculation=False)
            if value is not None:
                found[name] = np.array(value, dtype=np.float64)
    return found


def check_same_calculator(place: Path, kept: Mapping[str, Any], atoms: Atoms) -> None:
    """The calculator gives the results that a run has kept of this very structure.

    Parameters
    ----------
    place
        The run's file, for the message.
    kept
        Some of the results of `results_to_compare`, in the beginning.
    atoms
        The same structure with the calculator of now.

    Raises
    ------
    ConfigError
        Results that differ by more than rounding.
    """
    now = results_to_compare(atoms)
    for name, tolerance in COMPARED.items():
        if name not in kept or name not in now:
            continue
        before = np.asarray(kept[name], dtype=np.float64)
        if not np.isfinite(before).all():
            continue  # what stopped the run; the run says so itself if it is still so
        size = len(atoms) if name == "energy" else 1
        deviation = float(np.abs(now[name] - before).max()) / size
        largest = float(np.abs(before).max()) / size
        if not deviation <= tolerance + 1e-6 * largest:
            raise ConfigError(
                f"restart: expected the calculator of the run in {place}, got one whose {name} "
                f"{'differ' if name == 'forces' else 'differs'} by {deviation:.2g} {_UNITS[name]}; "
                "restore the model, committee, total charge and field, or choose another folder"
            )


def check_same_constraints(place: Path, kept: list[Any], now: list[Any]) -> None:
    """The constraints of a restarted run are those that it began with.

    Parameters
    ----------
    place
        The run's file, for the message.
    kept, now
        As `described` gives them.

    Raises
    ------
    ConfigError
        They are others.
    """
    if kept != now:
        shown = [", ".join(sorted(str(c["name"]) for c in cs)) or "none" for cs in (kept, now)]
        raise ConfigError(
            f"restart: expected the constraints of the run in {place} ({shown[0]}), got others "
            f"({shown[1]}); restore the structure and the options, or choose another folder"
        )


def described(constraints: list[Any]) -> list[Any]:
    """Constraints as JSON holds them; those of symmetry are settings of the run."""
    known = [c.todict() for c in constraints if type(c).__name__ != "FixSymmetry"]
    return [_plain(item) for item in known if item is not None]


def _plain(value: Any) -> Any:
    """Lists, numbers and strings alone."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
