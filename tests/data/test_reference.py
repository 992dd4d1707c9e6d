"""Reference energies with known answers."""

import numpy as np
import pytest
from ase import Atoms
from ase.data import atomic_numbers
from ase.symbols import string2symbols

from phicalc.data.reference import fit_reference_energies, isolated_energies, robust_shifts
from phicalc.errors import DataError

TRUE = {1: -13.587, 6: -1029.863, 8: -2042.03, 11: -4413.2, 17: -12520.9}


def numbers(formula: str) -> np.ndarray:
    return np.array([atomic_numbers[symbol] for symbol in string2symbols(formula)])


def energy(formula: str) -> float:
    return sum(TRUE[int(z)] for z in numbers(formula))


def test_recovers_the_energies_of_independent_elements() -> None:
    formulas = ["H2O", "CH4", "CO2", "C2H6", "H2"]
    fit = fit_reference_energies([numbers(f) for f in formulas], [energy(f) for f in formulas])
    assert fit.energies == pytest.approx({z: TRUE[z] for z in (1, 6, 8)}, abs=1e-8)
    assert fit.rank == 3
    assert fit.residual_max < 1e-9


def test_one_to_one_elements_share_their_sum_evenly() -> None:
    """Salt water: only Na + Cl and O + 2 H are fixed by the data."""
    formulas = [f"Na{n}Cl{n}O{w}H{2 * w}" for n, w in [(1, 54), (4, 60), (8, 48), (2, 64)]]
    formulas.append("O64H128")
    fit = fit_reference_energies([numbers(f) for f in formulas], [energy(f) for f in formulas])
    assert fit.rank == 2
    assert fit.energies[11] + fit.energies[17] == pytest.approx(TRUE[11] + TRUE[17], abs=1e-6)
    assert fit.energies[11] == pytest.approx(fit.energies[17], abs=1e-6)
    assert fit.energies[8] + 2 * fit.energies[1] == pytest.approx(energy("H2O"), abs=1e-6)
    assert fit.residual_max < 1e-8
    assert set(fit.energies) == {1, 8, 11, 17}


def test_a_single_composition_gives_every_element_the_mean() -> None:
    fit = fit_reference_energies([numbers("C2H6O")] * 3, np.array([-9.0, -18.0, -27.0]))
    assert fit.rank == 1
    assert fit.energies[1] * 6 + fit.energies[6] * 2 + fit.energies[8] == pytest.approx(-18.0)
    assert fit.energies == pytest.approx(dict.fromkeys((1, 6, 8), -2.0))
    assert fit.residual_mean == pytest.approx(0.0, abs=1e-12)
    assert fit.residual_max == pytest.approx(1.0)
    assert fit.residual_rms == pytest.approx(np.sqrt(2 / 3))


def test_a_single_element_and_a_single_structure() -> None:
    fit = fit_reference_energies([[47, 47, 47], [47]], [-30.0, -14.0])
    assert fit.energies == pytest.approx({47: -12.0})
    assert fit_reference_energies([[47, 47]], [-30.0]).energies == pytest.approx({47: -15.0})


def test_large_energies_keep_their_meV() -> None:
    """Totals of −30000 eV that differ by meV: the residual is their noise, not rounding."""
    rng = np.random.default_rng(0)
    formulas = [f"Na{n}Cl{n}O{w}H{2 * w}" for n in range(1, 9) for w in range(48, 65)]
    species = [numbers(f) for f in formulas]
    noise = 1e-3 * rng.normal(size=len(formulas))
    energies = np.array([energy(f) for f in formulas]) + noise * [len(s) for s in species]
    fit = fit_reference_energies(species, energies)
    assert abs(energies).max() > 30_000
    assert fit.residual_rms == pytest.approx(noise.std(), rel=0.1)
    predicted = [sum(fit.energies[int(z)] for z in s) / len(s) for s in species]
    actual = [energy(f) / len(s) for f, s in zip(formulas, species, strict=True)]
    assert np.abs(np.subtract(predicted, actual)).max() < 1e-3


def test_order_and_repetition_do_not_matter() -> None:
    species = [numbers(f) for f in ("H2O", "CO2", "CH4", "C2H6")]
    energies = np.array([-10.0, -20.0, -30.0, -44.0])
    fit = fit_reference_energies(species, energies).energies
    shuffled = fit_reference_energies(
        [s[::-1] for s in species[::-1]] * 2, np.tile(energies[::-1], 2)
    )
    assert shuffled.energies == pytest.approx(fit, abs=1e-10)


def test_open_elements_are_named() -> None:
    """Na and Cl are always 1:1, water's elements are fixed by hydrogen beside it."""
    formulas = ["H2O", "H2", "NaClH2O", "Na2Cl2H2O"]
    fit = fit_reference_energies([numbers(f) for f in formulas], [energy(f) for f in formulas])
    assert fit.open == (11, 17) and fit.rank == 3
    assert fit.energies[1] == pytest.approx(TRUE[1])
    assert fit_reference_energies([[1], [8], [1, 8]], [-1.0, -2.0, -3.0]).open == ()
    assert fit_reference_energies([numbers("H2O")] * 2, [-1.0, -1.0]).open == (1, 8)


def test_given_energies_are_kept_and_the_others_fitted_to_the_rest() -> None:
    formulas = ["NaClH2O", "Na2Cl2H2O", "H2O"]
    species = [numbers(f) for f in formulas]
    given = {11: TRUE[11], 1: TRUE[1], 92: -1.0}
    fit = fit_reference_energies(species, [energy(f) for f in formulas], given)
    assert fit.energies == pytest.approx({z: TRUE[z] for z in (1, 8, 11, 17)}, abs=1e-6)
    assert (fit.given, fit.open, fit.rank) == ((1, 11), (), 4)
    assert fit.residual_max < 1e-7
    everything = fit_reference_energies(species, np.zeros(3), dict.fromkeys((1, 8, 11, 17), 1.0))
    assert set(everything.energies.values()) == {1.0}
    assert everything.residual_mean == pytest.approx(-1.0)


def test_an_element_without_any_energy_is_left_at_the_common_part() -> None:
    fit = fit_reference_energies([[1, 1], [1]], [-4.0, -2.0], elements=[1, 8])
    assert fit.energies == pytest.approx({1: -2.0, 8: -2.0})
    assert fit.open == (8,)


def test_shifts_are_robust_and_nearest_to_none() -> None:
    """A few structures that a model is wildly off in do not bend the rest."""
    rng = np.random.default_rng(3)
    formulas = [f"Na{n}Cl{n}O{w}H{2 * w}" for n in range(4) for w in range(10, 20)]
    species = [numbers(f) for f in formulas]
    shift = {1: -1.0, 8: 3.0, 11: 0.5, 17: 0.5}
    off = np.array([sum(shift[int(z)] for z in s) + 1e-3 * len(s) * rng.normal() for s in species])
    off[[3, 17, 30]] += 1e6
    found = robust_shifts(species, off, [1, 8, 11, 17])
    assert found[11] + found[17] == pytest.approx(1.0, abs=0.2)
    assert found[11] == pytest.approx(found[17], abs=1e-6)
    assert 2 * found[1] + found[8] == pytest.approx(1.0, abs=3e-3)
    assert robust_shifts(species, np.zeros(len(species)), [1, 8]) == {1: 0.0, 8: 0.0}


def test_isolated_atoms_are_single_neutral_and_alone() -> None:
    def atom(symbol: str, energy: float, **more: object) -> Atoms:
        periodic = more.pop("pbc", False)
        return Atoms(symbol, cell=[20] * 3, pbc=periodic, info={"energy": energy, **more})

    frames = [
        atom("H", -13.5),
        atom("H", -13.6),
        atom("H", -50.0, pbc=True),  # a crystal of one atom per cell
        atom("O", -432.0, pbc=True, config_type="IsolatedAtom"),
        atom("Na", -10.0, charge=1),
        Atoms("Cl"),
        Atoms("Cl2", info={"energy": -3.0}),
    ]
    assert isolated_energies(frames) == {1: -13.6, 8: -432.0}


def test_errors() -> None:
    with pytest.raises(DataError, match=r"one energy for each .* got 0 structures"):
        fit_reference_energies([], [])
    with pytest.raises(DataError, match=r"got 2 structures and energies of shape \(1,\)"):
        fit_reference_energies([[1], [1]], [-1.0])
    with pytest.raises(DataError, match="expected finite energies of structures with atoms"):
        fit_reference_energies([[1]], [np.nan])
    with pytest.raises(DataError, match="expected finite energies of structures with atoms"):
        fit_reference_energies([[1], []], [-1.0, 0.0])
