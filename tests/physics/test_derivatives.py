"""Forces and stress against central differences of the energy, in float64."""

import numpy as np
from numpy.testing import assert_allclose

from phicalc import fields
from tests.physics.models import energy, evaluate

STEP = 1e-5


def numerical_forces(model, atoms, indices):
    forces = np.zeros((len(indices), 3))
    for row, i in enumerate(indices):
        for axis in range(3):
            moved = [atoms.copy(), atoms.copy()]
            moved[0].positions[i, axis] += STEP
            moved[1].positions[i, axis] -= STEP
            forces[row, axis] = -(energy(model, moved[0]) - energy(model, moved[1])) / (2 * STEP)
    return forces


def numerical_stress(model, atoms):
    stress = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            values = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * STEP / 2
                strain[b, a] += sign * STEP / 2
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                values.append(energy(model, strained))
            stress[a, b] = (values[0] - values[1]) / (2 * STEP) / atoms.get_volume()
    return stress


def test_forces(exact_model, atoms):
    indices = np.random.default_rng(0).permutation(len(atoms))[:3]
    forces = evaluate(exact_model, atoms)[fields.FORCES].numpy()[indices]
    assert np.abs(forces).max() > 5e-4
    assert_allclose(forces, numerical_forces(exact_model, atoms, indices), rtol=0, atol=1e-6)


def test_forces_of_a_charged_molecule(exact_model, molecule):
    molecule.info["charge"] = 1
    forces = evaluate(exact_model, molecule)[fields.FORCES].numpy()[:2]
    assert_allclose(forces, numerical_forces(exact_model, molecule, [0, 1]), rtol=0, atol=1e-6)


def test_forces_sum_to_zero(model, atoms, tolerance):
    forces = evaluate(model, atoms)[fields.FORCES]
    assert_allclose(forces.sum(0), 0.0, **tolerance)


def test_stress(exact_model, bulk):
    stress = evaluate(exact_model, bulk)[fields.STRESS][0].numpy()
    assert np.abs(stress).max() > 5e-5
    assert_allclose(stress, numerical_stress(exact_model, bulk), rtol=0, atol=1e-6)


def test_no_stress_unless_periodic_in_three_directions(model, molecule, slab):
    takes_slabs = not model.potential.needs_positions
    for atoms in (molecule, slab) if takes_slabs else (molecule,):
        assert not evaluate(model, atoms)[fields.STRESS].any()


def test_hessian_is_symmetric(exact_model, atoms):
    """Second differences of the energy, taken as differences of forces, commute."""
    atoms = atoms[:6] if not atoms.pbc.any() else atoms
    count = min(len(atoms), 6)
    hessian = np.zeros((3 * count, 3 * count))
    for i in range(count):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[i, axis] += sign * STEP
                forces.append(evaluate(exact_model, moved)[fields.FORCES].numpy()[:count])
            hessian[3 * i + axis] = -((forces[0] - forces[1]) / (2 * STEP)).ravel()
    assert np.abs(hessian).max() > 5e-3
    assert_allclose(hessian, hessian.T, rtol=0, atol=1e-6)


def test_training_forces_are_the_same(exact_model, atoms):
    """In training the solve is differentiated through; in MD it is held fixed. Both are exact."""
    expected = evaluate(exact_model, atoms)[fields.FORCES]
    exact_model.train()
    try:
        found = evaluate(exact_model, atoms)[fields.FORCES]
        assert found.requires_grad
        assert_allclose(found.detach(), expected, rtol=0, atol=1e-10)
    finally:
        exact_model.eval()
