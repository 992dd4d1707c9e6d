"""``phicalc ipi``: a client that computes for an i-PI server."""

from typing import TYPE_CHECKING, Annotated

import typer

from phicalc.cli.arguments import Model, StructureFile, say
from phicalc.cli.mistakes import finite
from phicalc.cli.options import OptionsOf, command
from phicalc.errors import ConfigError

if TYPE_CHECKING:
    from phicalc.cli.evaluation import StructureInCommittee

commands = typer.Typer()


def _show_path(wanted: bool) -> None:
    if wanted:
        from phicalc.engines import ipi_driver

        typer.echo(ipi_driver.__file__)
        raise typer.Exit


@command(commands)
def ipi(
    model: Model,
    structure: StructureFile,
    evaluation: Annotated["StructureInCommittee", OptionsOf("phicalc.cli.evaluation")],
    unix: Annotated[
        str | None, typer.Option(help="The server's UNIX socket, by its <address>; or --port.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Where the server runs; by default, here.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Its <port>.")] = None,
    prefix: Annotated[str, typer.Option(help="Of UNIX sockets' files.")] = "/tmp/ipi_",
    wait: Annotated[
        float,
        typer.Option(min=0.0, callback=finite, help="Seconds to wait for a server that starts."),
    ] = 10.0,
    extras: Annotated[
        str, typer.Option(help='What else i-PI is told: of "dipole,BEC,charges".')
    ] = "",
    path: Annotated[
        bool,
        typer.Option(
            "--path",
            callback=_show_path,
            is_eager=True,
            help="Show the file for i-pi-driver-py -m custom -P FILE, and exit.",
        ),
    ] = False,
) -> None:
    """Compute energies, forces and virials for an i-PI server.

    The structure tells elements and periodic directions, in the order of i-PI's own atoms; cell and
    positions are the server's. Start as many clients as there are cores or devices.

    \b
    Examples:
      i-pi input.xml & phicalc ipi model.pt water.xyz --unix water --threads 1
      phicalc ipi model.pt water.xyz --host node7 --port 31415
      i-pi-driver-py -u -a water -m custom -P $(phicalc ipi --path) -o model.pt,water.xyz
    """
    given = {"--unix": unix, "--host": host, "--port": port}
    names = [name for name, value in given.items() if value is not None]
    if names not in (["--unix"], ["--port"], ["--host", "--port"]):
        raise ConfigError(
            "expected a server as --unix NAME, or as --port P with or without --host H, got "
            f"{' and '.join(names) or 'none'}"
        )
    from phicalc.engines.ipi import Driver
    from phicalc.engines.ipi_client import serve

    driver = Driver(
        [model, *evaluation.further_models],
        structure,
        extras=extras,
        frame=evaluation.frame,
        charge=evaluation.charge,
        field=evaluation.field,
        device=evaluation.device,
        threads=evaluation.threads,
    )
    count = serve(driver, unix=unix, host=host or "localhost", port=port, prefix=prefix, wait=wait)
    say(f"{count} structures computed by {model}")
