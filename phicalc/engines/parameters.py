"""What ASE calls a calculator's parameters, and the total charge and field among them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import equal
from numpy.typing import NDArray

from phicalc import __version__ as version
from phicalc.checks.structure import check_field, check_total_charge
from phicalc.errors import StructureError, UnsupportedError
from phicalc.machine.threads import OneThreadCalculator
from phicalc.serving.evaluation import Conditions, conditions_of
from phicalc.serving.model_file import LoadedModel, ModelSource

Array = NDArray[np.float64]
CHANGEABLE = ("charge", "field")


class ParametersCalculator(OneThreadCalculator):
    """A calculator whose ``parameters`` say what its results were computed with.

    ASE's trajectories and databases keep them with every structure, and so do programs built on
    it. ``charge`` and ``field`` are there where they were given, and nowhere else: what changes
    them changes what is calculated.
    """

    parameters: dict[str, Any]

    def set(self, **changes: Any) -> dict[str, Any]:
        """Change ``charge`` or ``field``; ASE's other way to write ``calculator.charge = …``.

        Returns
        -------
        dict
            What is not as it was.

        Raises
        ------
        UnsupportedError
            Anything else: it would be kept in ``parameters`` and have no effect.
        StructureError
            A charge or field that is no finite number.
        """
        for name in changes:
            if name not in CHANGEABLE:
                raise UnsupportedError(
                    f"expected charge or field, the parameters that can be changed, got {name}; "
                    "make a new PhiCalculator for another"
                )
        before = dict(self.parameters)
        try:
            for name, value in changes.items():
                setattr(self, name, value)
        except StructureError:
            self.parameters.clear()
            self.parameters.update(before)
            raise
        same = {name for name in changes if equal(before.get(name), self.parameters.get(name))}
        return {name: value for name, value in changes.items() if name not in same}

    @property
    def charge(self) -> float | None:
        """Total charge in e of structures that do not name their own."""
        return self.parameters.get("charge")

    @charge.setter
    def charge(self, charge: float | None) -> None:
        self._keep("charge", None if charge is None else check_total_charge(charge))

    @property
    def field(self) -> Array | None:
        """Electric field (3,) in V/Å of structures that do not name their own."""
        return self.parameters.get("field")

    @field.setter
    def field(self, field: Sequence[float] | None) -> None:
        self._keep("field", None if field is None else check_field(field))

    def _keep(self, name: str, value: Any) -> None:
        self.parameters.pop(name, None)
        if value is not None:
            self.parameters[name] = value

    def conditions(self, atoms: Atoms) -> dict[str, Any]:
        """Entries of ``info`` that give this structure the total charge and field it has here.

        ``charge`` (e) and ``external_field`` (3,) (V/Å), each where it is given or not zero:
        written to a file with the structure, they make up for ``charge=`` and ``field=``.

        Raises
        ------
        StructureError
            A charge or field that is no finite number.
        """
        found: dict[str, Any] = {}
        if atoms.info.get("charge", self.charge) is not None:
            found["charge"] = self._own_conditions(atoms).charge
        if atoms.info.get("external_field", self.field) is not None:
            found["external_field"] = self._own_conditions(atoms).field
        return found

    def _own_conditions(self, atoms: Atoms) -> Conditions:
        return conditions_of(atoms, self.charge, self.field)


def origin(
    source: ModelSource | Sequence[ModelSource], models: Sequence[LoadedModel]
) -> dict[str, Any]:
    """What tells a model from others: ``parameters`` of a calculator, all text.

    ``arch`` and ``model`` are the names that janus-core and what reads its files look for;
    ``model`` is the file as it was named ("in memory": none was), ``sha256`` that of its content.
    Of a committee, ``model``, ``sha256`` and ``default_dtype`` list each member's, with spaces
    between.
    """
    sources = [source] if isinstance(source, ModelSource) else source
    named = ["in memory" if isinstance(source, LoadedModel) else str(source) for source in sources]
    return {
        "arch": "phicalc",
        "phicalc_version": version,
        "model": " ".join(named),
        "sha256": " ".join(hashlib.sha256(model.data).hexdigest() for model in models),
        "default_dtype": " ".join(model.metadata.dtype for model in models),
    }
