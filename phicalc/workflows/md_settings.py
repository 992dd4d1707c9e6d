"""Another name of :mod:`phicalc.workflows.md.settings`, for older scripts."""

from phicalc.workflows.md.settings import GuardSettings, MDSettings

__all__ = ["GuardSettings", "MDSettings"]
