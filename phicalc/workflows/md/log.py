"""The table of a run: what it is watched by, and the calculator's counters."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from phicalc.errors import OutputError
from phicalc.workflows.frames import TextFile
from phicalc.workflows.md.integrators import Integrator

_WIDTH = 19


def observables(atoms: Atoms, integrator: Integrator, degrees_of_freedom: int) -> dict[str, float]:
    """Instantaneous values of what a run is watched by.

    Parameters
    ----------
    atoms
        The structure with its calculator.
    integrator
        For the conserved quantity.
    degrees_of_freedom
        By which the kinetic energy makes a temperature.

    Returns
    -------
    dict
        temperature_K, potential_eV, kinetic_eV, conserved_eV and, for crystals and liquids,
        pressure_GPa (with the ideal-gas part; calculators with stress) and density_g_cm3.
    """
    kinetic = float(atoms.get_kinetic_energy())
    row = {
        "temperature_K": 2.0 * kinetic / (degrees_of_freedom * units.kB),
        "potential_eV": float(atoms.get_potential_energy()),
        "kinetic_eV": kinetic,
        "conserved_eV": integrator.conserved_energy(),
    }
    if atoms.pbc.all():
        if "stress" in atoms.calc.implemented_properties:
            stress = atoms.get_stress(include_ideal_gas=True)
            row["pressure_GPa"] = -float(stress[:3].mean()) / units.GPa
        grams = float(atoms.get_masses().sum()) / units.kg * 1e3
        row["density_g_cm3"] = grams / float(atoms.get_volume()) * 1e24
    return row


def counters(calculator: Any) -> dict[str, float]:
    """The numbers among what `calculator.cache_info()` says, if it has that method."""
    method = getattr(calculator, "cache_info", None)
    if method is None:
        return {}
    info = method()
    if dataclasses.is_dataclass(info) and not isinstance(info, type):
        info = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    elif hasattr(info, "_asdict"):
        info = info._asdict()
    if not isinstance(info, Mapping):
        return {}
    numbers = (int, float, np.integer, np.floating)
    return {str(k): float(v) for k, v in info.items() if isinstance(v, numbers)}


class LogFile(TextFile):
    """Rows under a line of names; `read_log` and pandas (sep=r"\\s+") read it."""

    def append_row(self, row: dict[str, float]) -> None:
        """Write a row, and the names above the first one."""
        widths = {name: max(_WIDTH, len(name) + 1) for name in row}
        lines = ["".join(f"{_formatted(row[name]):>{width}}" for name, width in widths.items())]
        if not self.path.exists() or self.path.stat().st_size == 0:
            lines.insert(0, "".join(f"{name:>{width}}" for name, width in widths.items()))
        self.append("\n".join(lines) + "\n")


def read_log(path: str | Path) -> NDArray[np.void]:
    """The table of a run as a structured array.

    Returns
    -------
    ndarray
        One record per row; fields by the names in the first line, such as `temperature_K`.

    Raises
    ------
    OutputError
        Not such a file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            names = file.readline().split()
            dtype = [(name, np.float64) for name in names]
            return np.atleast_1d(np.loadtxt(file, dtype=dtype, ndmin=1))
    except (OSError, ValueError) as error:
        raise OutputError(f"expected the log of a simulation, got {path}: {error}") from error


def _formatted(value: float) -> str:
    """As an integer where it is one, else with twelve significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.12g}"
