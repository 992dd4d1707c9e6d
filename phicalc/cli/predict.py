"""``phicalc predict``: the model's results for a whole file of structures."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phicalc.cli.arguments import Model, Overwrite, say
from phicalc.cli.options import OptionsOf, command

if TYPE_CHECKING:
    from phicalc.cli.evaluation import Structures

commands = typer.Typer()


@command(commands)
def predict(
    model: Model,
    structures: Annotated[Path, typer.Argument(help="Structures: extxyz(.gz) or ASE's formats.")],
    evaluation: Annotated["Structures", OptionsOf("phicalc.cli.evaluation")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, .xyz or .extxyz.")
    ] = Path("predicted.xyz"),
    overwrite: Overwrite = False,
    features: Annotated[
        bool, typer.Option("--features", help="Add the atoms' features after the last step.")
    ] = False,
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
            device=evaluation.device,
            charge=evaluation.charge,
            field=evaluation.field,
            features=features,
            batch_size=evaluation.batch_size,
            progress=show,
        )
    atoms = sum(len(prediction.forces) for prediction in found)
    say(f"{len(found)} structures, {atoms} atoms; written: {output}")
