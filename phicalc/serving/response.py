"""What a model says about electric fields, and where it has nothing to say.

Polarisation P, Born charges and the dielectric constant come from `response` of the model file
(:mod:`phicalc.electrostatics.electric_field`); here they get ASE's names and units, or a reason
why a structure has none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from numpy.typing import NDArray

from phicalc import fields
from phicalc.errors import UnsupportedError
from phicalc.serving.evaluation import Evaluation, Evaluator
from phicalc.serving.metadata import ModelMetadata
from phicalc.serving.model_file import LoadedModel
from phicalc.units import COULOMB_CONSTANT

Array = NDArray[np.float64]

BORN = "born_effective_charges"
RESPONSE = ("polarization", BORN, "dielectric_tensor")
"""ASE's names of what is computed only when it is asked for."""


def refuse_field(models: Sequence[LoadedModel], atoms: Atoms, charge: float) -> None:
    """Raise UnsupportedError unless all models can put this structure into an electric field."""
    reason = obstacle(models, atoms, charge)
    if reason is not None:
        raise UnsupportedError(f"no electric field for this model and structure: {reason}")


def response(
    evaluator: Evaluator, evaluations: Sequence[Evaluation], names: Sequence[str], atoms: Atoms
) -> dict[str, Array]:
    """ASE's results for these names of ``RESPONSE``, and whatever comes with them.

    Parameters
    ----------
    evaluator, evaluations
        The evaluator, and what it gave for `atoms`; a committee's mean is the result.

    Returns
    -------
    ``polarization`` (3,) | e/Å², ``born_effective_charges`` (N, 3, 3) | e, [a, i, j] the change
    of P·V along i per displacement of atom a along j; ``dielectric_tensor`` (3, 3), electronic.

    Raises
    ------
    PropertyNotImplementedError
        One of them is not defined, or this model does not give it; says why.
    ConvergenceError
        A solve for the response to a field did not converge.
    """
    charge = float(evaluations[0].graph[fields.TOTAL_CHARGE])
    for name in names:
        reason = obstacle(evaluator.models, atoms, charge) or undefined(name, atoms, charge)
        if reason is not None:
            raise PropertyNotImplementedError(f"no {name} of this model and structure: {reason}")
    known = all(fields.MOMENT in done.output for done in evaluations)
    if known and list(names) == ["polarization"]:  # costs nothing: the flow is known
        moments = torch.stack([done.output[fields.MOMENT] for done in evaluations]).mean(0)
        return {"polarization": moments[0].numpy() / atoms.get_volume()}
    outputs = evaluator.responses(evaluations)
    mean = {name: torch.stack([o[name] for o in outputs]).mean(0).numpy() for name in outputs[0]}
    results = {"born_effective_charges": mean[fields.BORN_CHARGES]}
    if undefined("polarization", atoms, charge) is None:
        results["polarization"] = mean[fields.MOMENT][0] / atoms.get_volume()
    if undefined("dielectric_tensor", atoms, charge) is None:
        susceptibility = mean[fields.POLARISABILITY] / atoms.get_volume()
        results["dielectric_tensor"] = np.eye(3) + 4 * np.pi * COULOMB_CONSTANT * susceptibility
    return results


def refuse_undefined(properties: Sequence[str], atoms: Atoms) -> None:
    """Say why a property has no value here, before anything is computed."""
    periodic = atoms.pbc.tolist()
    if "stress" in properties and not all(periodic):
        raise PropertyNotImplementedError(
            f"stress needs a cell periodic in three directions, got pbc {periodic}"
        )
    if "dipole" in properties and any(periodic):
        raise PropertyNotImplementedError(
            f"the dipole of a periodic structure is undefined, got pbc {periodic}"
        )


def undefined(name: str, atoms: Atoms, charge: float) -> str | None:
    """Why a property is not defined for a structure, whatever the model."""
    periodic = atoms.pbc.tolist()
    if name == "born_effective_charges":
        return None
    if not all(periodic):
        return (
            f"it is one per volume of a crystal, periodic in three directions, got pbc {periodic}; "
            "ask for the dipole, or for born_effective_charges, its derivative"
        )
    if name == "polarization" and charge != 0.0:
        return f"that of a cell of total charge {charge:g} depends on the origin"
    return None


def obstacle(models: Sequence[LoadedModel], atoms: Atoms, charge: float) -> str | None:
    """Why one of the models has no polarisation to speak of for this structure."""
    for model in models:
        reason = _model_obstacle(model) or _crystal_obstacle(model.metadata, atoms, charge)
        if reason is not None:
            return reason
    return None


def _head(metadata: ModelMetadata) -> dict[str, Any]:
    """Configuration of a model's first head."""
    heads: list[dict[str, Any]] = metadata.config.get("heads") or [{}]
    return heads[0]


def _model_obstacle(model: LoadedModel) -> str | None:
    if model.feels_field:
        return None
    if model.metadata.config.get("charge_feedback", False):
        return (
            "with charge feedback the energy depends on the charges beyond the head's own energy, "
            "so that the polarisation is not that of the charges; use a model without it"
        )
    kinds = model.metadata.heads
    if kinds and not model.has("response"):
        return "this model file is older than electric fields; export its checkpoint again"
    return (
        "it takes one head with a Coulomb energy (phi-coulomb, qeq or local), got heads: "
        f"{', '.join(kinds) or 'none'}; charges without one are a latent field"
    )


def _crystal_obstacle(metadata: ModelMetadata, atoms: Atoms, charge: float) -> str | None:
    """Why a periodic structure has no polarisation that is free of arbitrary choices."""
    if not atoms.pbc.any():
        return None
    kind, head = metadata.heads[0], _head(metadata)
    if kind == "qeq":
        return (
            "charge equilibration lets charge flow any distance at no cost, so a periodic cell "
            "screens like a metal; use a model with the phi-coulomb head"
        )
    base = head.get("base", "formal")
    if kind == "local" or base == "learned":
        return (
            "its charges come from the atoms' surroundings, so that the sum of q·r of a periodic "
            "cell depends on the choice of periodic images; use phi-coulomb with base: formal or "
            "constant"
        )
    formal = head.get("formal_charges", {})
    total = sum(formal.get(chemical_symbols[number], 0.0) for number in atoms.numbers)
    if base == "formal" and abs(total - charge) > 1e-9:
        return (
            f"formal charges of {total:g} e in a cell of total charge {charge:g} e leave a rest "
            "that is shared by the atoms' surroundings, so that the sum of q·r depends on the "
            "choice of periodic images; use base: constant"
        )
    return None
