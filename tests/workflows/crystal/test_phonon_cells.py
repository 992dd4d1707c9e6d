"""Cells that phonopy would not take, or take for something else."""

from itertools import permutations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from phicalc.errors import UnsupportedError
from phicalc.workflows.crystal.phonon_cells import remark_on_size
from phicalc.workflows.crystal.phonon_modes import modes_at
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from tests.workflows.ions import RigidIons

QUICK = {"relax": None, "mesh": (3, 3, 3), "points": 4, "animated": ()}


def triclinic() -> Atoms:
    """Copper-gold without any symmetry."""
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.symbols[0] = "Au"
    atoms.rattle(0.05, seed=1)
    strain = [[1.05, 0.10, 0.0], [0.0, 0.97, 0.05], [0.0, 0.0, 1.02]]
    atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
    atoms.calc = EMT()
    return atoms


@pytest.fixture(scope="module")
def reference():
    settings = PhononSettings(**QUICK, supercell=(2, 2, 3))
    return Phonons(triclinic(), settings).run()


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_any_order_of_the_axes_has_the_same_phonons(reference, order, tmp_path):
    """Half of the orders are left-handed cells of the same crystal."""
    atoms = triclinic()
    atoms.set_cell(atoms.cell[list(order)])
    repeats = tuple(np.array((2, 2, 3))[list(order)].tolist())
    settings = PhononSettings(
        **QUICK | {"animated": ((0.5, 0.0, 0.0),), "mesh": (3, 3, 3)}, supercell=repeats
    )
    result = Phonons(atoms, settings, tmp_path).run()
    np.testing.assert_allclose(result.gamma(), reference.gamma(), atol=1e-5)
    for wave in ((0.5, 0.0, 0.0), (0.1, 0.2, 0.3), (1 / 3, 0.5, -0.25)):
        in_space = np.linalg.inv(triclinic().cell.array) @ wave  # 2π/Å
        ours, theirs = (
            modes_at(r.phonopy, r.phonopy.primitive.cell @ in_space)[0] for r in (result, reference)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    heats = [r.phonopy.thermal_properties.thermal_properties[3] for r in (result, reference)]
    np.testing.assert_allclose(*heats, rtol=1e-6)
    assert len(list(tmp_path.glob("phonons-mode-*.extxyz"))) == 12


def test_born_charges_of_a_left_handed_crystal():
    """Γ's splitting, along a direction of space, is that of the right-handed cell."""
    split = []
    for order in ([0, 1, 2], [1, 0, 2]):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
        atoms.set_cell(atoms.cell[order])
        atoms.calc = RigidIons({"Na": 1.0, "Cl": -1.0})
        result = Phonons(atoms, PhononSettings(**QUICK, supercell=(2, 2, 2))).run()
        assert result.born is not None and result.born.violation < 1e-9
        along_x = result.phonopy.primitive.cell @ [1.0, 0.0, 0.0]
        split.append(result.gamma(along_x))
    assert split[0][-1] - split[0][-2] > 0.5  # LO above TO
    np.testing.assert_allclose(split[1], split[0], atol=1e-6)


def test_isotopes_are_no_copies_of_one_another():
    """A cubic cell of copper, one atom of which is heavy: four atoms, twelve modes."""
    frequencies = {}
    for heavy in (63.546, 120.0):
        atoms = bulk("Cu", cubic=True, a=3.6)
        atoms.set_masses([heavy, 63.546, 63.546, 63.546])
        atoms.calc = EMT()
        result = Phonons(atoms, PhononSettings(**QUICK, supercell=(2, 2, 2))).run()
        frequencies[heavy] = result.gamma()
        constants = result.phonopy.force_constants
    assert len(frequencies[63.546]) == 3 and len(frequencies[120.0]) == 12
    # Σ ω² is the trace of the dynamical matrix: by hand, from the force constants of one atom
    phonopy = result.phonopy
    on_site = np.zeros(4)
    images = phonopy.supercell.s2u_map
    for index, atom in enumerate(phonopy.primitive.p2s_map):
        same = np.flatnonzero(images == images[atom])
        on_site[index] = sum(
            np.trace(constants[atom if len(constants) > 4 else index, j]) for j in same
        )
    expected = np.sum(on_site / phonopy.primitive.masses) * 15.633302**2
    assert np.sum(frequencies[120.0] ** 2) == pytest.approx(expected, rel=1e-4)


def test_errors_of_phonopy_are_ours(monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("Determinant of something")

    monkeypatch.setattr("phonopy.Phonopy.generate_displacements", broken)
    with pytest.raises(UnsupportedError, match=r"phonopy cannot treat .*Determinant of something"):
        Phonons(triclinic(), PhononSettings(**QUICK, supercell=(1, 1, 1))).run()


class Reaching(EMT):
    """EMT that says how far its atoms see."""

    cutoff = 5.0


def test_a_supercell_that_is_too_small_is_remarked_on():
    atoms = bulk("Cu", cubic=True, a=3.6)
    atoms.calc = Reaching()
    result = Phonons(atoms, PhononSettings(**QUICK, supercell=(2, 2, 2))).run()
    assert "half its shortest period, 3.60 Å, is less than" in result.remark
    assert "of 10 Å would do" in result.remark
    enough = Phonons(atoms, PhononSettings(**QUICK, supercell_length=10.0)).run()
    assert enough.remark is None
    assert remark_on_size(result.phonopy.supercell, EMT()) is None  # nothing is known
    # a long axis that slants: the shortest period is none of the three vectors
    cell = atoms.copy()
    cell.set_cell([[20.0, 0.0, 0.0], [18.0, 4.0, 0.0], [0.0, 0.0, 20.0]])
    assert "half its shortest period, 2.24 Å" in remark_on_size(cell, Reaching())
