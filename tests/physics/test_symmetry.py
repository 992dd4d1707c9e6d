"""What must not change, or must turn along: translation, rotation, order, images, batches."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule as build_molecule
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from phicalc import fields
from phicalc.data.graph import Graph
from tests.conftest import structure
from tests.physics.models import evaluate

PER_STRUCTURE = (fields.ENERGY, fields.STRESS, fields.DIPOLE)
PER_ATOM = (fields.ENERGIES, fields.FORCES, fields.CHARGES, fields.POTENTIAL)


def assert_same(found: Graph, expected: Graph, tolerance: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name in (*PER_STRUCTURE, *PER_ATOM):
        if name in expected:
            assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


def test_translation(model, atoms, tolerance):
    moved = atoms.copy()
    moved.positions += [0.3, -1.7, 2.9]
    assert_same(evaluate(model, moved), evaluate(model, atoms), tolerance)


def test_far_from_the_origin(model, atoms, tolerance):
    """Distances are taken in float64: 10 µm away only their rounding, 1e-11 Å, is left."""
    moved = atoms.copy()
    moved.positions += [1e5, -1e5, 1e5]
    looser = {"rtol": 0.0, "atol": max(1e-8, tolerance["atol"])}
    assert_same(evaluate(model, moved), evaluate(model, atoms), looser)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
def test_rotation(model, atoms, tolerance, reflect):
    rotation = Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    if reflect:
        rotation = rotation @ np.diag([1.0, 1.0, -1.0])
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation.T
    turned.set_cell(atoms.cell.array @ rotation.T)
    expected = dict(evaluate(model, atoms))
    turn = torch.tensor(rotation)
    expected[fields.FORCES] = expected[fields.FORCES] @ turn.T
    expected[fields.STRESS] = turn @ expected[fields.STRESS] @ turn.T
    if fields.DIPOLE in expected:
        expected[fields.DIPOLE] = expected[fields.DIPOLE] @ turn.T
    assert_same(evaluate(model, turned), expected, tolerance)


def test_permutation(model, atoms, tolerance):
    order = np.random.default_rng(5).permutation(len(atoms))
    expected = dict(evaluate(model, atoms))
    for name in PER_ATOM:
        if name in expected:
            expected[name] = expected[name][order]
    assert_same(evaluate(model, atoms[order]), expected, tolerance)


def test_wrapping(model, atoms, tolerance):
    """Any image of any atom may stand for it."""
    moved = atoms.copy()
    images = np.random.default_rng(6).integers(-3, 4, (len(atoms), 3)) * atoms.pbc
    moved.positions += images @ atoms.cell.array
    assert_same(evaluate(model, moved), evaluate(model, atoms), tolerance)


def test_batch_is_the_same_as_single(model, molecule, bulk, tolerance):
    charged = build_molecule("H2O")
    charged.info["charge"] = -1
    structures = [molecule, bulk, charged, Atoms("H", [[0.0, 0.0, 0.0]])]
    if not model.potential.needs_positions:
        structures.insert(2, structure("slab"))
    batch = evaluate(model, *structures)
    first = 0
    for b, one in enumerate(structures):
        alone = evaluate(model, one)
        for name in PER_STRUCTURE:
            if name in alone:
                assert_allclose(batch[name][b], alone[name][0], err_msg=name, **tolerance)
        for name in PER_ATOM:
            if name in alone:
                part = batch[name][first : first + len(one)]
                assert_allclose(part, alone[name], err_msg=name, **tolerance)
        first += len(one)


def test_energy_terms_add_up(model, atoms, tolerance):
    output = evaluate(model, atoms)
    terms = [value for name, value in output.items() if name.startswith("energy_")]
    assert len(terms) == 4 + len(model.potential.heads) + model.potential.use_feedback
    assert_allclose(sum(terms), output[fields.ENERGY], **tolerance)
    assert_allclose(output[fields.ENERGIES].sum(), output[fields.ENERGY][0], **tolerance)


def test_deterministic_to_the_bit(model, atoms):
    first, second = evaluate(model, atoms), evaluate(model, atoms)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
