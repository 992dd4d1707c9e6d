"""The command that compares: ``phicalc ablate``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from phicalc.errors import status_of_signal

WIDTH_OF_A_FILE = 160

commands = typer.Typer()


@commands.command()
def ablate(
    config: Annotated[Path, typer.Argument(help="YAML file with output, seeds, base and rows.")],
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="Train the row of this name, not all; may be repeated."),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print what is done, run nothing.")
    ] = False,
) -> None:
    """Train rows × seeds under one budget and print the table with its spreads.

    Ctrl-C stops after the current step; the same command goes on from there, and skips what is
    done.

    \b
    Examples:
      phicalc ablate heads.yaml
      phicalc ablate heads.yaml --rows "no head" --rows qeq
      phicalc ablate heads.yaml --table
    """
    from phicalc.train.ablation.config import load_ablation
    from phicalc.train.ablation.study import results_of, run_ablation
    from phicalc.train.ablation.table import rich_table, write_tables

    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False)

    ablation = load_ablation(config)
    stopped_by = None
    if not table:
        stopped_by = run_ablation(
            ablation,
            rows or (),
            say=say,
            measured=lambda _: write_tables(ablation, results_of(ablation)),
        )
    results = results_of(ablation, passed_over=lambda line: say(f"left out: {line}"))
    if results:
        width = None if console.is_terminal else WIDTH_OF_A_FILE
        Console(highlight=False, width=width).print(rich_table(ablation, results))
        say(f"written: {', '.join(str(path) for path in write_tables(ablation, results))}")
    else:
        say("no run is done yet")
    if stopped_by is not None:
        raise typer.Exit(status_of_signal(stopped_by))
