"""Equations of state, elastic constants and phonons of crystals."""

from phicalc.workflows.crystal.elasticity import ElasticConstants, ElasticResult, ElasticSettings
from phicalc.workflows.crystal.equation_of_state import (
    EquationOfState,
    EquationOfStateResult,
    EquationOfStateSettings,
)
from phicalc.workflows.crystal.phonons import PhononResult, Phonons, PhononSettings

__all__ = [
    "ElasticConstants",
    "ElasticResult",
    "ElasticSettings",
    "EquationOfState",
    "EquationOfStateResult",
    "EquationOfStateSettings",
    "PhononResult",
    "PhononSettings",
    "Phonons",
]
