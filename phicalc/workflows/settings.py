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
            raise ConfigError("; ".join(map(_one_line, error.errors()))) from None


def _one_line(problem: Any) -> str:
    """A pydantic problem in the package's voice: "steps: expected …, got …"."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"expected a known setting, got {name!r}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    subject = f"{name}: " if name else ""
    got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{subject}{message}{got}"
