"""Correlation functions and their transforms against sums written out."""

import numpy as np
import pytest
from ase import units

from phicalc.errors import ConfigError
from phicalc.workflows.spectra.correlation import (
    correlation_function,
    number_of_lags,
    relative_correction,
    spectrum_of,
    wavenumber_grid,
)


def test_correlation_is_the_mean_over_all_starting_times():
    rng = np.random.default_rng(0)
    signals, weights = rng.normal(size=(40, 70)), rng.uniform(1.0, 2.0, 70)
    found = correlation_function(signals, weights, lags=15)
    for lag in range(15):
        products = signals[: 40 - lag] * signals[lag:]
        assert found[lag] == pytest.approx(products.mean(axis=0) @ weights, rel=1e-12)


@pytest.mark.parametrize("window", ["hann", "blackman", "none"])
def test_the_spectrum_adds_up_to_the_value_at_lag_zero(window):
    lags, interval = 200, 2.0
    time = interval * np.arange(lags)
    grid = wavenumber_grid(lags, interval)
    wave = 3.0 * np.cos(2.0 * np.pi * units._c * 1e-13 * 1000.0 * time)  # 1000 cm⁻¹
    spectrum = spectrum_of(wave, window, interval)
    assert spectrum.shape == grid.shape == (4 * lags + 1,)
    ends = 0.5 * (spectrum[0] + spectrum[-1])
    assert (spectrum.sum() - ends) * grid[1] == pytest.approx(3.0, rel=1e-12)
    assert grid[spectrum.argmax()] == pytest.approx(1000.0, abs=grid[1])


def test_lags_are_those_asked_for_at_most_half_the_frames():
    assert number_of_lags(100.0, 2.0, frames=1000, maximum=4000.0) == 51
    assert number_of_lags(1e6, 2.0, frames=1000, maximum=4000.0) == 499
    with pytest.raises(ConfigError, match=r"at most 4170 cm⁻¹ .* got 5000; .* every 3\.34 fs"):
        number_of_lags(100.0, 4.0, frames=1000, maximum=5000.0)


def test_corrections_agree_where_motion_is_classical_and_obey_detailed_balance():
    """The factor Q of each is 1 at ω = 0, and Q(ω) = exp(βħω) Q(−ω)."""
    temperature = 300.0
    energy = np.array([0.0, 1e-6, 1.0, 5.0])
    wavenumbers = energy * units._k * temperature / (units._hplanck * units._c * 1e2)
    forms = {
        "harmonic": lambda x: x / (1.0 - np.exp(-x)),
        "standard": lambda x: 2.0 / (1.0 + np.exp(-x)),
        "schofield": lambda x: np.exp(0.5 * x),
    }
    for kind, form in forms.items():
        found = relative_correction(kind, wavenumbers, temperature)
        assert found[:2] == pytest.approx(1.0, abs=1e-6), kind
        for x, value in zip(energy[2:], found[2:], strict=True):
            assert value * forms["harmonic"](x) == pytest.approx(form(x), rel=1e-9), kind
            assert form(x) == pytest.approx(np.exp(x) * form(-x)), kind
