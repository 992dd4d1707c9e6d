"""Values on the command line that mean nothing, said as the package says its own mistakes."""

import math
import re
from typing import Any, TypeVar

import typer

_KINDS = {"float": "a number", "integer": "a whole number", "boolean": "yes or no"}


def sentence(error: Any) -> str:
    """One line on a `typer.BadParameter`: "--timestep: expected …, got …"."""
    param = getattr(error, "param", None)
    if param is None:
        return str(error.format_message())
    name = "/".join(param.opts) if param.param_type_name == "option" else str(param.name).upper()
    message = str(error.message).rstrip(".")
    found = re.match(r"'?(.*?)'? is not a valid (\w+)$", message)
    if found:
        kind = _KINDS.get(found[2], f"a valid {found[2]}")
        return f"{name}: expected {kind}, got {found[1]!r}"
    found = re.match(r"(.*) is not in the range (.*)$", message)
    if found:
        return f"{name}: expected {found[2]}, got {found[1]}"
    message = re.sub(r", unable to parse.*", "", message).replace("Input should be", "expected")
    return f"{name}: {message}{_given(error)}"


Numbers = TypeVar("Numbers", float, tuple[float, float, float], None)


def finite(value: Numbers) -> Numbers:
    """Numbers that are some; for options that no settings check."""
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"expected a finite number, got {number}")
    return value


def _given(error: Any) -> str:
    """What was given, where the error knows it."""
    cause = error.__cause__ or error.__context__
    try:
        return f", got {cause.errors()[0]['input']!r}"
    except (AttributeError, LookupError, TypeError):
        return ""
