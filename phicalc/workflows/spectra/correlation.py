"""From signals to spectra: correlation functions, their transforms, quantum corrections.

Times are in fs, wavenumbers in cm⁻¹.
"""

from typing import Literal

import numpy as np
from ase import units
from numpy.typing import NDArray

from phicalc.errors import ConfigError

Array = NDArray[np.float64]
Window = Literal["hann", "blackman", "none"]
QuantumCorrection = Literal["harmonic", "standard", "schofield"]

SPEED_OF_LIGHT = units._c * 1e2 * 1e-15
"""cm/fs."""

WAVENUMBER_TO_KELVIN = units._hplanck * units._c * 1e2 / units._k
"""hc/k_B: K per cm⁻¹."""


def number_of_lags(correlation_time: float, interval: float, frames: int, maximum: float) -> int:
    """Lags of a correlation function, zero included: at most half the frames.

    Parameters
    ----------
    correlation_time
        Longest lag wanted, fs.
    interval
        Between frames, fs.
    frames
        How many there are.
    maximum
        Largest wavenumber wanted, cm⁻¹.

    Raises
    ------
    ConfigError
        Frames too far apart for the largest wavenumber.
    """
    limit = 1.0 / (2.0 * SPEED_OF_LIGHT * interval)
    if maximum > limit:
        fine = 1.0 / (2.0 * SPEED_OF_LIGHT * maximum)
        raise ConfigError(
            f"maximum: expected at most {limit:.0f} cm⁻¹ from frames every {interval:g} fs, "
            f"got {maximum:g}; write a frame at least every {fine:.3g} fs"
        )
    wanted = int(correlation_time / interval) + 1
    return max(2, min(wanted, (frames - 2) // 2))


def correlation_function(signals: Array, weights: Array, lags: int) -> Array:
    """Autocorrelation Σ weight ⟨x(0) x(t)⟩, averaged over all starting times.

    Parameters
    ----------
    signals
        (T, S), S signals at T even times.
    weights
        (S,)
    lags
        How many, zero included; at most T.

    Returns
    -------
    ndarray
        (lags,)
    """
    count = len(signals)
    total = np.zeros(lags)
    for block in range(0, signals.shape[1], 64):  # of bounded memory
        part = slice(block, block + 64)
        # zeros behind the signals, so that the end does not meet the beginning
        spectrum = np.fft.rfft(signals[:, part], n=count + lags, axis=0)
        products = np.fft.irfft(np.abs(spectrum) ** 2, n=count + lags, axis=0)[:lags]
        total += products @ weights[part]
    return np.asarray(total / (count - np.arange(lags)))


def spectrum_of(correlation: Array, window: Window, interval: float) -> Array:
    """Spectrum of an autocorrelation function; its integral is the value at lag zero.

    Parameters
    ----------
    correlation
        (lags,), zero first.
    window
        By which it fades out.
    interval
        Between lags, fs.

    Returns
    -------
    ndarray
        (4 lags + 1,) per cm⁻¹, on `wavenumber_grid`.
    """
    lags = len(correlation)
    x = np.arange(lags) / lags
    fading = {
        "hann": 0.5 + 0.5 * np.cos(np.pi * x),
        "blackman": 0.42 + 0.5 * np.cos(np.pi * x) + 0.08 * np.cos(2.0 * np.pi * x),
        "none": np.ones(lags),
    }[window]
    faded = correlation * fading
    # both signs of the lag, on four times as many points for a smooth curve
    even = np.concatenate([faded, np.zeros(6 * lags + 1), faded[:0:-1]])
    return np.asarray(np.fft.rfft(even).real * 2.0 * interval * SPEED_OF_LIGHT)


def wavenumber_grid(lags: int, interval: float) -> Array:
    """Where `spectrum_of` gives values: (4 lags + 1,), cm⁻¹."""
    return np.asarray(np.fft.rfftfreq(8 * lags, interval * SPEED_OF_LIGHT), dtype=float)


def resolution_of(lags: int, interval: float) -> float:
    """Full width at half height of a sharp line with the Hann window, cm⁻¹."""
    return float(1.0 / (lags * interval * SPEED_OF_LIGHT))


def relative_correction(kind: QuantumCorrection, wavenumbers: Array, temperature: float) -> Array:
    """A quantum correction over the harmonic one, βħω / (1 − exp(−βħω)).

    Parameters
    ----------
    kind
        harmonic βħω/(1−exp(−βħω)), standard 2/(1+exp(−βħω)) or schofield exp(βħω/2).
    wavenumbers
        (K,) in cm⁻¹.
    temperature
        In K.

    Returns
    -------
    ndarray
        (K,); 1 at wavenumber zero.

    Notes
    -----
    R. Ramírez et al., J. Chem. Phys. 121, 3973 (2004), doi 10.1063/1.1774986.
    """
    energy = WAVENUMBER_TO_KELVIN * wavenumbers / temperature  # βħω
    boltzmann = np.exp(-energy)
    factor = {
        "harmonic": np.ones_like(energy),
        "standard": 2.0 / (1.0 + boltzmann),
        "schofield": np.exp(np.minimum(0.5 * energy, 300.0)),
    }[kind]
    if kind == "harmonic":
        return factor
    safe = np.where(energy > 0.0, energy, 1.0)
    return np.asarray(np.where(energy > 0.0, factor * (1.0 - boltzmann) / safe, 1.0), dtype=float)
