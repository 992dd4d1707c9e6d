"""Molecular dynamics, restartable to the last bit."""

from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.log import read_log
from phicalc.workflows.md.settings import GuardSettings, MDSettings

__all__ = ["GuardSettings", "MDSettings", "MolecularDynamics", "read_log"]
