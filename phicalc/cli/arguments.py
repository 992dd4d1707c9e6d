"""What the commands share: arguments, the structure with its calculator, output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from phicalc.cli.mistakes import finite
from phicalc.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms

    from phicalc.workflows.simulation import Simulation

Model = Annotated[Path, typer.Argument(help="Model file.")]
Structure = Annotated[Path, typer.Argument(help="Structure: extxyz or any format of ASE's.")]
Committee = Annotated[
    list[Path] | None, typer.Option("--committee", help="Further model file; repeatable.")
]
Frame = Annotated[int, typer.Option(help="Which structure of the file; -1 is the last.")]
Charge = Annotated[float | None, typer.Option(callback=finite, help="Total charge, e.")]
Field = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        callback=finite, metavar="X Y Z", help="Electric field, V/Å, where a frame names none."
    ),
]
Device = Annotated[str, typer.Option(help='"auto", "cpu" or "cuda[:n]".')]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write to.")]
Restart = Annotated[bool, typer.Option("--restart", help="Go on where an earlier run ended.")]
Fixed = Annotated[str, typer.Option("--fix", help='Atoms that do not move, as "0-9,12".')]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace older files.")]


def open_atoms(
    models: list[Path],
    structure: Path,
    frame: int,
    charge: float | None,
    device: str,
    threads: int | None,
    field: tuple[float, float, float] | None = None,
) -> "Atoms":
    """The structure with its calculator."""
    from phicalc.data.read import read_structures
    from phicalc.engines.ase import PhiCalculator

    frames = read_structures(structure)
    if not -len(frames) <= frame < len(frames):
        raise ConfigError(f"--frame: expected one of {len(frames)} structures, got {frame}")
    atoms = frames[frame]
    atoms.calc = PhiCalculator(models, device=device, charge=charge, field=field, threads=threads)
    return atoms


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
