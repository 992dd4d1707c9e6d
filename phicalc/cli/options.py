"""Options that follow from settings: each field is one, with its default and its words.

    @command(commands)
    def relax(
        model: Model,
        settings: Annotated["RelaxSettings", OptionsOf("phicalc.workflows.relax")],
    ) -> None: ...

`relax` is called with settings made of what stands on the command line; all defaults, and the
judgement of what is given, are the settings' own. They are imported when somebody asks for the
command's options, so that ``phicalc --help`` need not wait for torch and ASE.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from phicalc.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

NAMES = {
    "steps": ("--steps", "-n"),
    "temperature": ("--temperature", "-T"),
    "pressure": ("--pressure", "-P"),
    "fixed_atoms": ("--fix",),
    "formats": ("--format",),
    "properties": ("--property",),
    "supercell_length": ("--length",),
    "born_file": ("--born",),
    "relax_atoms": ("--relax-atoms/--clamped",),
    "animated": ("--animate",),
}
"""Options of the fields whose names they are not."""

PREFIXES = {"guards": ""}
"""Settings within settings → what their options begin with, where it is not the field's name."""

PANELS = {
    "guards": "Guards: a run that goes beyond these is stopped",
    "relax": "Relaxation that comes first",
    "evaluation": "Evaluation",
}
"""Settings → the heading of their options in the help."""


class OptionsOf(NamedTuple):
    """Beside the type of a command's parameter: its fields are options of the command."""

    module: str


class Option(NamedTuple):
    """An option of a command (`name` as it is typed, "--max-force"), and the field that it sets."""

    name: str
    path: tuple[str, ...]
    parameter: inspect.Parameter
    read: Callable[[Any], Any]


def command(
    commands: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, with the options of the settings that it takes."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def placeholder() -> None:
            raise AssertionError("a command's callback is that of its complete function")

        placeholder.__doc__ = function.__doc__
        kind: Any = partial(SettingsCommand, function)
        commands.command(name or function.__name__, cls=kind)(placeholder)
        return function

    return register


class SettingsCommand(TyperCommand):
    """A command whose options are made when somebody asks for them."""

    def __init__(self, function: Callable[..., None], **described: Any) -> None:
        super().__init__(**described)
        self.function = function
        del self.params, self.callback

    def __getattr__(self, name: str) -> Any:
        if name not in ("params", "callback"):
            raise AttributeError(name)
        whole = typer.Typer(add_completion=False)
        whole.command()(with_options(self.function))
        made = typer.main.get_command(whole)
        self.params, self.callback = made.params, made.callback
        return getattr(self, name)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """The function with one parameter for each field of the settings that it takes."""
    own = inspect.signature(function).parameters
    kinds = {name: kind for name, p in own.items() if (kind := _settings_of(p)) is not None}
    options = {name: list(options_from(kind, PANELS.get(name))) for name, kind in kinds.items()}

    def complete(context: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if _is_given(context, name)}
        made = {name: made_of(kind, options[name], given) for name, kind in kinds.items()}
        function(**{name: made[name] if name in made else values[name] for name in own})

    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    for name, parameter in own.items():
        if name in kinds:
            parameters += [option.parameter for option in options[name]]
        else:
            parameters.append(_parameter(name, parameter.annotation, parameter.default))
    complete.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    complete.__annotations__ = {p.name: p.annotation for p in parameters}
    return complete


def made_of(
    kind: "type[BaseModel]", options: list[Option], given: Mapping[str, Any]
) -> "BaseModel":
    """Settings of what stands on the command line.

    Raises
    ------
    ConfigError
        Values that the settings refuse; the message names the option.
    """
    values: dict[str, Any] = {}
    for option in options:
        if option.parameter.name not in given:
            continue
        value = option.read(given[option.parameter.name])
        first, *inner = option.path
        if not inner:
            values[first] = value
            continue
        if values.get(first, ...) is None:
            raise ConfigError(f"{option.name}: expected no --no-{first} beside it, got both")
        default = kind.model_fields[first].get_default()
        values[first] = {**dict(default), **values.get(first, {}), inner[0]: value}
    try:
        return kind(**values)
    except ConfigError as error:
        field, colon, words = str(error).partition(": ")
        for option in sorted(options, key=lambda option: -len(option.path)):
            path = ".".join(option.path)
            if field == path or field.startswith(f"{path}."):
                raise ConfigError(f"{option.name}{colon}{words}") from None
        raise


def options_from(
    kind: "type[BaseModel]",
    panel: str | None,
    path: tuple[str, ...] = (),
    prefix: str = "",
    defaults: "BaseModel | None" = None,
) -> Iterator[Option]:
    """One option for each field, those of settings within settings included.

    Parameters
    ----------
    kind
        The settings.
    panel
        Heading in the help.
    path, prefix
        Fields by which these settings are reached, and what the options' names begin with.
    defaults
        Settings whose values are the defaults, instead of the class's own.
    """
    for name, field in kind.model_fields.items():
        inner = alternatives(field.annotation)[0]
        if not hasattr(inner, "model_fields"):
            default = field.get_default() if defaults is None else getattr(defaults, name)
            yield _option((*path, name), field, default, prefix, panel)
            continue
        default = field.get_default()
        if type(None) in get_args(field.annotation):
            names = (f"--{name}/--no-{name}",)
            described = typer.Option(*names, help=_sentence(field), rich_help_panel=PANELS[name])
            parameter = _parameter(name, Annotated[bool, described], default is not None)
            yield Option(f"--{name}", (name,), parameter, partial(_switched, default))
        yield from options_from(
            inner, PANELS[name], (name,), PREFIXES.get(name, f"{name}_"), default
        )


def _switched(default: Any, wanted: bool) -> Any:
    return dict(default) if wanted else None


def _option(
    path: tuple[str, ...], field: "FieldInfo", default: Any, prefix: str, panel: str | None
) -> Option:
    name = path[-1]
    names = NAMES.get(name, ("--" + name.replace("_", "-"),))
    if prefix:
        names = (names[0].replace("--", "--" + prefix.replace("_", "-")),)
    form = YES_OR_NO if default is True and "/" not in names[0] else form_of(field.annotation)
    shown = inspect.Parameter.empty if field.is_required() else form.show(default)
    described = typer.Option(
        *names, help=_sentence(field), metavar=form.metavar, rich_help_panel=panel
    )
    kind = form.kind | None if shown is None else form.kind
    parameter = _parameter(prefix + name, Annotated[kind, described], shown)
    return Option(names[0], path, parameter, partial(form.read, names[0]))


class Form(NamedTuple):
    """What typer is told of the value of a setting.

    `kind` is its type there, `metavar` its place-holder in the help (None: typer's own), `read`
    the setting's value from the option's name and value, `show` the option's value from the
    setting's, None where nothing is to be shown.
    """

    kind: Any
    metavar: str | None = None
    read: Callable[[str, Any], Any] = lambda _, value: value
    show: Callable[[Any], Any] = lambda value: value


YES_OR_NO = Form(str, "yes|no", show=lambda value: "yes" if value else "no")
"""Of what is true unless it is said not to be."""


def form_of(annotation: Any) -> Form:
    """How a setting of this type is written on the command line.

    Choices are judged by the settings. Atoms are "0-9,12"; numbers of which there may be one or
    several are "300:600".
    """
    first, *others = alternatives(annotation)
    items = get_args(first)
    if others:
        return Form(
            str, "NUMBER[:NUMBER…]", partial(_numbers, 'a number, or several as "300:600"'), _shown
        )
    if get_origin(first) is Literal:
        return Form(str, "|".join(items))
    if get_origin(first) is not tuple:
        return Form(first)
    kinds = tuple(alternatives(item)[0] for item in items if item is not Ellipsis)
    if items[-1] is not Ellipsis:
        return Form(tuple[kinds])  # type: ignore[valid-type]
    if kinds == (int,):
        return Form(str, "ATOMS", _atoms, lambda atoms: ",".join(map(str, atoms)) or None)
    if get_origin(kinds[0]) is tuple:
        read = partial(_numbers, 'numbers as "0.5:0:0"')
        return Form(
            list[str],
            "NUMBER:NUMBER:NUMBER",
            lambda name, texts: tuple(read(name, text) for text in texts),
            lambda vectors: [_shown(vector) for vector in vectors] or None,
        )
    kind = str if get_origin(kinds[0]) is Literal else kinds[0]
    metavar = "|".join(get_args(kinds[0])) or None
    return Form(list[kind], metavar, show=lambda v: list(v) or None)  # type: ignore[valid-type]


def alternatives(annotation: Any) -> list[Any]:
    """The types that a setting may have, without None and without limits."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not types.NoneType]
        return [kind for part in parts for kind in alternatives(part)]
    return [annotation]


def _numbers(expected: str, name: str, text: str) -> float | tuple[float, ...]:
    """One number, or several as in "300:600"."""
    try:
        values = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"{name}: expected {expected}, got {text!r}") from None
    return values[0] if len(values) == 1 else values


def _shown(value: Any) -> str | None:
    """The text that `_numbers` reads."""
    if value is None:
        return None
    return ":".join(f"{number:g}" for number in (value if isinstance(value, tuple) else [value]))


def _atoms(name: str, text: str) -> tuple[int, ...]:
    """Atoms from "0-9,12"."""
    numbers: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ConfigError(f'{name}: expected atoms as "0-9,12", got {text!r}') from None
    return tuple(numbers)


def _sentence(field: "FieldInfo") -> str:
    """A field's description as the help shows it."""
    words = field.description or ""
    return f"{words[:1].upper()}{words[1:]}."


def _settings_of(parameter: inspect.Parameter) -> "type[BaseModel] | None":
    """The settings that a command takes as this parameter, None where it is an option itself."""
    kind, *beside = get_args(parameter.annotation) or (None,)
    for mark in beside:
        if isinstance(mark, OptionsOf):
            found: type[BaseModel] = getattr(import_module(mark.module), kind.__forward_arg__)
            return found
    return None


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the value stands on the command line, and is not the default."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )
