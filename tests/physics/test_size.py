"""Extensivity, size consistency and the sum of charges."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as build_molecule
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT
from tests.conftest import structure
from tests.physics.models import evaluate


@pytest.mark.parametrize("kind, repeats", [("bulk", (2, 2, 2)), ("slab", (2, 2, 1))])
def test_supercell(model, kind, repeats, tolerance, request):
    """E of n cells is n times E, with the same forces, stress and charges in each."""
    atoms = request.getfixturevalue(kind)
    one, many = evaluate(model, atoms), evaluate(model, atoms.repeat(repeats))
    count = int(np.prod(repeats))
    scaled = {"rtol": 0.0, "atol": count * tolerance["atol"]}
    assert_allclose(many[fields.ENERGY], count * one[fields.ENERGY], **scaled)
    assert_allclose(many[fields.STRESS], one[fields.STRESS], **tolerance)
    assert_allclose(many[fields.FORCES], one[fields.FORCES].repeat(count, 1), **tolerance)
    if fields.CHARGES in one:
        assert_allclose(many[fields.CHARGES], one[fields.CHARGES].repeat(count), **tolerance)


def test_fragments_without_edges_are_additive(model, tolerance):
    """Φ acts along edges: with none between two molecules, nothing of one reaches the other."""
    if model.potential.needs_positions:
        pytest.skip("charges feel each other at any distance, see the test below")
    water, ethanol = build_molecule("H2O"), build_molecule("CH3CH2OH")
    ethanol.positions += [30.0, 0.0, 0.0]
    together = evaluate(model, water + ethanol)
    apart = [evaluate(model, water), evaluate(model, ethanol)]
    assert_allclose(together[fields.ENERGY], sum(o[fields.ENERGY] for o in apart), **tolerance)
    for name in (fields.FORCES, fields.CHARGES):
        if name in together:
            assert_allclose(together[name][: len(water)], apart[0][name], **tolerance)
            assert_allclose(together[name][len(water) :], apart[1][name], **tolerance)


@pytest.mark.parametrize("charge", [1, -2])
def test_supercell_of_ions(exact_model, bulk, charge):
    """Eight charged cells are eight times one: an atom is told its part of the charge."""
    bulk.info["charge"] = charge
    eight = bulk.repeat((2, 2, 2))
    eight.info["charge"] = 8 * charge
    one, many = evaluate(exact_model, bulk), evaluate(exact_model, eight)
    assert_allclose(many[fields.ENERGY], 8 * one[fields.ENERGY], rtol=0.0, atol=1e-6)
    assert_allclose(many[fields.FORCES], one[fields.FORCES].repeat(8, 1), rtol=0.0, atol=1e-7)
    assert_allclose(many[fields.STRESS], one[fields.STRESS], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("charge", [1, -1])
def test_distant_ions_are_as_many_single_ones(exact_model, charge):
    """E(8 ions, 8 Q) = 8 E(ion, Q), and k Q²/r of each two where the charges feel each other."""
    ion = build_molecule("OH" if charge < 0 else "H2O")
    ion.set_initial_magnetic_moments(None)
    ion.info["charge"] = charge
    spacing = 2000.0
    corners = spacing * np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    eight = Atoms()
    for corner in corners:
        copy = ion.copy()
        copy.positions += corner
        eight += copy
    eight.info["charge"] = 8 * charge
    expected = 8 * float(evaluate(exact_model, ion)[fields.ENERGY])
    if exact_model.potential.needs_positions:
        pairs = np.linalg.norm(corners[:, None] - corners, axis=-1)[np.triu_indices(8, 1)]
        expected += COULOMB_CONSTANT * charge**2 * float((1 / pairs).sum())
    found = float(evaluate(exact_model, eight)[fields.ENERGY])
    assert found == pytest.approx(expected, abs=2e-5)


def change_with_distance(model, ions, name, step=1e-2):
    """Derivative of an energy term over the distance of two atoms along x, of fourth order."""
    values = []
    for shift in (-2, -1, 1, 2):
        moved = ions.copy()
        moved.positions[1, 0] += shift * step
        values.append(float(evaluate(model, moved)[name]))
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


@pytest.mark.parametrize("distance", [13.0, 30.0, 100.0])
@pytest.mark.parametrize("total_charge", [0, 1])
def test_ions_attract_as_coulomb_says(exact_model, distance, total_charge):
    """Beyond every cutoff the force between two atoms is k q_A q_B/r², and nothing else."""
    ions = Atoms("NaCl", [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    ions.info["charge"] = total_charge
    output = evaluate(exact_model, ions)
    expected = 0.0
    if exact_model.potential.needs_positions:
        charges = output[fields.CHARGES]
        assert float(charges.abs().min()) > 1e-3
        expected = float(COULOMB_CONSTANT * charges[0] * charges[1]) / distance**2
        if exact_model.potential.use_feedback and "qeq" in exact_model.potential.head_names:
            # Charge that flows at any distance changes what the feedback step makes of it.
            expected -= change_with_distance(exact_model, ions, "energy_feedback")
    assert output[fields.FORCES][1].tolist() == pytest.approx([expected, 0.0, 0.0], abs=1e-9)


def test_slabs_are_refused_where_their_sum_is_unknown(exact_model):
    if not exact_model.potential.needs_positions:
        assert evaluate(exact_model, structure("slab"))[fields.ENERGY].isfinite()
        return
    with pytest.raises(UnsupportedError, match="expected pbc in all three directions or in none"):
        evaluate(exact_model, structure("slab"))


@pytest.mark.parametrize("total_charge", [0.0, 1.0, -2.0])
def test_charges_sum_to_the_total(model, atoms, total_charge):
    atoms.info["charge"] = total_charge
    output = evaluate(model, atoms)
    if not any(head != "pooled" for head in model.potential.head_names):
        assert fields.CHARGES not in output
        return
    assert float(output[fields.CHARGES].sum()) == pytest.approx(total_charge, abs=1e-6)


def test_total_charge_matters(exact_model, molecule):
    """The total charge conditions the features: a cation is not a neutral molecule."""
    neutral = evaluate(exact_model, molecule)[fields.ENERGY]
    molecule.info["charge"] = 1
    assert abs(float(evaluate(exact_model, molecule)[fields.ENERGY] - neutral)) > 1e-3
