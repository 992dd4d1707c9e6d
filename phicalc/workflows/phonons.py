"""Another name of :mod:`phicalc.workflows.crystal.phonons`, for older scripts."""

from phicalc.workflows.crystal.phonons import PhononResult, Phonons, PhononSettings

__all__ = ["PhononResult", "PhononSettings", "Phonons"]
