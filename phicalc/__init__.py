"""phicalc: a neural interatomic potential with learned long-range electrostatics, for ASE."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phicalc.engines.ase import PhiCalculator
    from phicalc.errors import PhicalcError
    from phicalc.serving.model_file import load_model
    from phicalc.serving.prediction import predict

__version__ = "0.1.0"

__all__ = ["PhiCalculator", "PhicalcError", "__version__", "load_model", "predict"]

_HOMES = {
    "PhiCalculator": "phicalc.engines.ase",
    "PhicalcError": "phicalc.errors",
    "load_model": "phicalc.serving.model_file",
    "predict": "phicalc.serving.prediction",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import phicalc`` itself loads no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'phicalc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
