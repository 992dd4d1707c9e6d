"""Whatever is asked of whatever heads: a result, or the reason why there is none."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from phicalc import PhiCalculator
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.model.derivatives import Differentiated
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from tests.conftest import structure
from tests.heads import KINDS, chosen
from tests.reference_models import small_potential

COMBINATIONS = {
    "+".join(kinds) or "none": [{"kind": kind} for kind in kinds]
    for number in range(3)
    for kinds in combinations(KINDS, number)
} | chosen("phi-coulomb constant", "phi-coulomb learned", "phi-coulomb without")
ALWAYS = ("energy", "free_energy", "energies", "forces")
PROPERTIES = {
    name: lambda calc, atoms, name=name: calc.get_property(name, atoms)
    for name in PhiCalculator.implemented_properties
} | {
    "potential": lambda calc, atoms: (calc.get_property("energy", atoms), calc.potential)[1],
    "spectrum": lambda calc, atoms: (calc.get_property("energy", atoms), calc.spectrum())[1],
    "field": lambda calc, atoms: PhiCalculator(calc.models, field=(0.1, 0, 0)).get_property(
        "energy", atoms
    ),
}


def network(heads: str, feedback: bool) -> Differentiated | None:
    """A model with these heads; None where its configuration is refused."""
    try:
        return small_potential("float64", heads=COMBINATIONS[heads], charge_feedback=feedback)
    except ConfigError:
        return None


MODELS = [(h, f) for h in COMBINATIONS for f in (False, True) if network(h, f) is not None]


@cache
def served(heads: str, feedback: bool) -> LoadedModel:
    model = network(heads, feedback)
    return load_model(model_bytes(model, describe(model.potential)))


def ask(calculator: PhiCalculator, name: str, atoms: Atoms) -> tuple:
    """What it says, as arrays; or a refusal."""
    try:
        found = PROPERTIES[name](calculator, atoms)
    except (PropertyNotImplementedError, UnsupportedError) as refusal:
        return (str(refusal),)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("kind", ["molecule", "bulk", "slab"])
@pytest.mark.parametrize(("heads", "feedback"), MODELS)
def test_a_result_or_a_reason(heads, feedback, kind):
    calculator = PhiCalculator(served(heads, feedback))
    answered = set()
    for name in PROPERTIES:
        atoms = structure("bulk" if kind == "slab" else kind)
        atoms.pbc = atoms.pbc & [True, True, kind != "slab"]
        for part in ask(calculator, name, atoms):
            if isinstance(part, str):
                assert len(part) > 25
            else:
                assert np.isfinite(part).all(), name
                answered.add(name)
    coulomb = any(h["kind"] in KINDS[1:4] and h.get("coulomb", True) for h in COMBINATIONS[heads])
    if kind == "slab" and coulomb:
        assert not answered
        return
    assert answered >= set(ALWAYS)
    assert ("stress" in answered) == (kind == "bulk")
    charged = any(h["kind"] != "pooled" for h in COMBINATIONS[heads])
    assert ("charges" in answered) == charged
    assert ("dipole" in answered) == (charged and kind == "molecule")
    one = len(COMBINATIONS[heads]) == 1 and not feedback and coulomb
    constant = heads in ("phi-coulomb", "phi-coulomb constant")
    assert ("born_effective_charges" in answered) == (one and (kind == "molecule" or constant))
    assert ("field" in answered) == ("born_effective_charges" in answered)
    assert ("polarization" in answered) == (one and constant and kind == "bulk")
    assert ("dielectric_tensor" in answered) == ("polarization" in answered)
    potential = any("phi" in h["kind"] for h in COMBINATIONS[heads])
    assert ("potential" in answered) == potential
    assert ("spectrum" in answered) == (potential and "spectral" not in heads)
