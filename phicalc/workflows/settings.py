"""The base of every workflow's settings."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phicalc.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseModel):
    """Validated, frozen settings: an unknown key or a value out of range is a `ConfigError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(map(_one_line, _meant(error.errors())))) from None


def _meant(problems: list[Any]) -> list[Any]:
    """Of a setting that may be of several types, what is wrong with the one that was given."""
    by_name: dict[str, list[Any]] = {}
    for problem in problems:
        by_name.setdefault(str(problem["loc"][:1]), []).append(problem)
    meant: list[Any] = []
    for group in by_name.values():
        right_type = [p for p in group if not p["type"].endswith("_type")]
        meant += right_type or group[:1]
    return meant


def _name(location: Any) -> str:
    """As "temperature" or "animated.0.2", without the names that pydantic gives to types."""
    first, *rest = location or ("",)
    kept = [p for p in rest if isinstance(p, int) or (p.isidentifier() and p not in _TYPES)]
    return ".".join(str(part) for part in (first, *kept))


_TYPES = ("float", "int", "str", "bool")


def _one_line(problem: Any) -> str:
    """A pydantic problem in the package's voice: "steps: expected …, got …"."""
    name = _name(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"expected a known setting, got {name!r}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    subject = f"{name}: " if name and not message.startswith(f"{name}: ") else ""
    got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{subject}{message}{got}"
