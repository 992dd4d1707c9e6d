"""Spectra of motions whose frequencies and intensities are known."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.vibrations import Vibrations

from phicalc.errors import ConfigError, DataError, OutputError, UnsupportedError
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from phicalc.workflows.spectra.motion import read_motion
from phicalc.workflows.spectra.spectra import Spectra, SpectraSettings, Spectrum, infrared_spectrum
from tests.workflows.springs import Springs

CM = 1.0 / (2.0 * np.pi * units._c * 100.0) * 1e15
"""rad/fs in cm⁻¹."""

DEBYE_PER_ANGSTROM = 42.2561
"""Published: km/mol for 1 (D/Å)²/u, as in every table of harmonic intensities."""


class ChargedSprings(Springs):
    """Springs between atoms of fixed charges."""

    implemented_properties: ClassVar[list[str]] = [*Springs.implemented_properties, "dipole"]

    def __init__(self, atoms: Atoms, charges: list[float], **springs: Any) -> None:
        super().__init__(atoms, **springs)
        self.charges = np.array(charges)

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.results["dipole"] = self.charges @ self.atoms.positions


def peak(spectrum: Spectrum, low: float, high: float) -> float:
    """Where the highest point between two wavenumbers is, by a parabola through three."""
    inside = np.flatnonzero((spectrum.wavenumbers > low) & (spectrum.wavenumbers < high))
    top = inside[np.argmax(spectrum.intensity[inside])]
    before, at, after = spectrum.intensity[top - 1 : top + 2]
    shift = 0.5 * (before - after) / (before - 2.0 * at + after)
    return float(spectrum.wavenumbers[top] + shift * spectrum.wavenumbers[1])


def integral(spectrum: Spectrum, low: float = 0.0, high: float = np.inf) -> float:
    inside = (spectrum.wavenumbers >= low) & (spectrum.wavenumbers <= high)
    spacing = spectrum.wavenumbers[1] - spectrum.wavenumbers[0]
    return float(spectrum.intensity[inside].sum() * spacing)


TEMPERATURE, CHARGE, WAVENUMBER = 300.0, 0.4, 2143.0


def diatomic(periodic: bool = False, interval: float = 1.0) -> Iterator[Atoms]:
    """C and O swinging at 2143 cm⁻¹ with the mean kinetic energy ½ kT, charges ±0.4 e."""
    atoms = Atoms("CO", positions=[[0, 0, 0], [1.13, 0, 0]], cell=[10.0] * 3, pbc=periodic)
    masses = atoms.get_masses()
    reduced = masses.prod() / masses.sum()
    omega = WAVENUMBER / CM / units.fs
    amplitude = np.sqrt(2.0 * units.kB * TEMPERATURE / reduced) / omega
    for number in range(8192):
        phase = omega * number * interval * units.fs
        stretch, rate = amplitude * np.cos(phase), -amplitude * omega * np.sin(phase)
        frame = atoms.copy()
        share = np.array([-masses[1], masses[0]]) / masses.sum()
        frame.positions[:, 0] += share * stretch
        frame.set_velocities(np.outer(share * rate, [1.0, 0.0, 0.0]))
        frame.info["time_fs"] = number * interval
        moment = CHARGE * (frame.positions[1] - frame.positions[0])
        results = {"polarization": moment / 1000.0} if periodic else {"dipole": moment}
        frame.calc = SinglePointCalculator(frame, **results)
        yield frame


def test_a_diatomic_has_its_frequency_and_its_intensity():
    result = Spectra(diatomic(), SpectraSettings(correlation_time=1000.0)).run()
    density, infrared = result.density, result.infrared
    assert peak(density, 1000, 3000) == pytest.approx(WAVENUMBER, abs=0.5)
    assert integral(density) == pytest.approx(6.0, rel=1e-3)
    assert integral(density, 2000, 2300) == pytest.approx(6.0, rel=0.01)
    # momentum is conserved: the lighter atom has the larger share
    carbon = density.parts["C"].sum() / density.intensity.sum()
    assert carbon == pytest.approx(15.999 / 28.010, rel=1e-3)
    assert peak(infrared, 1000, 3000) == pytest.approx(WAVENUMBER, abs=0.5)
    masses = np.array([12.011, 15.999])
    slope = CHARGE / units.Debye
    expected = DEBYE_PER_ANGSTROM * slope**2 * masses.sum() / masses.prod()
    assert integral(infrared) == pytest.approx(expected, rel=0.01)
    assert infrared.unit == "km/mol per cm⁻¹"
    assert "quantum correction harmonic" in infrared.description
    half = infrared.intensity > 0.5 * infrared.intensity.max()
    width = half.sum() * infrared.wavenumbers[1]
    assert width == pytest.approx(infrared.resolution, rel=0.1)
    assert infrared.resolution == pytest.approx(33.4, abs=0.2)


def test_a_crystal_absorbs_the_same_per_volume():
    motion = read_motion(diatomic())
    periodic = read_motion(diatomic(periodic=True))
    settings = SpectraSettings(temperature=TEMPERATURE)
    single = infrared_spectrum(motion, settings)
    crystal = infrared_spectrum(periodic, settings)
    assert crystal.unit == "cm⁻¹" and periodic.volume == pytest.approx(1000.0)
    per_molecule = single.intensity * 1e5 / units._Nav / 1e-21
    np.testing.assert_allclose(crystal.intensity, per_molecule, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("interval", [1.0, 3.0])
def test_coarser_frames_and_other_windows_give_the_same(interval):
    motion = read_motion(diatomic(interval=interval))
    values = {"correlation_time": 1000.0, "maximum": 3000.0, "temperature": TEMPERATURE}
    reference = integral(infrared_spectrum(motion, SpectraSettings(**values)))
    slope = CHARGE / units.Debye
    masses = np.array([12.011, 15.999])
    expected = DEBYE_PER_ANGSTROM * slope**2 * masses.sum() / masses.prod()
    assert reference == pytest.approx(expected, rel=0.02)
    for window in ("blackman", "none"):
        other = infrared_spectrum(motion, SpectraSettings(**values, window=window))
        assert integral(other) == pytest.approx(reference, rel=0.05)
        assert peak(other, 1000, 2900) == pytest.approx(WAVENUMBER, abs=1.0)


@pytest.mark.parametrize("ensemble, free", [("langevin", 9), ("nve", 3)])
def test_the_temperature_counts_what_moves(ensemble, free, tmp_path):
    """A run starts without drift and rotation; a thermostat of friction and noise heats them."""
    atoms = molecule("H2O")
    atoms.calc = ChargedSprings(atoms, [-0.8, 0.4, 0.4], cutoff=2.0, length=1.0)
    settings = {"steps": 2000, "timestep": 0.5, "thermostat_time": 50.0, "trajectory_every": 4}
    MolecularDynamics(
        atoms, MDSettings(ensemble=ensemble, temperature=300.0, **settings), tmp_path / "run"
    ).run()
    frames = read(tmp_path / "run" / "md.traj", ":")
    kinetic = np.mean([frame.get_kinetic_energy() for frame in frames])
    expected = 2.0 * kinetic / (free * units.kB)
    found = read_motion(tmp_path / "run" / "md.traj").temperature
    assert found == pytest.approx(expected, rel=0.01)  # the first frame of 501 has no drift yet


def test_quantum_corrections_differ_by_their_formulas():
    motion = read_motion(diatomic())
    values = {"temperature": TEMPERATURE, "correlation_time": 1000.0}
    kinds = ("harmonic", "standard", "schofield")
    spectra = {
        k: infrared_spectrum(motion, SpectraSettings(**values, quantum_correction=k)) for k in kinds
    }
    grid = spectra["harmonic"].wavenumbers
    here = int(np.argmin(np.abs(grid - WAVENUMBER)))
    energy = 1.438777 * grid[here] / TEMPERATURE
    harmonic = energy / (1.0 - np.exp(-energy))
    at_peak = {kind: spectrum.intensity[here] for kind, spectrum in spectra.items()}
    ratios = {kind: value / at_peak["harmonic"] for kind, value in at_peak.items()}
    assert ratios["standard"] == pytest.approx(2.0 / (1.0 + np.exp(-energy)) / harmonic, rel=1e-4)
    assert ratios["schofield"] == pytest.approx(np.exp(0.5 * energy) / harmonic, rel=1e-4)


@pytest.fixture
def water() -> Atoms:
    """A water molecule of springs with charges, relaxed."""
    atoms = molecule("H2O")
    pairs = {("O", "H"): 1.3, ("H", "H"): 2.0}
    atoms.calc = ChargedSprings(atoms, [-0.8, 0.4, 0.4], cutoff=pairs, length=1.2, k=20.0, a=0.0)
    return Relaxation(atoms, RelaxSettings(max_force=1e-6)).run().atoms


def test_a_molecule_shows_its_normal_modes(water, tmp_path):
    """Frequencies against ASE's Vibrations, which differentiates the forces."""
    vibrations = Vibrations(water, name=tmp_path / "modes", delta=1e-3)
    vibrations.run()
    harmonic = vibrations.get_frequencies().real[-3:]
    settings = MDSettings(
        steps=8000,
        ensemble="nve",
        temperature=20.0,
        timestep=0.25,
        trajectory_every=4,
        checkpoint_every=10**6,
        seed=1,
    )
    MolecularDynamics(water, settings, tmp_path).run()
    spectra = SpectraSettings(correlation_time=1000.0)
    result = Spectra(tmp_path / "md.traj", spectra, tmp_path).run()
    for mode in harmonic:
        assert peak(result.density, mode - 100, mode + 100) == pytest.approx(mode, abs=5.0)
        assert peak(result.infrared, mode - 100, mode + 100) == pytest.approx(mode, abs=5.0)
    near = sum(integral(result.density, mode - 60, mode + 60) for mode in harmonic)
    assert near == pytest.approx(integral(result.density), rel=0.1)
    table = np.genfromtxt(tmp_path / "spectra-infrared.csv", delimiter=",", skip_header=2)
    np.testing.assert_allclose(table[:, 1], result.infrared.intensity, rtol=1e-6, atol=1e-12)
    lines = (tmp_path / "spectra-density.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[1] == "wavenumber,intensity,H,O"
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="exists already"):
        Spectra(tmp_path / "md.traj", spectra, tmp_path).run()
    again = Spectra(tmp_path / "md.traj", spectra, tmp_path).run(overwrite=True)
    assert again.files == result.files and len(again.files) == 3


def test_a_crystal_has_three_states_per_atom(crystal, tmp_path):
    settings = MDSettings(
        steps=1000,
        ensemble="nve",
        temperature=20.0,
        timestep=4.0,
        trajectory_every=2,
        log_every=1000,
        checkpoint_every=10**6,
    )
    MolecularDynamics(crystal, settings, tmp_path).run()
    frames = read(tmp_path / "md.traj", ":")
    result = Spectra(frames, SpectraSettings(maximum=400.0)).run()
    assert integral(result.density) == pytest.approx(96.0, rel=0.01)
    assert result.infrared is None and "polarization" in result.note
    with pytest.raises(UnsupportedError, match="no infrared spectrum"):
        infrared_spectrum(read_motion(frames), SpectraSettings(maximum=400.0))
    assert result.density.wavenumbers[-1] <= 400.0


def frames_of(**changes: Any) -> list[Atoms]:
    frames = []
    for number in range(changes.pop("count", 40)):
        frame = bulk("Cu", cubic=True)
        frame.info["time_fs"] = float(number)
        frame.set_momenta(np.full((4, 3), 0.1 * number))
        frames.append(frame)
    return frames


def test_what_makes_no_spectrum(tmp_path):
    settings = SpectraSettings()
    with pytest.raises(DataError, match="expected at least 16 frames, got 3"):
        Spectra(frames_of(count=3), settings).run()
    frames = frames_of()
    frames[7].info["time_fs"] = 7.5
    with pytest.raises(DataError, match=r"evenly spaced frames, got intervals of 0\.5 to"):
        Spectra(frames, settings).run()
    del frames[7].info["time_fs"]
    with pytest.raises(DataError, match="expected the time of each frame"):
        Spectra(frames, settings).run()
    assert Spectra(frames, SpectraSettings(interval=1.0)).run().infrared is None
    with pytest.raises(ConfigError, match=r"at most 1668 cm⁻¹ .*got 4000; .* every 4\.17 fs"):
        Spectra(frames, SpectraSettings(interval=10.0)).run()
    frames[3].set_array("momenta", None)
    with pytest.raises(DataError, match="expected frames with momenta, got none in frame 3"):
        Spectra(frames, SpectraSettings(interval=1.0)).run()
    frames[2].numbers[0] = 47
    with pytest.raises(DataError, match="others in frame 2"):
        Spectra(frames, SpectraSettings(interval=1.0)).run()
    (tmp_path / "no.traj").write_text("no trajectory")
    for path in (tmp_path / "no.traj", tmp_path / "missing.traj"):
        with pytest.raises(DataError, match="expected a trajectory, got"):
            Spectra(path, settings, tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="quantum_correction: expected 'harmonic'"):
        SpectraSettings(quantum_correction="best")
