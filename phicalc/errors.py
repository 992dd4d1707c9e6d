"""Typed errors. Each message says what was wrong and how to mend it.

A command that ends by one has its `exit_status`.
"""

from signal import Signals


class PhicalcError(ValueError):
    """Base of every error that phicalc raises for a mistake in its input."""

    exit_status = 2


class StructureError(PhicalcError):
    """A structure that no model could evaluate: NaN positions, flat cell, atoms on one spot …"""


class UnsupportedError(PhicalcError):
    """A sound structure or request that this particular model was not made for."""


class DataError(PhicalcError):
    """Training or evaluation data with missing, mixed or absurd labels."""


class ConfigError(PhicalcError):
    """A configuration with an unknown key or a value out of range."""


class ModelFileError(PhicalcError):
    """A file that is not a phicalc model or checkpoint, or is damaged, or is too new."""


class ConvergenceError(PhicalcError):
    """An iterative solve or a workflow that did not converge within its limit."""

    exit_status = 3


class StoppedError(ConvergenceError):
    """A workflow that a signal ended early, to be taken up again with restart.

    `signal` is its name, such as "SIGINT".
    """

    def __init__(self, message: str, signal: str) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_status = status_of_signal(signal)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.signal)


class OutputError(PhicalcError):
    """A file or folder that cannot be written, or that a new run would overwrite."""


class SimulationError(PhicalcError):
    """A simulation that left the realm of its model: NaN, atoms flying apart, wide spread …"""

    exit_status = 4


class ServerError(PhicalcError):
    """A server of an MD engine that is not there, or that went away."""


class UnusedWarning(UserWarning):
    """Something stated about a structure that no model here uses, such as its spin."""


def status_of_signal(name: str) -> int:
    """Exit status of a command that a signal such as "SIGINT" stopped, as shells count it."""
    return 128 + Signals[name].value
