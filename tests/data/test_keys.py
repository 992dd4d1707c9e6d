"""Labels from columns of other names, as files of other programs have them."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from phicalc.data.keys import take_names
from phicalc.data.read import labels_of
from phicalc.errors import DataError


def through_extxyz(atoms: Atoms) -> Atoms:
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    text.seek(0)
    return read(text, format="extxyz")


def test_columns_of_a_file_for_mace() -> None:
    """Its own energies and forces, of another level of theory, are not looked at."""
    atoms = molecule("H2O")
    atoms.info |= {"REF_energy": -14.0, "REF_dipole": [0.1, 0.0, 0.4], "total_charge": -1}
    atoms.arrays["REF_forces"] = np.arange(9.0).reshape(3, 3)
    atoms.arrays["REF_charges"] = np.array([-0.5, -0.2, -0.3])
    atoms.calc = SinglePointCalculator(atoms, energy=99.0, forces=np.ones((3, 3)))
    frames = [through_extxyz(atoms)]
    names = {name: f"REF_{name}" for name in ("energy", "forces", "dipole", "charges")}
    take_names(frames, names | {"total_charge": "total_charge"})
    labels = labels_of(frames[0])
    assert labels.energy == -14.0 and labels.total_charge == -1.0
    np.testing.assert_array_equal(labels.forces, np.arange(9.0).reshape(3, 3))
    np.testing.assert_array_equal(labels.dipole, [0.1, 0.0, 0.4])
    np.testing.assert_array_equal(labels.charges, [-0.5, -0.2, -0.3])


@pytest.mark.parametrize("as_matrix", [True, False])
def test_a_virial_is_minus_the_derivative_with_a_strain(as_matrix: bool) -> None:
    """W = −dE/dε, of a strained crystal by central differences; stress = −W/V, as ASE has it."""
    atoms = bulk("Ar", "fcc", a=5.0, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.eye(3, k=1)), scale_atoms=True)

    def energy(i: int, j: int, step: float) -> float:
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0, smooth=True)
        return strained.get_potential_energy()

    virial = np.array(
        [[-(energy(i, j, 1e-4) - energy(i, j, -1e-4)) / 2e-4 for j in range(3)] for i in range(3)]
    )
    atoms.info["virial"] = virial if as_matrix else virial.ravel()
    atoms.calc = SinglePointCalculator(atoms, stress=np.full(6, 7.0))
    labelled = through_extxyz(atoms)
    take_names([labelled], {"virial": "virial"})
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0, smooth=True)
    expected = atoms.get_stress(voigt=False)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(labels_of(labelled).stress, expected, atol=1e-7)


def test_a_virial_without_a_volume_is_no_stress() -> None:
    atoms = molecule("H2O")
    atoms.info["virial"] = np.eye(3)
    take_names([atoms], {"virial": "virial"})
    assert labels_of(atoms).stress is None


def test_a_frame_without_the_column_lacks_the_label() -> None:
    """What it has under our name is of another origin, and no substitute."""
    frames = [Atoms("Cu", info={"energy": -1.0}), Atoms("Cu", info={"dft": -5.0, "energy": -2.0})]
    take_names(frames, {"energy": "dft"})
    assert [labels_of(atoms).energy for atoms in frames] == [None, -5.0]


def test_names_may_be_exchanged() -> None:
    atoms = Atoms("Cu", info={"energy": -1.0, "corrected": -2.0})
    take_names([atoms], {"energy": "corrected"})
    assert labels_of(atoms).energy == -2.0
    atoms = Atoms("Cu2", info={"charge": 1.0, "q": 2.0})
    take_names([atoms], {"total_charge": "q"})
    assert labels_of(atoms).total_charge == 2.0


def test_charges_of_atoms_and_of_the_whole_are_told_apart() -> None:
    atoms = Atoms("NaCl", info={"charge": 1.0})
    atoms.arrays["hirshfeld"] = np.array([0.9, 0.1])
    atoms.arrays["charge"] = np.array([5.0, 5.0])
    take_names([atoms], {"charges": "hirshfeld"})
    labels = labels_of(atoms)
    assert labels.total_charge == 1.0
    np.testing.assert_array_equal(labels.charges, [0.9, 0.1])


def test_errors() -> None:
    frames = [
        Atoms("Cu2", info={"dft_energy": -1.0, "virial": np.zeros(6)}, pbc=True, cell=[5] * 3)
    ]
    with pytest.raises(DataError, match=r"column dtf_energy to read energy .* has dft_energy, vir"):
        take_names(frames, {"energy": "dtf_energy"})
    with pytest.raises(DataError, match=r"expected names out of energy, forces.* got mass"):
        take_names(frames, {"mass": "m"})
    with pytest.raises(DataError, match=r"stress or virial.* got both"):
        take_names(frames, {"stress": "s", "virial": "virial"})
    with pytest.raises(DataError, match=r"frame 0, virial: expected .* nine numbers, got 6"):
        take_names(frames, {"virial": "virial"})
    frames[0].info["wrong"] = np.zeros((3, 3))
    with pytest.raises(DataError, match=r"one row per atom, 2, got shape \(3, 3\)"):
        take_names(frames, {"forces": "wrong"})
