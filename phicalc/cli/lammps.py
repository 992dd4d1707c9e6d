"""``phicalc lammps``: LAMMPS runs an input script with a model as its potential."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicalc.cli.arguments import Model, complain, say
from phicalc.cli.options import OptionsOf, command
from phicalc.errors import PhicalcError

if TYPE_CHECKING:
    from phicalc.cli.evaluation import InLammps

commands = typer.Typer()


@command(commands)
def lammps(
    model: Model,
    script: Annotated[Path, typer.Argument(help="Input script, units metal or real.")],
    evaluation: Annotated["InLammps", OptionsOf("phicalc.cli.evaluation")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="LAMMPS's own, after --: as -- -var T 300.")
    ] = None,
) -> None:
    """Run a LAMMPS input script with the model as its potential.

    The model is there as soon as the script has made its box; the script needs no pair style. On
    several ranks, LAMMPS's work is shared, the model runs on the first.

    \b
    Examples:
      phicalc lammps model.pt in.lmp
      phicalc lammps model.pt in.lmp --elements O,H -- -var T 300 -log run.log
      mpiexec -n 2 phicalc lammps model.pt in.lmp
    """
    from phicalc.engines.lammps_script import run_script
    from phicalc.machine.device import resolve_device

    resolve_device(evaluation.device)
    elements = evaluation.symbols  # both before LAMMPS writes its log
    rank = _Rank()
    try:
        evaluations = run_script(
            [model, *evaluation.committee],
            script,
            arguments or (),
            watch=rank.watch,
            elements=elements,
            charge=evaluation.charge,
            field=evaluation.field,
            device=evaluation.device,
            threads=evaluation.threads,
        )
    except PhicalcError as error:
        if rank.first:
            raise
        raise typer.Exit(error.exit_status) from error
    if rank.first:
        say(f"{evaluations} evaluations of {model}")


class _Rank:
    """One process of the command; only the first of several speaks."""

    def __init__(self) -> None:
        self.first = True

    def watch(self, lmp: Any) -> Callable[[BaseException], None]:
        """Learn from LAMMPS which rank this is; returns what ends all ranks in a step."""
        self.first = lmp.extract_setting("world_rank") == 0

        def end(error: BaseException) -> None:
            """At once: what a script does after a step that failed is worth nothing."""
            if self.first:
                complain(error)
            lmp.flush_buffers()
            sys.stdout.flush()
            sys.stderr.flush()
            if lmp.extract_setting("world_size") > 1:
                lmp.MPI.Finalize()
            os._exit(getattr(error, "exit_status", 1))

        return end
