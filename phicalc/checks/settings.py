"""The base of all settings, and what is wrong with them in one line."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phicalc.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]

BATCH_SIZE = 8
"""Structures that are evaluated at a time: on a CPU more is no faster."""


class Settings(BaseModel):
    """Validated, frozen settings: an unknown key or a value out of range is a `ConfigError`.

    So it is where they are made in Python; `model_validate`, for what a file holds, raises
    pydantic's own error: see `validated`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(mistake(error, values)) from None

    # else pydantic would make settings within settings by this, and forget where they stand
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


Kind = TypeVar("Kind", bound=Settings)


def validated(kind: type[Kind], content: Mapping[str, Any], source: str) -> Kind:
    """The content of a file as settings.

    Raises
    ------
    ConfigError
        An unknown key or a wrong value, in one line that names the key by its dotted path.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {mistake(error, content)}") from None


def mistake(error: ValidationError, content: object) -> str:
    """The first problem as "dotted.key: expected …, got …", and how many more there are.

    Parameters
    ----------
    error
        What pydantic says.
    content
        What was given, by which names that pydantic puts in are told from keys.
    """
    problems = [(".".join(_path(p, content)), p) for p in error.errors()]
    # of a value that may be of several types, what is wrong with the one that was given
    precise = [key for key, problem in problems if not problem["type"].endswith("_type")]
    meant = {
        key: problem
        for key, problem in reversed(problems)
        if not problem["type"].endswith("_type")
        or not any(f"{other}.".startswith(f"{key}.") for other in precise)
    }
    *others, first = meant.items()
    more = f" (and {len(others)} more)" if others else ""
    return f"{_described(*first)}{more}"


_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "yes or no",
    "string": "text",
    "list": "a list",
    "tuple": "several values",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}
"""Words for pydantic's types, as its kinds of problem begin."""


def _described(key: str, problem: Any) -> str:
    kind, context, given = problem["type"], problem.get("ctx", {}), problem["input"]
    match kind:
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "missing" if isinstance(given, tuple | list):
            return f"{key}: expected more than {len(given)}, got {given!r}"
        case "missing":
            return f"{key}: missing"
        case "union_tag_not_found":
            return f"{key}.kind: missing; it says which kind of {key.split('.')[-1]} is meant"
        case "union_tag_invalid":
            return f"{key}.kind: expected one of {context['expected_tags']}, got {context['tag']!r}"
        case "too_short":
            return f"{key}: expected at least {context['min_length']}, got {len(given)}"
        case "too_long":
            return f"{key}: expected at most {context['max_length']}, got {len(given)}"
        case "value_error":
            return _said(key, str(context["error"]))
    words = problem["msg"].removeprefix("Input should be ")
    if kind.endswith(("_type", "_parsing", "_from_float")):
        words = _TYPES.get(kind.partition("_")[0], words.removeprefix("a valid "))
    return f"{key}: expected {words}, got {given!r}"


def _said(key: str, words: str) -> str:
    """What a validator of ours says; it may itself begin with the last part of the key."""
    named = re.match(r"(\w+): ", words)
    if named is None:
        return f"{key or 'top level'}: {words}"
    parent = key.removesuffix(named[1]).rstrip(".")
    return f"{parent}.{words}" if parent else words


def _path(problem: Any, content: object) -> list[str]:
    """Where it is, as the user wrote it: without the types and kinds that pydantic puts in."""
    path: list[str] = []
    for place, part in enumerate(problem["loc"], 1):
        if isinstance(content, Mapping):
            last = place == len(problem["loc"])
            if part not in content and not (last and str(part).isidentifier()):
                continue
            content = content.get(part)
        elif isinstance(content, list | tuple) and isinstance(part, int):
            if part >= len(content):
                continue  # an item that is not there has no name
            content = content[part]
        elif isinstance(part, str):
            continue
        path.append(str(part))
    return path
