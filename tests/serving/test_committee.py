"""Several models as one calculator: means and spreads."""

import pickle

import numpy as np
import pytest

from phicalc import PhiCalculator
from phicalc.errors import UnsupportedError
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from tests.reference_models import small_metadata, small_potential


@pytest.fixture(scope="module")
def committee() -> list[LoadedModel]:
    return [
        load_model(model_bytes(small_potential("float64", seed), small_metadata("float64")))
        for seed in (1, 2, 3)
    ]


def test_a_committee_gives_means_and_spreads(committee, bulk):
    singles = [PhiCalculator(member) for member in committee]
    energies = np.array([single.get_potential_energy(bulk) for single in singles])
    forces = np.array([single.get_forces(bulk) for single in singles])
    calculator = PhiCalculator(committee)
    assert calculator.get_potential_energy(bulk) == pytest.approx(energies.mean(), abs=1e-12)
    assert calculator.get_forces(bulk) == pytest.approx(forces.mean(0), abs=1e-12)
    stresses = [single.get_stress(bulk) for single in singles]
    assert calculator.get_stress(bulk) == pytest.approx(np.mean(stresses, 0), abs=1e-12)
    potentials = [single.potential for single in singles]
    assert calculator.potential == pytest.approx(np.mean(potentials, 0), abs=1e-12)
    assert calculator.energy_spread == pytest.approx(energies.std())
    expected = np.sqrt(((forces - forces.mean(0)) ** 2).sum(2).mean(0))
    assert calculator.forces_spread == pytest.approx(expected)
    assert calculator.forces_spread.min() > 1e-6
    assert sum(calculator.energy_terms.values()) == pytest.approx(energies.mean(), abs=1e-10)


def test_terms_of_unlike_members_add_up_to_the_energy(model, bulk):
    """A head that one member has not got counts as nothing there."""
    plain = load_model(
        model_bytes(small_potential("float64", 1, heads=[]), small_metadata("float64", heads=[]))
    )
    calculator = PhiCalculator([model, plain])
    energy = calculator.get_potential_energy(bulk)
    assert sum(calculator.energy_terms.values()) == pytest.approx(energy, abs=1e-10)
    single = PhiCalculator(model)
    single.get_potential_energy(bulk)
    assert single.energy_terms["phi"] != 0.0
    assert calculator.energy_terms["phi"] == pytest.approx(0.5 * single.energy_terms["phi"])
    with pytest.raises(UnsupportedError, match="expected a Φ head in each model"):
        _ = calculator.potential


def test_equal_members_do_not_spread(model, bulk):
    calculator = PhiCalculator([model, model])
    calculator.get_potential_energy(bulk)
    assert calculator.energy_spread == 0.0
    assert not calculator.forces_spread.any()
    single = PhiCalculator(model)
    single.get_potential_energy(bulk)
    assert single.energy_spread == 0.0
    assert single.forces_spread.shape == (len(bulk),)
    assert not single.forces_spread.any()


def test_members_may_differ_in_cutoff_but_all_must_know_the_elements(committee, molecule):
    wide = small_potential("float64", 4, cutoff=5.0)
    wide_model = load_model(model_bytes(wide, small_metadata("float64", cutoff=5.0)))
    energies = [PhiCalculator(m).get_potential_energy(molecule) for m in (committee[0], wide_model)]
    both = PhiCalculator([committee[0], wide_model])
    assert both.get_potential_energy(molecule) == pytest.approx(np.mean(energies), abs=1e-10)
    ignorant = small_metadata("float64", elements=[1, 6])
    ignorant_model = load_model(model_bytes(small_potential("float64"), ignorant))
    with pytest.raises(UnsupportedError, match="got O"):
        PhiCalculator([committee[0], ignorant_model]).get_potential_energy(molecule)


def test_a_committee_survives_pickling(committee, molecule):
    calculator = PhiCalculator(committee)
    calculator.get_potential_energy(molecule)
    twin = pickle.loads(pickle.dumps(calculator))
    assert twin.energy_spread == calculator.energy_spread
    molecule.positions[0] += 0.1
    assert twin.get_potential_energy(molecule) == calculator.get_potential_energy(molecule)
