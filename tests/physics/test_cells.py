"""One crystal in many descriptions, and cells at the edges: one atom, next to nothing, no order."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from numpy.testing import assert_allclose

from phicalc import fields
from tests.conftest import structure
from tests.physics.models import BROKEN, HEADS, energy, evaluate, make_model

COULOMB = ["qeq", "phi-coulomb", "phi-coulomb learned", "phi-coulomb constant", "local"]
SOLVES = {"dense": 64, "iterative": 0}
TOLERANCE = {"dense": 1e-9, "iterative": 3e-7}
PER_ATOM = (fields.ENERGIES, fields.FORCES, fields.CHARGES, fields.POTENTIAL)


def skewed(atoms: Atoms) -> None:
    """The same lattice by vectors some forty times as long as they need to be."""
    atoms.set_cell(np.array([[1, 0, 0], [40, 1, 0], [-13, 9, 1]]) @ atoms.cell.array)


def left_handed(atoms: Atoms) -> None:
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])


def reversed_vectors(atoms: Atoms) -> None:
    atoms.set_cell(-atoms.cell.array)


def far_outside(atoms: Atoms) -> None:
    images = np.random.default_rng(0).integers(-50, 51, (len(atoms), 3))
    atoms.positions += images @ atoms.cell.array


DESCRIPTIONS = [skewed, left_handed, reversed_vectors, far_outside]


def solved(head: str, solve: str) -> torch.nn.Module:
    """A model whose head solves so; iterations and the mesh at their tightest."""
    model = make_model("painn", head, "float64")
    for part in model.potential.heads:
        part.dense_limit, part.accuracy = SOLVES[solve], 1e-10
    return model


@pytest.mark.parametrize("describe", DESCRIPTIONS)
@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("head", HEADS)
def test_equal_descriptions_of_a_crystal(head, solve, describe):
    model, atoms = solved(head, solve), structure("bulk")
    expected = evaluate(model, atoms)
    describe(atoms)
    found = evaluate(model, atoms)
    for name in (fields.ENERGY, fields.STRESS, *PER_ATOM):
        if name in expected:
            # what a mesh along other vectors is off by
            assert_allclose(found[name], expected[name], atol=TOLERANCE[solve], err_msg=name)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False)])
def test_a_skewed_slab_and_wire(pbc):
    model, atoms = make_model("painn", "phi", "float64"), structure("bulk")
    atoms.pbc = pbc
    expected = evaluate(model, atoms)
    shear = np.array([[1, 70, 0], [0, 1, 0], [0, 0, 1]]) if pbc[0] else np.eye(3)
    atoms.set_cell(shear @ atoms.cell.array)
    found = evaluate(model, atoms)
    for name in (fields.ENERGY, fields.FORCES):
        assert_allclose(found[name], expected[name], atol=1e-10)


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("head", [h for h in HEADS if h not in BROKEN["test_supercell"]])
@pytest.mark.parametrize("edge", [2.5, 3.6, 11.0])
def test_one_atom_in_a_cell_and_eight_such_cells(edge, head, solve):
    model = solved(head, solve)
    one = build_bulk("Na", "fcc", a=edge)
    found = energy(model, one * (2, 2, 2))
    assert found == pytest.approx(8.0 * energy(model, one), abs=8.0 * TOLERANCE[solve])
    output = evaluate(model, one)
    assert_allclose(output[fields.FORCES], 0.0, atol=1e-10)
    if fields.CHARGES in output:
        assert_allclose(output[fields.CHARGES], 0.0, atol=1e-9)


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("head", COULOMB)
@pytest.mark.parametrize("lengths", [(90, 90, 90), (8, 9, 150), (7, 120, 100)])
def test_slopes_in_a_cell_that_is_mostly_empty(lengths, head, solve):
    """Forces and stress of six ions against central differences; as in training."""
    model = solved(head, solve)
    atoms = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True)[:6]
    atoms.rattle(0.1, seed=3)
    atoms.set_cell(np.diag(lengths) + 0.1 * np.tri(3, k=-1))
    atoms.pbc = True
    output = evaluate(model, atoms)
    step, volume = 1e-4, atoms.get_volume()
    for atom, axis in ((0, 0), (3, 2)):
        values = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            values.append(energy(model, moved))
        found = -(values[0] - values[1]) / (2 * step)
        assert found == pytest.approx(float(output[fields.FORCES][atom, axis]), abs=1e-6)
    for a, b in ((0, 0), (2, 1)):
        values = []
        for sign in (1, -1):
            moved = atoms.copy()
            strain = np.eye(3)
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            values.append(energy(model, moved))
        found = (values[0] - values[1]) / (2 * step)
        assert found == pytest.approx(float(output[fields.STRESS][0, a, b]) * volume, abs=1e-5)
    trained = evaluate(model.train(), atoms)
    assert_allclose(trained[fields.FORCES].detach(), output[fields.FORCES], atol=1e-6)
    assert_allclose(
        volume * trained[fields.STRESS].detach(), volume * output[fields.STRESS], atol=1e-5
    )


@pytest.mark.parametrize("head", COULOMB)
def test_an_empty_cell_is_a_molecule(head):
    """The energy of one in 1 µm of nothing, dense and by the mesh."""
    atoms = structure("molecule")
    expected = energy(solved(head, "dense"), atoms)
    atoms.set_cell([10_000.0] * 3)
    atoms.pbc = True
    for solve in SOLVES:
        assert energy(solved(head, solve), atoms) == pytest.approx(expected, abs=1e-6)
