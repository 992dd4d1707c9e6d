"""Another name of :mod:`phicalc.engines.ase`, for older scripts."""

from phicalc.engines.ase import PhiCalculator, Spectrum

__all__ = ["PhiCalculator", "Spectrum"]
