"""``phicalc predict``: the model's results for a whole file of structures."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from phicalc.cli.arguments import Charge, Device, Field, Model, Overwrite, say

commands = typer.Typer()


@commands.command()
def predict(
    model: Model,
    structures: Annotated[Path, typer.Argument(help="Structures: extxyz(.gz) or ASE's formats.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, .xyz or .extxyz.")
    ] = Path("predicted.xyz"),
    overwrite: Overwrite = False,
    charge: Charge = None,
    field: Field = None,
    device: Device = "auto",
    features: Annotated[
        bool, typer.Option("--features", help="Add the atoms' features after the last step.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures at a time.")] = 8,
) -> None:
    """Energies, forces, stress, charges and dipoles of many structures, as extended XYZ.

    ase.io.read finds them in atoms.calc. Labels that the structures had are left out.

    \b
    Examples:
      phicalc predict model.pt structures.xyz
      phicalc predict model.pt md/md.traj -o again.extxyz --batch-size 32
      phicalc predict model.pt structures.xyz --features  # to choose, cluster, compare
    """
    from phicalc.serving.prediction import predict_file
    from phicalc.workflows.watching import Display

    bars: list[Display] = []
    with ExitStack() as shown:

        def show(done: int, total: int) -> None:
            if not bars:  # not before the input has proved sound
                bars.append(shown.enter_context(Display(total, "predict", visible=True)))
            bars[0].show(done)

        found = predict_file(
            model,
            structures,
            output,
            overwrite=overwrite,
            device=device,
            charge=charge,
            field=field,
            features=features,
            batch_size=batch_size,
            progress=show,
        )
    atoms = sum(len(prediction.forces) for prediction in found)
    say(f"{len(found)} structures, {atoms} atoms; written: {output}")
