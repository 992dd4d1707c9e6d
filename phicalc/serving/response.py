"""What a model says about electric fields: polarisation, Born charges, dielectric tensor.

They come from `response` of the model file (:mod:`phicalc.electrostatics.electric_field`); here
they get ASE's names and units, or a reason why a structure has none.
"""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.typing import NDArray

from phicalc import fields
from phicalc.serving.evaluation import field_obstacle
from phicalc.serving.evaluator import Evaluation, Evaluator
from phicalc.units import COULOMB_CONSTANT

Array = NDArray[np.float64]

BORN = "born_effective_charges"
POLARIZABILITY = "polarizability"
RESPONSE = ("polarization", BORN, "dielectric_tensor")
"""ASE's names of what is computed only when it is asked for."""


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
    of P·V along i per displacement of atom a along j; ``dielectric_tensor`` (3, 3), electronic;
    ``polarizability`` (3, 3) | e·Å²/V.

    Raises
    ------
    PropertyNotImplementedError
        One of them is not defined, or this model does not give it; says why.
    ConvergenceError
        A solve for the response to a field did not converge.
    """
    charge = float(evaluations[0].graph[fields.TOTAL_CHARGE])
    for name in names:
        reason = field_obstacle(evaluator.models, atoms, charge) or undefined(name, atoms, charge)
        if reason is not None:
            raise PropertyNotImplementedError(f"no {name} of this model and structure: {reason}")
    known = all(fields.MOMENT in done.output for done in evaluations)
    if known and list(names) == ["polarization"]:  # costs nothing: the flow is known
        moments = torch.stack([done.output[fields.MOMENT] for done in evaluations]).mean(0)
        return {"polarization": moments[0].numpy() / atoms.get_volume()}
    outputs = evaluator.responses(evaluations)
    mean = {name: torch.stack([o[name] for o in outputs]).mean(0).numpy() for name in outputs[0]}
    results = {BORN: mean[fields.BORN_CHARGES], POLARIZABILITY: mean[fields.POLARISABILITY]}
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
    if not fields.PROPERTY[name].is_defined(sum(periodic)):
        return (
            f"it is one per volume of a crystal, periodic in three directions, got pbc {periodic}; "
            "ask for the dipole, or for born_effective_charges, its derivative"
        )
    if name == "polarization" and charge != 0.0:
        return f"that of a cell of total charge {charge:g} depends on the origin"
    return None
