"""The shipped crystal model: its long supercells against its own Born charges and ε∞."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from phicalc import PhiCalculator
from phicalc.units import COULOMB_CONSTANT
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings

MODEL = Path(__file__).resolve().parents[1] / "models" / "kcl-crystal.pt"
SPACING = 6.41  # Å, the model's own lattice constant
DISPLACEMENT = 0.01  # Å
FREQUENCY = 15.633302  # THz per √(eV/Å²/amu)
NUMBERS = (19, 17)


@pytest.fixture(scope="module")
def calculator() -> PhiCalculator:
    return PhiCalculator(MODEL)


def dynamical_matrix(calculator: PhiCalculator, cells: int) -> np.ndarray:
    """Of longitudinal waves cos(qx) along [100], q = 2π/(cells·a); of q = 0 for one cell.

    (2, 2) | eV/Å²/amu. Planes across x hold ions of both kinds: inversion makes it real.
    """
    atoms = bulk("KCl", "rocksalt", a=SPACING, cubic=True) * (cells, 1, 1)
    phase = 2 * np.pi * atoms.positions[:, 0] / (cells * SPACING) if cells > 1 else 0.0
    wave = np.cos(phase) * np.ones(len(atoms))
    kinds = [np.flatnonzero(atoms.numbers == number) for number in NUMBERS]
    matrix = np.zeros((2, 2))
    for column, moving in enumerate(kinds):
        forces = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[moving, 0] += sign * DISPLACEMENT * wave[moving]
            moved.calc = calculator
            forces.append(moved.get_forces()[:, 0])
        constants = -(forces[0] - forces[1]) / (2 * DISPLACEMENT)
        for row, felt in enumerate(kinds):
            matrix[row, column] = constants[felt] @ wave[felt] / (wave[felt] @ wave[felt])
    masses = Atoms(numbers=NUMBERS).get_masses()
    return 0.5 * (matrix + matrix.T) / np.sqrt(np.outer(masses, masses))


def optical(matrix: np.ndarray) -> float:
    """Frequency of the upper branch | THz."""
    return float(np.sqrt(np.linalg.eigvalsh(matrix)[-1]) * FREQUENCY)


def test_long_supercells_meet_the_models_own_lo_frequency(calculator):
    """What phonopy's non-analytical term adds at Γ is where the model's own branch goes."""
    cell = bulk("KCl", "rocksalt", a=SPACING)
    cell.calc = calculator
    born = calculator.get_property("born_effective_charges", cell)
    dielectric = calculator.get_property("dielectric_tensor", cell)[0, 0]
    assert np.abs(born.sum(axis=0)).max() < 1e-6
    charges = born[[cell.numbers.tolist().index(z) for z in NUMBERS], 0, 0]
    weighted = charges / np.sqrt(Atoms(numbers=NUMBERS).get_masses())
    coupling = 4 * np.pi * COULOMB_CONSTANT / (cell.get_volume() * dielectric)
    transverse = dynamical_matrix(calculator, 1)
    longitudinal = optical(transverse + coupling * np.outer(weighted, weighted))
    cells = np.array([3, 4, 6, 8])
    squares = [optical(dynamical_matrix(calculator, int(n))) ** 2 for n in cells]
    limit = float(np.sqrt(np.polyfit(1.0 / cells**2.0, squares, 2)[-1]))
    assert longitudinal > optical(transverse) + 1.0
    assert limit == pytest.approx(longitudinal, rel=0.02)


@pytest.mark.parametrize("correction, splitting", [("model", 1.87), ("none", 0.0)])
@pytest.mark.filterwarnings("ignore:.*Point group symmetries of supercell")
def test_only_the_correction_splits_lo_from_to_at_gamma(
    calculator, correction, splitting, tmp_path
):
    atoms = bulk("KCl", "rocksalt", a=SPACING, cubic=True)
    atoms.calc = calculator
    settings = PhononSettings(relax=None, supercell=(2, 2, 2), correction=correction, mesh=10.0)
    phonons = Phonons(atoms, settings, tmp_path).run()
    modes = np.sort(phonons.gamma((1.0, 0.0, 0.0)))
    assert np.abs(modes[:3]).max() < 0.02
    assert phonons.lowest > -0.02
    assert modes[5] - modes[4] == pytest.approx(splitting, abs=0.1)
    assert modes[4] == pytest.approx(modes[3], abs=1e-3)


def test_the_spectrum_gives_back_potential_and_flow(calculator):
    """φ = Σ α_k u_k, and the charge that flowed is Lφ: Parseval for both."""
    atoms = bulk("KCl", "rocksalt", a=SPACING, cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = calculator
    flowed = atoms.get_charges() - np.where(atoms.symbols == "K", 1.0, -1.0)
    assert np.abs(flowed).max() > 1e-3
    eigenvalues, coefficients = calculator.spectrum()
    assert (coefficients**2).sum() == pytest.approx((calculator.potential**2).sum(), rel=1e-9)
    assert ((eigenvalues * coefficients) ** 2).sum() == pytest.approx((flowed**2).sum(), rel=1e-6)
