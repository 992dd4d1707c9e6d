"""Each integrator samples the ensemble that it is named after."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from scipy import stats

from phicalc.workflows.md.dynamics import MDResult, MolecularDynamics
from phicalc.workflows.md.ensemble import prepare_momenta
from phicalc.workflows.md.settings import MDSettings
from tests.workflows.springs import Springs

TEMPERATURE = 300.0


def run(atoms: Atoms, steps: int, ensemble: str, **changes: Any) -> MDResult:
    values: dict[str, Any] = {
        "steps": steps,
        "ensemble": ensemble,
        "timestep": 5.0,
        "temperature": TEMPERATURE,
        "thermostat_time": 50.0,
        "log_every": 4,
        "checkpoint_every": 10**6,
        "seed": 3,
    }
    return MolecularDynamics(atoms, MDSettings(**values | changes)).run()


@pytest.fixture
def warm(crystal) -> Atoms:
    """The crystal in equilibrium: a perfect one makes a Nosé–Hoover chain swing for long."""
    return run(crystal, 400, "langevin").atoms


def blocked(values: np.ndarray, blocks: int = 20) -> tuple[float, float]:
    """Mean and its standard error from the scatter of block means (blocks ≫ correlation)."""
    means = values[: len(values) // blocks * blocks].reshape(blocks, -1).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(blocks))


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover", "bussi"])
def test_kinetic_energy_has_the_right_mean_and_distribution(warm, ensemble):
    rows = run(warm, 6000, ensemble).log
    mean, error = blocked(rows["temperature_K"])
    assert error < 0.015 * TEMPERATURE
    assert abs(mean - TEMPERATURE) < 2.0 * error
    # samples further apart than the thermostat's memory are independent
    kinetic = rows["kinetic_eV"][::10]
    freedom = 96 if ensemble == "langevin" else 93
    expected = stats.chi2(freedom, scale=0.5 * units.kB * TEMPERATURE)
    assert stats.kstest(kinetic, expected.cdf).pvalue > 0.05
    wrong = stats.chi2(freedom, scale=0.5 * units.kB * TEMPERATURE * 1.05)
    assert stats.kstest(kinetic, wrong.cdf).pvalue < 0.01


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "nose-hoover", "bussi"])
def test_conserved_quantity_improves_with_the_square_of_the_step(warm, ensemble):
    drift = []
    for timestep in (8.0, 4.0):
        steps = int(2000 / timestep)
        rows = run(warm, steps, ensemble, timestep=timestep, log_every=1).log
        drift.append(np.ptp(rows["conserved_eV"]))
        if ensemble != "nve":
            assert drift[-1] < 0.1 * np.ptp(rows["kinetic_eV"] + rows["potential_eV"])
    assert drift[0] < 0.02 * rows["kinetic_eV"].mean()
    assert 0.15 < drift[1] / drift[0] < 0.4


@pytest.mark.parametrize("ensemble", ["npt", "npt-cell"])
def test_constant_pressure_is_held_and_the_enthalpy_conserved(warm, ensemble):
    pressure = 5.0
    result = run(warm, 2500, ensemble, pressure=pressure, log_every=2)
    rows = result.log[300:]
    mean, error = blocked(rows["pressure_GPa"])
    assert abs(mean - pressure) < 0.05 and error < 0.05
    assert rows["temperature_K"].mean() == pytest.approx(TEMPERATURE, rel=0.04)
    density = result.log["density_g_cm3"]
    assert 1.02 * density[0] < density[300:].mean() < 1.06 * density[0]
    assert np.ptp(result.log["conserved_eV"]) < 0.05 * np.ptp(rows["potential_eV"])
    lengths = result.atoms.cell.lengths()
    assert (np.ptp(lengths) < 1e-9) == (ensemble == "npt")


def test_nve_is_velocity_verlet(crystal):
    result = run(crystal, 200, "nve", timestep=10.0)
    other = crystal.copy()
    other.calc = crystal.calc
    settings = MDSettings(steps=1, ensemble="nve", temperature=TEMPERATURE)
    prepare_momenta(other, settings, np.random.default_rng(3))
    VelocityVerlet(other, 10.0 * units.fs).run(200)
    np.testing.assert_allclose(result.atoms.positions, other.positions, atol=1e-12)


def test_ramps_move_the_temperature_and_the_pressure(warm):
    temperatures = run(warm, 2000, "langevin", temperature=(300.0, 900.0)).log["temperature_K"]
    targets = np.linspace(300.0, 900.0, len(temperatures))
    for part in np.array_split(np.arange(len(targets)), 3):
        np.testing.assert_allclose(temperatures[part].mean(), targets[part].mean(), rtol=0.1)
    pressures = run(warm, 2000, "npt", pressure=(0.0, 10.0), barostat_time=500.0).log
    targets = np.linspace(0.0, 10.0, len(pressures))
    for part in np.array_split(np.arange(len(targets)), 3):
        pressure = pressures["pressure_GPa"][part].mean()
        np.testing.assert_allclose(pressure, targets[part].mean(), atol=0.5)
    settings = MDSettings(steps=100, temperature=(300.0, 600.0, 300.0))
    assert [settings.target_temperature(step) for step in (0, 25, 50, 75, 100)] == [
        *(300.0, 450.0, 600.0, 450.0, 300.0)
    ]


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover", "bussi"])
def test_fixed_atoms_stay_and_do_not_count(warm, ensemble):
    warm.set_momenta(np.zeros((32, 3)))
    result = run(warm, 3000, ensemble, fixed_atoms=tuple(range(8)))
    np.testing.assert_array_equal(result.atoms.positions[:8], warm.positions[:8])
    rows = result.log[100:]
    mean, error = blocked(rows["temperature_K"])
    assert abs(mean - TEMPERATURE) < 2.0 * error
    np.testing.assert_allclose(
        rows["kinetic_eV"], 0.5 * 72 * units.kB * rows["temperature_K"], rtol=1e-8
    )


@pytest.fixture
def water() -> Atoms:
    """Four waters held together by springs between their oxygens."""
    atoms = Atoms()
    for corner in np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]]):
        molecule_here = molecule("H2O")
        molecule_here.translate(corner)
        atoms += molecule_here
    oxygens = {("O", "O"): 5.0}
    atoms.calc = Springs(atoms, cutoff=oxygens, length=3.5, k=0.5, a=1.0)
    return atoms


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "nose-hoover", "bussi"])
def test_rigid_water_stays_rigid_at_the_right_temperature(water, ensemble):
    result = run(water, 3000, ensemble, timestep=2.0, rigid_water=True)
    for first in range(0, 12, 3):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            now = result.atoms.get_distance(first + a, first + b)
            assert now == pytest.approx(water.get_distance(first + a, first + b), rel=1e-9)
    rows = result.log[100:]
    assert np.ptp(rows["conserved_eV"]) < 0.02 * rows["kinetic_eV"].mean()
    free = {"langevin": 24}.get(ensemble, 18)
    np.testing.assert_allclose(
        rows["kinetic_eV"], 0.5 * free * units.kB * rows["temperature_K"], rtol=1e-8
    )
    if ensemble != "nve":
        mean, error = blocked(rows["temperature_K"])
        assert error < 20.0 and abs(mean - TEMPERATURE) < 2.0 * error


def test_velocities_have_no_drift_and_no_rotation():
    atoms = molecule("C6H6")
    atoms.calc = Springs(atoms, cutoff=1.6, length=1.4)
    result = run(atoms, 1, "nve", timestep=0.1, temperature=300.0, log_every=1)
    momenta = result.atoms.get_momenta()
    assert np.abs(momenta.sum(axis=0)).max() < 1e-10
    assert np.abs(result.atoms.get_angular_momentum()).max() < 1e-3
    row = result.log[0]
    free = 2.0 * row["kinetic_eV"] / (units.kB * row["temperature_K"])
    assert free == pytest.approx(36 - 6)
