"""The commands that simulate: md, relax, spectra. Each calls one class of workflows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicalc.cli.arguments import Model, Output, Overwrite, Restart, StructureFile, remark, say
from phicalc.cli.options import OptionsOf, command
from phicalc.errors import status_of_signal

if TYPE_CHECKING:
    from phicalc.cli.evaluation import Structure, StructureInCommittee
    from phicalc.workflows.md.settings import MDSettings
    from phicalc.workflows.relax import RelaxSettings
    from phicalc.workflows.spectra.spectra import SpectraSettings

commands = typer.Typer()

EVERY = ("trajectory_every", "log_every")


@command(commands)
def md(
    model: Model,
    structure: StructureFile,
    settings: Annotated["MDSettings", OptionsOf("phicalc.workflows.md.settings")],
    evaluation: Annotated["StructureInCommittee", OptionsOf("phicalc.cli.evaluation")],
    every: Annotated[
        int | None, typer.Option(help="Both --trajectory-every and --log-every, steps.")
    ] = None,
    extxyz: Annotated[
        bool, typer.Option("--extxyz", help="Both --format traj and --format extxyz.")
    ] = False,
    output: Output = Path("md"),
    restart: Restart = False,
) -> None:
    """Molecular dynamics, to be stopped and continued at any moment.

    Ctrl-C stops after the step; --restart continues from the last checkpoint, the same to the
    last bit on one thread.

    \b
    Examples:
      phicalc md model.pt water.xyz -n 100000 -T 300 --timestep 0.5
      phicalc md model.pt water.xyz -n 100000 -T 300 --timestep 0.5 --restart
      phicalc md model.pt salt.xyz -n 50000 -T 300:900 --ensemble npt -P 0.1
    """
    from phicalc.data.entries import check_columns
    from phicalc.workflows.md.dynamics import MolecularDynamics

    short: dict[str, Any] = {} if every is None else dict.fromkeys(EVERY, every)
    if extxyz:
        short["formats"] = ("traj", "extxyz")
    settings = type(settings)(**short | settings.model_dump(exclude_unset=True))
    atoms = evaluation.open(model, structure)
    check_columns(atoms, "masses", "momenta", "move_mask")
    simulation = MolecularDynamics(atoms, settings, output)
    remark(simulation)
    result = simulation.run(restart=restart, progress=True)
    say(f"{result.steps} steps, {result.ns_per_day:.3g} ns/day")
    written = [output / "md.log", *result.trajectories, *filter(None, [result.picture])]
    say(f"written: {', '.join(str(path) for path in written)}")
    if result.stopped_by is not None:
        say(f"stopped by {result.stopped_by}; go on with --restart")
        raise typer.Exit(status_of_signal(result.stopped_by))


@command(commands)
def relax(
    model: Model,
    structure: StructureFile,
    settings: Annotated["RelaxSettings", OptionsOf("phicalc.workflows.relax")],
    evaluation: Annotated["Structure", OptionsOf("phicalc.cli.evaluation")],
    output: Output = Path("relax"),
    restart: Restart = False,
) -> None:
    """Relax atoms, and the cell if asked for.

    Exit status 3: not converged; --restart goes on.

    \b
    Examples:
      phicalc relax model.pt molecule.xyz
      phicalc relax model.pt crystal.cif --cell full --keep-symmetry
      phicalc relax model.pt crystal.cif --cell full -P 5 --max-force 0.001
    """
    from phicalc.data.entries import check_columns
    from phicalc.workflows.relax import Relaxation

    atoms = evaluation.open(model, structure)
    check_columns(atoms, "move_mask")
    simulation = Relaxation(atoms, settings, output)
    remark(simulation)
    result = simulation.run(restart=restart, progress=True)
    say(
        f"{result.steps} steps, {result.initial_energy:.6f} → {result.energy:.6f} eV, largest "
        f"force {result.max_force:.2g} eV/Å"
    )
    if result.max_stress is not None:
        volumes = result.history["volume_A3"]
        say(
            f"volume {volumes[0]:.4f} → {volumes[-1]:.4f} Å³, largest stress "
            f"{result.max_stress:.2g} GPa"
        )
    if result.space_group is not None:
        say(f"space group {result.initial_space_group} → {result.space_group}")
    say(f"written: {result.structure}, {result.trajectory}")


@command(commands)
def spectra(
    trajectory: Annotated[Path, typer.Argument(help="Frames with momenta, as md writes them.")],
    settings: Annotated["SpectraSettings", OptionsOf("phicalc.workflows.spectra.spectra")],
    overwrite: Overwrite = False,
    output: Output = Path("spectra"),
) -> None:
    """Vibrational density of states and infrared spectrum from a trajectory.

    \b
    Examples:
      phicalc md model.pt molecule.xyz -n 40000 -T 300 --timestep 0.5 --every 4
      phicalc spectra md/md.traj
      phicalc md model.pt water.xyz -n 40000 -T 300 --timestep 0.5 --every 4 \\
        --property polarization    (for the infrared of a liquid or crystal)
    """
    from phicalc.workflows.spectra.spectra import Spectra

    result = Spectra(trajectory, settings, output).run(overwrite=overwrite)
    if result.note is not None:
        say(result.note)
    say(f"written: {', '.join(str(path) for path in result.files)}")
