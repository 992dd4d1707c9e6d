"""The commands that simulate: md, relax, spectra. Each calls one class of workflows."""

from pathlib import Path
from typing import Annotated

import typer

from phicalc.cli.arguments import (
    Charge,
    Committee,
    Device,
    Field,
    Fixed,
    Frame,
    Model,
    Output,
    Overwrite,
    Restart,
    Structure,
    Threads,
    open_atoms,
    remark,
    say,
)
from phicalc.errors import ConfigError, status_of_signal

commands = typer.Typer()


@commands.command()
def md(
    model: Model,
    structure: Structure,
    steps: Annotated[int, typer.Option("--steps", "-n", help="Number of time steps.")],
    temperature: Annotated[
        str | None, typer.Option("--temperature", "-T", help='K; "300:600" is a ramp.')
    ] = None,
    ensemble: Annotated[
        str, typer.Option(help="nve, langevin, nose-hoover, bussi, npt or npt-cell.")
    ] = "langevin",
    pressure: Annotated[str, typer.Option("--pressure", "-P", help='GPa; "0:5" is a ramp.')] = "0",
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    thermostat_time: Annotated[float, typer.Option(help="fs.")] = 100.0,
    barostat_time: Annotated[float, typer.Option(help="fs.")] = 1000.0,
    seed: Annotated[int, typer.Option(help="Of velocities and thermostat.")] = 0,
    fixed: Fixed = "",
    rigid_water: Annotated[bool, typer.Option("--rigid-water", help="No O-H vibrations.")] = False,
    every: Annotated[int, typer.Option(help="Steps between frames and rows of the log.")] = 100,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    extxyz: Annotated[bool, typer.Option("--extxyz", help="Write md.extxyz too.")] = False,
    properties: Annotated[
        list[str] | None, typer.Option("--property", help="ASE property to add to frames.")
    ] = None,
    max_spread: Annotated[
        float | None, typer.Option(help="Stop where a committee disagrees more, eV/Å.")
    ] = None,
    output: Output = Path("md"),
    restart: Restart = False,
    committee: Committee = None,
    frame: Frame = -1,
    charge: Charge = None,
    field: Field = None,
    device: Device = "auto",
    threads: Threads = None,
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
    from phicalc.workflows.md.settings import GuardSettings, MDSettings

    settings = MDSettings(
        steps=steps,
        ensemble=ensemble,
        timestep=timestep,
        temperature=None if temperature is None else _ramp(temperature, "temperature"),
        pressure=_ramp(pressure, "pressure"),
        thermostat_time=thermostat_time,
        barostat_time=barostat_time,
        seed=seed,
        fixed_atoms=_numbers(fixed),
        rigid_water=rigid_water,
        trajectory_every=every,
        log_every=every,
        checkpoint_every=checkpoint_every,
        formats=("traj", "extxyz") if extxyz else ("traj",),
        properties=tuple(properties or ()),
        guards=GuardSettings(max_spread=max_spread),
    )
    atoms = open_atoms(
        [model, *(committee or [])], structure, frame, charge, device, threads, field
    )
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


@commands.command()
def relax(
    model: Model,
    structure: Structure,
    cell: Annotated[str, typer.Option(help="fixed, full, volume or shape.")] = "fixed",
    pressure: Annotated[float, typer.Option("--pressure", "-P", help="GPa.")] = 0.0,
    max_force: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.01,
    max_stress: Annotated[float, typer.Option(help="Largest stress left, GPa.")] = 0.01,
    optimizer: Annotated[str, typer.Option(help="bfgs, lbfgs or fire.")] = "bfgs",
    steps: Annotated[int, typer.Option("--steps", "-n", help="Most steps.")] = 500,
    keep_symmetry: Annotated[
        bool, typer.Option("--keep-symmetry", help="Keep the space group.")
    ] = False,
    fixed: Fixed = "",
    output: Output = Path("relax"),
    restart: Restart = False,
    frame: Frame = -1,
    charge: Charge = None,
    field: Field = None,
    device: Device = "auto",
    threads: Threads = None,
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
    from phicalc.workflows.relax import Relaxation, RelaxSettings

    settings = RelaxSettings(
        optimizer=optimizer,
        steps=steps,
        max_force=max_force,
        max_stress=max_stress,
        cell=cell,
        pressure=pressure,
        keep_symmetry=keep_symmetry,
        fixed_atoms=_numbers(fixed),
    )
    atoms = open_atoms([model], structure, frame, charge, device, threads, field)
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


@commands.command()
def spectra(
    trajectory: Annotated[Path, typer.Argument(help="Frames with momenta, as md writes them.")],
    correlation_time: Annotated[float, typer.Option(help="fs; 2000 resolves 17 cm⁻¹.")] = 2000.0,
    window: Annotated[str, typer.Option(help="hann, blackman or none.")] = "hann",
    maximum: Annotated[float, typer.Option(help="Largest wavenumber, cm⁻¹.")] = 4000.0,
    quantum_correction: Annotated[
        str, typer.Option(help="harmonic, standard or schofield.")
    ] = "harmonic",
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-T", help="K; the trajectory's own.")
    ] = None,
    interval: Annotated[float | None, typer.Option(help="Between frames, fs.")] = None,
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
    from phicalc.workflows.spectra.spectra import Spectra, SpectraSettings

    settings = SpectraSettings(
        correlation_time=correlation_time,
        window=window,
        maximum=maximum,
        quantum_correction=quantum_correction,
        temperature=temperature,
        interval=interval,
    )
    result = Spectra(trajectory, settings, output).run(overwrite=overwrite)
    if result.note is not None:
        say(result.note)
    say(f"written: {', '.join(str(path) for path in result.files)}")


def _ramp(text: str, name: str) -> float | tuple[float, ...]:
    """One value, or several as in "300:600:300"."""
    try:
        values = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(
            f'{name}: expected a number or a ramp as "300:600", got {text!r}'
        ) from None
    return values[0] if len(values) == 1 else values


def _numbers(text: str) -> tuple[int, ...]:
    """Atoms from "0-9,12"."""
    numbers: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ConfigError(f'--fix: expected atoms as "0-9,12", got {text!r}') from None
    return tuple(numbers)
