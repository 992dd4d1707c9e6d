"""Vibrational and infrared spectra of a trajectory."""

from phicalc.workflows.spectra.spectra import Spectra, SpectraSettings, Spectrum

__all__ = ["Spectra", "SpectraSettings", "Spectrum"]
