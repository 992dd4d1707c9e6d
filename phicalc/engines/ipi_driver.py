"""The file that ``i-pi-driver-py -m custom -P FILE`` and ``<ffdirect>`` of i-PI load.

``phicalc ipi --path`` prints where it lies. Its options are those of
:class:`phicalc.engines.ipi.Driver`, as i-PI passes them: ``-o model.pt,water.xyz,extras=BEC``, or
``<parameters> {model: model.pt, structure: water.xyz, field: 0 0 0.01} </parameters>``.

i-PI registers the file as a module of the file's own name, so that it may not be called ipi.py.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from phicalc.engines.ipi import Driver
from phicalc.errors import ConfigError, PhicalcError

__DRIVER_NAME__ = "phicalc"
__DRIVER_CLASS__ = "PhicalcDriver"

_OWN_TO_IPI = {"verbose", "verbosity"}


class PhicalcDriver(Driver):
    """A driver made from what i-PI's command line and input can say; mistakes end i-PI by a line.

    Parameters
    ----------
    files
        Model file and structure file, unless they stand under their names.
    options
        Those of `Driver`, ``field`` as three numbers in V/Å with blanks between. i-PI's own
        ``verbose`` and ``verbosity`` have no effect here.
    """

    def __init__(self, *files: Any, **options: Any) -> None:
        with _one_line():
            super().__init__(**_options(files, options))

    def __call__(self, cell: Any, positions: Any) -> Any:
        """As `Driver`'s."""
        with _one_line():
            return super().__call__(cell, positions)

    compute = __call__


def _options(files: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(Driver).parameters)
    found = {**dict(zip(("model", "structure"), files, strict=False)), **options}
    for name in _OWN_TO_IPI:
        found.pop(name, None)
    if len(files) > 2 or not {"model", "structure"} <= set(found) or not set(found) <= set(known):
        raise ConfigError(
            f"expected a model, a structure and options of {', '.join(known[2:])}, got "
            f"{', '.join([*map(str, files), *options])}; write -o model.pt,water.xyz,charge=1, or "
            "<parameters> {model: model.pt, structure: water.xyz, charge: 1} </parameters>"
        )
    if isinstance(found.get("field"), str):
        try:
            found["field"] = [float(word) for word in found["field"].split()]
        except ValueError as error:
            raise ConfigError(
                f"expected three numbers as field, in V/Å, got {found['field']!r}; write 0 0 0.01"
            ) from error
    return found


@contextmanager
def _one_line() -> Iterator[None]:
    """Mistakes as the last words of the program: i-PI would show a traceback."""
    try:
        yield
    except PhicalcError as error:
        raise SystemExit(f"error: {error}") from error
