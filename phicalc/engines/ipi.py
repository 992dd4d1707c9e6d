"""i-PI with a phicalc model: path integrals, replica exchange and whatever else i-PI moves.

:class:`Driver` gives energies, forces and virials in i-PI's units. Two doors lead to it: i-PI's own
(``i-pi-driver-py -m custom -P FILE`` and ``<ffdirect>``, see :mod:`phicalc.engines.ipi_driver`),
and :func:`phicalc.engines.ipi_client.serve`, which is a client of i-PI's sockets.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import Bohr, Hartree
from numpy.typing import NDArray

from phicalc.data.read import read_structures
from phicalc.engines.ase import PhiCalculator
from phicalc.engines.virial import virial
from phicalc.errors import StructureError, UnsupportedError
from phicalc.serving.committee import consensus
from phicalc.serving.evaluation import Conditions, admit, conditions_of, field_obstacle
from phicalc.serving.model_file import ModelSource
from phicalc.serving.prediction import predict
from phicalc.serving.response import BORN, undefined

Array = NDArray[np.float64]

EXTRAS = ("dipole", "BEC", "charges")
"""What i-PI can be told besides energy, forces and virial, by its names.

``dipole`` (3,) in e·Bohr about the origin, P·V of crystals; ``BEC`` (3N, 3) in e, the rows
∂μ/∂x, ∂μ/∂y, ∂μ/∂z of the first atom and so on; ``charges`` (N,) in e.
"""


class Answer(NamedTuple):
    """What i-PI is told of one structure."""

    energy: float  # Hartree
    forces: Array  # (N, 3) Hartree/Bohr
    virial: Array  # (3, 3) Hartree
    extras: str  # JSON, or nothing


class Driver:
    """A model's energies, forces and virials of one system, in i-PI's units.

    Called with a cell (3, 3), whose columns are the cell vectors, and positions (N, 3), both in
    Bohr, it returns an :class:`Answer`; called with a list of each, a list of them, computed as one
    batch where no extras are asked for. The cell may change from call to call.

    The virial is that of the pressure, −V·stress, of cells periodic in three directions, Σ r F of
    molecules, and NaN in between.

    Parameters
    ----------
    model
        Model file; several form a committee, whose mean is used.
    structure
        The system's atoms in i-PI's order, or a file of them: elements, periodic directions and,
        where ``info`` has them, total charge and field. i-PI sends none of these.
    extras
        Names of `EXTRAS`, in a list or in one string: ``"dipole+BEC"``.
    frame
        Which structure of a file, by default the last.
    charge, field, device, skin, cache, threads, default_dtype
        As :class:`phicalc.PhiCalculator`'s.

    Raises
    ------
    ModelFileError, DataError
        A file is missing, damaged or foreign.
    StructureError, UnsupportedError
        The structure is unsound or not one for this model; or it has no such extras.
    """

    def __init__(
        self,
        model: ModelSource | Sequence[ModelSource],
        structure: Atoms | str | Path,
        *,
        extras: str | Sequence[str] = (),
        frame: int = -1,
        charge: float | None = None,
        field: Sequence[float] | None = None,
        device: str = "auto",
        skin: float = 1.0,
        cache: bool = True,
        threads: int | None = None,
        default_dtype: str | None = None,
    ) -> None:
        self._atoms = _structure(structure, frame)
        self._calculator = PhiCalculator(
            model,
            device=device,
            skin=skin,
            charge=charge,
            field=field,
            cache=cache,
            threads=threads,
            default_dtype=default_dtype,
        )
        self._threads = threads
        self._extras = _names(extras)
        admit(self._calculator.models, self._atoms, self._conditions)
        self._refuse_unknown_extras()

    def __call__(self, cell: Any, positions: Any) -> Any:
        """An answer to one structure, or a list of answers to a list of them."""
        if not isinstance(cell, list):
            return self._answer(self._moved(cell, positions))
        frames = [self._moved(*pair).copy() for pair in zip(cell, positions, strict=True)]
        return [self._answer(atoms) for atoms in frames] if self._extras else self._batch(frames)

    compute = __call__  # i-PI's drivers have it under this name, too

    def check_number(self, number: int) -> None:
        """Raise StructureError for another number of atoms than the structure's."""
        if number != len(self._atoms):
            raise StructureError(
                f"expected the {len(self._atoms)} atoms of the structure from i-PI, got {number}; "
                "give the structure that i-PI's input begins with, with its atoms in this order"
            )

    @property
    def _conditions(self) -> Conditions:
        return conditions_of(self._atoms, self._calculator.charge, self._calculator.field)

    def _moved(self, cell: Any, positions: Any) -> Atoms:
        self.check_number(len(positions))
        self._atoms.cell[:] = np.asarray(cell).T * Bohr
        self._atoms.positions[:] = np.asarray(positions) * Bohr
        return self._atoms

    def _answer(self, atoms: Atoms) -> Answer:
        self._calculator.get_property("energy", atoms)
        results = self._calculator.results
        extras = {name: self._extra(name, atoms).tolist() for name in self._extras}
        return _in_atomic_units(
            results["energy"], results["forces"], virial(atoms, **results), json.dumps(extras)
        )

    def _batch(self, frames: list[Atoms]) -> list[Answer]:
        """Answers of several structures, evaluated together."""
        calculator = self._calculator
        field = None if calculator.field is None else calculator.field.tolist()
        by_model = [
            predict(
                model,
                frames,
                device=str(calculator.device),
                charge=calculator.charge,
                field=field,
                batch_size=len(frames),
                threads=self._threads,
            )
            for model in calculator.models
        ]
        results = [consensus(same).mean for same in zip(*by_model, strict=True)]
        return [
            _in_atomic_units(
                result.energy, result.forces, virial(atoms, result.forces, result.stress)
            )
            for atoms, result in zip(frames, results, strict=True)
        ]

    # --- extras ---------------------------------------------------------------------------------

    def _refuse_unknown_extras(self) -> None:
        """Say why there are no such extras before i-PI is met."""
        models, charge = self._calculator.models, self._conditions.charge
        for name in self._extras:
            reason = None
            if name != "charges" and (name == "BEC" or self._atoms.pbc.any()):
                asked = BORN if name == "BEC" else "polarization"
                reason = field_obstacle(models, self._atoms, charge) or undefined(
                    asked, self._atoms, charge
                )
            elif not all(model.metadata.heads for model in models):
                reason = "it has no electrostatics"
            if reason is not None:
                raise UnsupportedError(f"no {name} of this model and structure: {reason}")

    def _extra(self, name: str, atoms: Atoms) -> Array:
        try:
            return self._moment(atoms) / Bohr if name == "dipole" else self._of_atoms(name, atoms)
        except PropertyNotImplementedError as error:
            raise UnsupportedError(str(error)) from error

    def _moment(self, atoms: Atoms) -> Array:
        """Dipole (3,) in e·Å about the origin, whose derivatives are the Born charges."""
        if atoms.pbc.any():
            moment = self._calculator.get_property("polarization", atoms) * atoms.get_volume()
        else:
            dipole = self._calculator.get_property("dipole", atoms)
            moment = dipole + self._conditions.charge * atoms.get_center_of_mass()
        return np.asarray(moment)

    def _of_atoms(self, name: str, atoms: Atoms) -> Array:
        if name == "charges":
            return np.asarray(self._calculator.get_property("charges", atoms))
        born = self._calculator.get_property(BORN, atoms)
        # Their sum is the total charge but for rounding, of which i-PI tolerates 1e-8 e
        born += (self._conditions.charge * np.eye(3) - born.sum(axis=0)) / len(born)
        return np.asarray(born.transpose(0, 2, 1).reshape(-1, 3))


def _structure(structure: Atoms | str | Path, frame: int) -> Atoms:
    if isinstance(structure, Atoms):
        return Atoms(structure)
    frames = read_structures(structure)
    if not -len(frames) <= frame < len(frames):
        raise UnsupportedError(f"frame: expected one of {len(frames)} structures, got {frame}")
    return frames[frame]


def _names(extras: str | Sequence[str]) -> list[str]:
    found = re.split(r"[\s,+]+", extras.strip()) if isinstance(extras, str) else list(extras)
    found = [name for name in found if name]
    for name in found:
        if name not in EXTRAS:
            raise UnsupportedError(f"expected extras of {', '.join(EXTRAS)}, got {name!r}")
    return found


def _in_atomic_units(energy: float, forces: Array, virial: Array, extras: str = "") -> Answer:
    return Answer(
        energy / Hartree,
        forces * (Bohr / Hartree),
        virial / Hartree,
        "" if extras == "{}" else extras,
    )
