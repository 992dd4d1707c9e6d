"""An input script of LAMMPS with a phicalc model as its potential."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phicalc.checks.structure import check_field, check_total_charge
from phicalc.engines.lammps import Attachment, attach, open_lammps
from phicalc.errors import ConfigError, PhicalcError
from phicalc.machine.device import resolve_device
from phicalc.machine.signals import stop_on_signals
from phicalc.serving.model_file import ModelSource

_FLOW = ("jump", "label", "next")


def run_script(
    model: ModelSource | Sequence[ModelSource],
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    watch: Callable[[Any], Callable[[BaseException], None] | None] | None = None,
    **options: Any,
) -> int:
    """Run an input script, to which the model is attached as soon as there is a box.

    The script has ``units metal`` or ``real`` and needs no pair style. LAMMPS reads it as ever
    from the line on that follows the one that makes the box.

    Parameters
    ----------
    model
        As for :func:`phicalc.engines.lammps.attach`.
    script
        LAMMPS's input script; files that it names are looked for in the working directory.
    arguments
        LAMMPS's own, such as ``["-var", "T", "300"]``.
    watch
        Called with the new LAMMPS; returns the `on_error` of `attach`.
    options
        Of `attach`.

    Returns
    -------
    int
        How often the model was evaluated.

    Raises
    ------
    ConfigError
        The script is missing or wrong, in LAMMPS's own words; it makes no box, or clears it; or it
        never asks the model.
    StoppedError
        A SIGINT or SIGTERM has ended it, before the next step.
    PhicalcError
        What `attach` and the model's evaluations raise.
    """
    path = Path(script)
    _check_options(**options)
    _readable(path)
    lmp = open_lammps(arguments)
    on_error = None if watch is None else watch(lmp)
    try:
        rest = _until_box(lmp, path)
        with stop_on_signals(sigterm_repeats=True) as stop:
            attachment = attach(lmp, model, stop=stop, on_error=on_error, **options)
            for text in rest:
                _run(lmp, text)
        _check_was_asked(lmp, attachment, options.get("fix", "phicalc"))
    except PhicalcError:
        raise
    except Exception as error:  # the type that LAMMPS's Python module raises
        if type(error).__name__ == "MPIAbortException":  # other ranks wait for this one
            lmp.get_mpi_comm().Abort(PhicalcError.exit_status)
        raise ConfigError(f"LAMMPS: {_one_line(str(error))}") from error
    lmp.close()
    return attachment.evaluations


def _check_options(
    device: str = "auto",
    charge: float | None = None,
    field: Sequence[float] | None = None,
    **others: Any,
) -> None:
    """What needs no LAMMPS to be known as wrong."""
    resolve_device(device)
    if charge is not None:
        check_total_charge(charge)
    if field is not None:
        check_field(field)


def _until_box(lmp: Any, path: Path) -> list[str]:
    """Run a script up to the command that makes the box; what is left, included files first."""
    lines = _readable(path).splitlines(keepends=True)
    for end, command in _commands(lines):
        words = command.split()
        if words[0] in _FLOW:
            raise ConfigError(
                f"{path}: expected the box before any jump, label or next, got `{command.strip()}` "
                "first; put read_data, read_restart or create_box before the loop"
            )
        rest = []
        if words[0] == "include" and len(words) == 2:
            rest = _until_box(lmp, Path(lmp.expand(words[1]) or words[1]))
        else:
            lmp.command(command)
        if lmp.extract_setting("box_exist"):
            return [*rest, "".join(lines[end:])]
    return []


def _commands(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Commands without comments, and the number of the line after each."""
    command = ""
    for number, line in enumerate(lines, start=1):
        command += line
        open_quotes = command.count('"""') % 2
        if line.rstrip().endswith("&") or open_quotes:
            continue
        joined = command if '"""' in command else command.replace("&\n", " ")
        command = ""
        if joined.strip() and not joined.lstrip().startswith("#"):
            yield number, joined


def _run(lmp: Any, text: str) -> None:
    """What is left of a script, as a file: `jump SELF` works in no other way."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "in.lmp"
        part.write_text(text, encoding="utf-8")
        lmp.file(str(part))


def _check_was_asked(lmp: Any, attachment: Attachment, fix: str) -> None:
    if not lmp.has_id("fix", fix):
        raise ConfigError(
            f"expected a script that keeps fix {fix}, the model, to its end, got a clear or unfix "
            "that removes it: what ran afterwards had no forces; run one script for each box"
        )
    if attachment.evaluations == 0:
        raise ConfigError(
            "expected a script that asks the model for forces, got one without run or minimize"
        )


def _readable(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected an input script of LAMMPS, got {_one_line(str(error))}"
        ) from error


def _one_line(text: str) -> str:
    return " ".join(text.removeprefix("ERROR: ").split())
