"""What the commands share: arguments, the structure with its calculator, output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from phicalc.workflows.simulation import Simulation

Model = Annotated[Path, typer.Argument(help="Model file.")]
StructureFile = Annotated[Path, typer.Argument(help="Structure: extxyz or any format of ASE's.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write to.")]
Restart = Annotated[bool, typer.Option("--restart", help="Go on where an earlier run ended.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace older files.")]


def remark(simulation: "Simulation") -> None:
    """What the structure brings along that changes the calculation, before it begins."""
    for sentence in simulation.remarks:
        say(f"note: {sentence}")


def complain(error: BaseException) -> None:
    """An error, as one line on standard error."""
    complain_in_words(str(error) or type(error).__name__)


def complain_in_words(text: str) -> None:
    """What was wrong, as one line on standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"error: {text}", style="red", markup=False)


def warn(text: str) -> None:
    """A warning, as one line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"warning: {text}", style="yellow", markup=False
    )


def say(text: str) -> None:
    """A line on standard output, as it is."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)
