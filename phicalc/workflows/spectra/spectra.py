"""Vibrational density of states and infrared spectrum from a trajectory."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from phicalc.checks.settings import Positive, Settings
from phicalc.errors import UnsupportedError
from phicalc.machine.files import prepare_folder, refuse_existing, replacing
from phicalc.workflows.figures import LINE, save_figure
from phicalc.workflows.spectra.correlation import (
    SPEED_OF_LIGHT,
    QuantumCorrection,
    Window,
    correlation_function,
    number_of_lags,
    relative_correction,
    resolution_of,
    spectrum_of,
    wavenumber_grid,
)
from phicalc.workflows.spectra.motion import Motion, read_motion

Array = NDArray[np.float64]
KM_PER_MOL = units._Nav / (12.0 * units._eps0 * units._c**2) * units._e**2 / units._amu * 1e-3
"""Integrated absorption N_A |dμ/dQ|² / (12 ε₀ c²) of one mode for 1 e²/u, in km/mol."""


class SpectraSettings(Settings):
    """How a trajectory becomes spectra. Wavenumbers in cm⁻¹, times in fs."""

    correlation_time: Positive = Field(
        2000.0,
        description="longest lag of correlation functions, fs, at most half the trajectory; its "
        "inverse is the resolution (2000 fs: 17 cm⁻¹)",
    )
    window: Window = Field(
        "hann", description="function by which the correlation functions fade out"
    )
    maximum: Positive = Field(4000.0, description="largest wavenumber, cm⁻¹")
    quantum_correction: QuantumCorrection = Field(
        "harmonic",
        description="factor that makes a classical correlation function obey detailed balance: "
        "harmonic βħω/(1−exp(−βħω)), standard 2/(1+exp(−βħω)) or schofield exp(βħω/2)",
    )
    temperature: Positive | None = Field(
        None, description="temperature, K; else the trajectory's own"
    )
    interval: Positive | None = Field(
        None, description="time between frames, fs; else as the frames say"
    )


@dataclass(frozen=True)
class Spectrum:
    """A spectrum on an even grid.

    Attributes
    ----------
    wavenumbers
        (K,) in cm⁻¹.
    intensity
        (K,) in `unit`.
    unit
        Of the intensity.
    parts
        (K,) for each chemical element, adding up to the intensity; empty for infrared spectra.
    resolution
        Full width at half height of a sharp line with the Hann window, cm⁻¹.
    description
        Temperature, window and corrections, in words.
    """

    wavenumbers: Array
    intensity: Array
    unit: str
    parts: dict[str, Array]
    resolution: float
    description: str


@dataclass(frozen=True)
class SpectraResult:
    """Spectra of a trajectory.

    Attributes
    ----------
    density
        Vibrational density of states; its integral is three per atom.
    infrared
        Infrared spectrum, None where the trajectory has no dipoles.
    note
        Why there is no infrared spectrum, None where there is.
    files
        What was written.
    """

    density: Spectrum
    infrared: Spectrum | None
    note: str | None
    files: tuple[Path, ...]


class Spectra:
    """Spectra of a trajectory that has momenta, and for the infrared dipoles.

        result = Spectra("run/md.traj", SpectraSettings(), folder="run").run()

    Molecules need the property `dipole` in the frames; crystals and liquids `polarization`, which
    `MDSettings(properties=("polarization",))` makes a run write. Writes `spectra.png`,
    `spectra-density.csv` and `spectra-infrared.csv`.

    Parameters
    ----------
    source
        A trajectory file, or frames.
    settings
        How to correlate.
    folder
        Where to write; None: nowhere.
    name
        Start of the files' names.
    """

    def __init__(
        self,
        source: str | Path | Iterable[Atoms],
        settings: SpectraSettings,
        folder: str | Path | None = None,
        name: str = "spectra",
    ) -> None:
        self.source = source
        self.settings = settings
        self.folder = None if folder is None else Path(folder)
        self.name = name

    def run(self, *, overwrite: bool = False) -> SpectraResult:
        """Read, correlate and write.

        Parameters
        ----------
        overwrite
            Replace the files of an earlier call.

        Raises
        ------
        DataError
            The trajectory cannot be read or used.
        ConfigError
            Frames too far apart for the largest wavenumber.
        OutputError
            A file is in the way or cannot be written.
        """
        motion = read_motion(self.source, self.settings.interval)
        density = vibrational_density(motion, self.settings)
        infrared, note = None, None
        try:
            infrared = infrared_spectrum(motion, self.settings)
        except UnsupportedError as error:
            note = str(error)
        files: tuple[Path, ...] = ()
        if self.folder is not None:
            stem = prepare_folder(self.folder) / self.name
            files = self._write(stem, density, infrared, overwrite)
        return SpectraResult(density, infrared, note, files)

    def _write(
        self, stem: Path, density: Spectrum, infrared: Spectrum | None, overwrite: bool
    ) -> tuple[Path, ...]:
        tables = {"density": density} | ({} if infrared is None else {"infrared": infrared})
        paths = [stem.with_name(f"{stem.name}-{kind}.csv") for kind in tables]
        picture = stem.with_name(f"{stem.name}.png")
        if not overwrite:
            refuse_existing(*paths, picture)
        for path, spectrum in zip(paths, tables.values(), strict=True):
            with replacing(path) as new:
                new.write_text(as_csv(spectrum), encoding="utf-8")
        with replacing(picture) as new:
            save_figure(draw_spectra(tables), new)
        return (*paths, picture)


def vibrational_density(motion: Motion, settings: SpectraSettings) -> Spectrum:
    """Density of states from the mass-weighted velocity autocorrelation function.

    Parameters
    ----------
    motion
        The trajectory.
    settings
        Lags, window, range.

    Returns
    -------
    Spectrum
        In states per cm⁻¹, three per atom in all, by element in `parts`.

    Notes
    -----
    P. H. Berens et al., J. Chem. Phys. 79, 2375 (1983), doi 10.1063/1.446044.

    Raises
    ------
    ConfigError
        Frames too far apart for the largest wavenumber.
    """
    lags = _lags(motion, settings)
    correlations = {
        str(symbol): correlation_function(
            motion.velocities[:, motion.symbols == symbol].reshape(len(motion.velocities), -1),
            np.repeat(motion.masses[motion.symbols == symbol], 3),
            lags,
        )
        for symbol in sorted(set(motion.symbols))
    }
    states = 3.0 * len(motion.masses) / sum(c[0] for c in correlations.values())
    parts = {
        symbol: states * spectrum_of(correlation, settings.window, motion.interval)
        for symbol, correlation in correlations.items()
    }
    wavenumbers = wavenumber_grid(lags, motion.interval)
    kept = wavenumbers <= settings.maximum
    return Spectrum(
        wavenumbers=wavenumbers[kept],
        intensity=np.sum(list(parts.values()), axis=0)[kept],
        unit="states per cm⁻¹",
        parts={symbol: part[kept] for symbol, part in parts.items()},
        resolution=resolution_of(lags, motion.interval),
        description=f"{motion.temperature:.0f} K, window {settings.window}",
    )


def infrared_spectrum(motion: Motion, settings: SpectraSettings) -> Spectrum:
    """Infrared absorption from the autocorrelation function of the dipole's rate of change.

    With the harmonic quantum correction the product of refractive index and absorption is
    n α(ω) = ∫ ⟨Ṁ(0)·Ṁ(t)⟩ e^{−iωt} dt / (6 ε₀ c V k_B T); the other corrections multiply it by
    their ratio to the harmonic one.

    Parameters
    ----------
    motion
        The trajectory, with dipoles.
    settings
        Lags, window, range, quantum correction, temperature.

    Returns
    -------
    Spectrum
        Of a molecule in km/mol per cm⁻¹, so that the integral over a band is its intensity in
        km/mol; of a crystal or liquid n α in cm⁻¹.

    Notes
    -----
    R. Ramírez et al., J. Chem. Phys. 121, 3973 (2004), doi 10.1063/1.1774986.

    Raises
    ------
    UnsupportedError
        The trajectory has no dipoles.
    ConfigError
        Frames too far apart for the largest wavenumber.
    """
    if motion.dipoles is None:
        raise UnsupportedError(
            "no infrared spectrum: expected the property dipole (molecules) or polarization "
            "(crystals, liquids) in every frame"
        )
    lags = _lags(motion, settings)
    temperature = settings.temperature or motion.temperature
    # central differences damp a wave by sin(ω dt) / (ω dt), which is made good below
    rate = (motion.dipoles[2:] - motion.dipoles[:-2]) / (2.0 * motion.interval)
    rate -= rate.mean(axis=0)
    correlation = correlation_function(rate, np.ones(3), lags)
    wavenumbers = wavenumber_grid(lags, motion.interval)
    phase = 2.0 * np.pi * SPEED_OF_LIGHT * wavenumbers * motion.interval
    damping = np.sinc(phase / np.pi)
    kept = (wavenumbers <= settings.maximum) & (damping > 0.05)
    # ⟨Ṁ²⟩ = k_B T |dμ/dQ|² of one mode; e² Å²/fs² over k_B T in e²/u
    per_mode = units.fs**-2 / (units.kB * temperature)
    intensity = spectrum_of(correlation, settings.window, motion.interval)[kept]
    intensity /= damping[kept] ** 2
    intensity *= per_mode * KM_PER_MOL
    intensity *= relative_correction(settings.quantum_correction, wavenumbers[kept], temperature)
    unit = "km/mol per cm⁻¹"
    if motion.volume is not None:
        # km/mol per cm⁻¹ is 1e5 cm² / mol; times molecules per cm³
        intensity *= 1e5 / units._Nav / (motion.volume * 1e-24)
        unit = "cm⁻¹"
    return Spectrum(
        wavenumbers=wavenumbers[kept],
        intensity=intensity,
        unit=unit,
        parts={},
        resolution=resolution_of(lags, motion.interval),
        description=f"{temperature:.0f} K, window {settings.window}, quantum correction "
        f"{settings.quantum_correction}",
    )


def draw_spectra(spectra: dict[str, Spectrum]) -> Figure:
    """Spectra below each other, on one axis of wavenumbers.

    Parameters
    ----------
    spectra
        By their names.
    """
    figure = Figure(figsize=(7.0, 2.8 * len(spectra) + 0.4))
    rows = figure.subplots(len(spectra), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, spectrum) in zip(rows, spectra.items(), strict=True):
        axes.plot(spectrum.wavenumbers, spectrum.intensity, color=LINE, linewidth=1.0)
        if len(spectrum.parts) > 1:
            for symbol, part in spectrum.parts.items():
                axes.plot(spectrum.wavenumbers, part, linewidth=0.8, label=symbol)
            axes.legend(frameon=False)
        axes.set_title(f"{name}: {spectrum.description}", fontsize="small", loc="left")
        axes.set_ylabel(spectrum.unit)
        axes.set_xlim(0.0, spectrum.wavenumbers[-1])
        axes.set_ylim(bottom=0.0)
    rows[-1].set_xlabel("wavenumber / cm⁻¹")
    return figure


def as_csv(spectrum: Spectrum) -> str:
    """The spectrum as a table; its first line, after "# ", describes it."""
    names = ["wavenumber", "intensity", *spectrum.parts]
    columns = [spectrum.wavenumbers, spectrum.intensity, *spectrum.parts.values()]
    text = io.StringIO()
    text.write(f"# {spectrum.description}; wavenumber in cm⁻¹, intensity in {spectrum.unit}\n")
    text.write(",".join(names) + "\n")
    np.savetxt(text, np.column_stack(columns), fmt="%.8g", delimiter=",")
    return text.getvalue()


def _lags(motion: Motion, settings: SpectraSettings) -> int:
    """Number of lags for a trajectory."""
    frames = len(motion.velocities)
    return number_of_lags(settings.correlation_time, motion.interval, frames, settings.maximum)
