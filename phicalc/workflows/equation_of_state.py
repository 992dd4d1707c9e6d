"""Another name of :mod:`phicalc.workflows.crystal.equation_of_state`, for older scripts."""

from phicalc.workflows.crystal.equation_of_state import (
    EquationOfState,
    EquationOfStateResult,
    EquationOfStateSettings,
)

__all__ = ["EquationOfState", "EquationOfStateResult", "EquationOfStateSettings"]
