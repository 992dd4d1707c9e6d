"""Forces in a series of displaced supercells, kept on the way so that a killed run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from phicalc.errors import ConfigError, SimulationError, StoppedError
from phicalc.machine.signals import stop_on_signals
from phicalc.workflows.crystal.phonon_modes import as_atoms
from phicalc.workflows.records import Record, RecordFile
from phicalc.workflows.same_calculator import check_same_calculator
from phicalc.workflows.watching import Display

Array = NDArray[np.float64]

SAME_PLACE = 1e-6
"""Å within which a restarted run must find the atoms of the first one."""


class DisplacedForces:
    """Forces (N, 3) in eV/Å of each supercell of a series.

    Parameters
    ----------
    cells
        Phonopy's supercells with displacements.
    calculator
        ASE's.
    path
        Where finished displacements are kept, None: nowhere.
    conditions
        What the supercells are in, as their `info` says it: total charge, field.
    """

    def __init__(
        self,
        cells: Sequence[Any],
        calculator: Any,
        path: Path | None,
        conditions: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.cells = cells
        self.calculator = calculator
        self.conditions = conditions
        self.file = None if path is None else RecordFile(path)

    def run(self, *, restart: bool, progress: bool, name: str) -> Array:
        """Compute what an earlier call did not finish.

        On restart the first of the kept forces are computed once more: a calculator that gives
        others is not the one that began.

        Returns
        -------
        ndarray
            (displacements, N, 3).

        Raises
        ------
        SimulationError
            Forces that are NaN.
        ConfigError
            The kept forces are of other displacements, or of another calculator.
        StoppedError
            SIGINT or SIGTERM came.
        OutputError
            The file is foreign, or cannot be written.
        """
        forces = self._kept() if restart else []
        if self.file is not None and not forces:
            self.file.remove()
        total = len(self.cells)
        with stop_on_signals() as stop, Display(total, f"{name}: displacements", progress) as bar:
            for index in range(len(forces), total):
                bar.show(index)
                forces.append(self._forces(index))
                if self.file is not None:
                    if index == 0:
                        self.file.append(self._identity())
                    self.file.append({"forces": forces[-1]})
                if stop.name is not None and index + 1 < total:
                    raise StoppedError(
                        f"{name} stopped by {stop.name} after {index + 1} of {total} "
                        "displacements; restart it",
                        stop.name,
                    )
            bar.show(total)
        return np.array(forces)

    def finish(self) -> None:
        """Remove the file: the results are written."""
        if self.file is not None:
            self.file.remove()

    def _kept(self) -> list[Array]:
        """Forces of the displacements that an earlier call has finished."""
        records = [] if self.file is None else self.file.read()
        if len(records) < 2:
            return []
        assert self.file is not None
        identity, first = self._identity(), records[0]
        same = identity.keys() == first.keys() and all(
            identity[key].shape == first[key].shape
            and np.allclose(identity[key], first[key], rtol=0.0, atol=SAME_PLACE)
            for key in identity
        )
        if not same:
            raise ConfigError(
                f"restart: expected the supercells and displacements of the run in "
                f"{self.file.path}, got others; restore the settings, or choose another folder"
            )
        kept = [record["forces"] for record in records[1:]]
        check_same_calculator(self.file.path, {"forces": kept[0]}, self._atoms(0))
        return kept

    def _identity(self) -> Record:
        first = self.cells[0]
        return {
            "numbers": np.array(first.numbers),
            "cell": np.array(first.cell),
            "positions": np.array([cell.positions for cell in self.cells]),
        }

    def _atoms(self, index: int) -> Atoms:
        atoms: Atoms = as_atoms(self.cells[index])
        atoms.info |= self.conditions
        atoms.calc = self.calculator
        return atoms

    def _forces(self, index: int) -> Array:
        atoms = self._atoms(index)
        forces = np.array(atoms.get_forces(), dtype=np.float64)
        if not np.isfinite(forces).all():
            raise SimulationError(f"the forces of displacement {index} are NaN or infinite")
        return forces
