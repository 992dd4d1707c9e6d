"""Where potentials break: the cutoff, crossing eigenvalues, perfect symmetry, lonely atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk as build_bulk
from ase.build import molecule as build_molecule
from numpy.testing import assert_allclose

from phicalc import fields
from tests.physics.models import CUTOFF, evaluate


def test_smooth_when_an_atom_crosses_the_cutoff(exact_model):
    """Energy, force and curvature are continuous at the distance where an edge appears."""

    def at(distance: float) -> tuple[float, float]:
        atoms = Atoms("OH", [[0, 0, 0], [distance, 0, 0]])
        atoms += Atoms("C", [[-1.2, 0.3, 0.0]])
        output = evaluate(exact_model, atoms)
        return float(output[fields.ENERGY]), float(output[fields.FORCES][1, 0])

    step = 1e-4
    inside, edge, outside = (at(CUTOFF + s * step) for s in (-1, 0, 1))
    # Where charges feel each other there are a force and its slope besides.
    work = 2 * step * edge[1]
    assert inside[0] - outside[0] == pytest.approx(work, abs=1e-9)
    assert inside[1] + outside[1] == pytest.approx(2 * edge[1], abs=1e-6)
    slopes = (edge[1] - inside[1]) / step, (outside[1] - edge[1]) / step
    assert slopes[0] == pytest.approx(slopes[1], abs=2e-3)


def test_benzene(exact_model):
    """D6h: eigenvalues of the Laplacian are degenerate, the forces must not notice."""
    angle = np.arange(6) * np.pi / 3
    hexagon = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    benzene = Atoms("C6H6", np.concatenate([1.395 * hexagon, 2.482 * hexagon]))
    output = evaluate(exact_model, benzene)
    forces = output[fields.FORCES].numpy()
    direction = np.concatenate([hexagon, hexagon])
    radial = (forces * direction).sum(1)
    assert_allclose(forces, radial[:, None] * direction, rtol=0, atol=1e-10)
    for z in (1, 6):
        assert np.ptp(radial[benzene.numbers == z]) < 1e-10
    moved = benzene.copy()
    moved.positions[0, 0] += 1e-7
    change = evaluate(exact_model, moved)[fields.FORCES].numpy() - forces
    assert np.abs(change).max() < 1e-4  # no jump where the degeneracy is lifted


def test_perfect_crystal(exact_model):
    crystal = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    output = evaluate(exact_model, crystal)
    assert_allclose(output[fields.FORCES], 0.0, atol=1e-10)
    stress = output[fields.STRESS][0].numpy()
    assert_allclose(stress, np.eye(3) * stress[0, 0], atol=1e-12)
    moved = crystal.copy()
    moved.positions[0, 0] += 1e-6
    curvature = evaluate(exact_model, moved)[fields.FORCES].numpy()[0, 0] / 1e-6
    moved.positions[0, 0] += 9e-6
    farther = evaluate(exact_model, moved)[fields.FORCES].numpy()[0, 0] / 1e-5
    assert curvature == pytest.approx(farther, abs=1e-3)  # harmonic, no cusp at the symmetric site


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("O", [[0.0, 0.0, 0.0]]),
        Atoms("NaCl", [[0.0, 0.0, 0.0], [2.4, 0.0, 0.0]]),
        Atoms("NaCl", [[0.0, 0.0, 0.0], [20.0, 0.0, 0.0]]),
        build_molecule("H2O") + Atoms("H", [[15.0, 0.0, 0.0]]),
        Atoms("C", [[0.0, 0.0, 0.0]], cell=[2.5] * 3, pbc=True),
        Atoms("C", [[0.0, 0.0, 0.0]], cell=[9.0] * 3, pbc=True),
    ],
    ids=["atom", "dimer", "far dimer", "molecule + atom", "one atom, images", "one atom, alone"],
)
def test_finite(model, atoms):
    output = evaluate(model, atoms)
    for name, value in output.items():
        assert value.isfinite().all(), name
    if len(atoms) == 1:
        assert_allclose(output[fields.FORCES], 0.0, atol=1e-12)
