"""The commands for a crystal: eos, elastic, phonons. Each calls one class of workflows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from phicalc.cli.arguments import Model, Output, Restart, StructureFile, remark, say
from phicalc.cli.options import OptionsOf, command

if TYPE_CHECKING:
    from phicalc.cli.evaluation import Structure
    from phicalc.workflows.crystal.elasticity import ElasticSettings
    from phicalc.workflows.crystal.equation_of_state import EquationOfStateSettings
    from phicalc.workflows.crystal.phonons import PhononSettings
    from phicalc.workflows.crystal.stiffness import Stiffness

commands = typer.Typer()


@command(commands)
def eos(
    model: Model,
    structure: StructureFile,
    settings: Annotated[
        "EquationOfStateSettings", OptionsOf("phicalc.workflows.crystal.equation_of_state")
    ],
    evaluation: Annotated["Structure", OptionsOf("phicalc.cli.evaluation")],
    output: Output = Path("eos"),
    restart: Restart = False,
) -> None:
    """Equation of state of a crystal: volume, lattice constant and bulk modulus.

    \b
    Examples:
      phicalc eos model.pt kcl.cif
      phicalc eos model.pt quartz.cif --free shape --span 0.04 --points 11
    """
    from phicalc.workflows.crystal.equation_of_state import EquationOfState

    atoms = evaluation.open(model, structure)
    simulation = EquationOfState(atoms, settings, output)
    remark(simulation)
    result = simulation.run(restart=restart, progress=True)
    cubic = result.lattice_constant
    say(
        f"volume {result.volume:.4f} Å³"
        + ("" if cubic is None else f", lattice constant {cubic:.4f} Å")
    )
    say(
        f"bulk modulus {result.bulk_modulus:.3f} GPa, its pressure derivative "
        f"{result.bulk_modulus_derivative:.2f}; the fit leaves {1e3 * result.residual:.2g} meV/atom"
    )
    say(f"written: {', '.join(str(path) for path in result.files)}")


@command(commands)
def elastic(
    model: Model,
    structure: StructureFile,
    settings: Annotated["ElasticSettings", OptionsOf("phicalc.workflows.crystal.elasticity")],
    evaluation: Annotated["Structure", OptionsOf("phicalc.cli.evaluation")],
    output: Output = Path("elastic"),
    restart: Restart = False,
) -> None:
    """Elastic constants of a crystal, clamped and relaxed, and its polycrystal's moduli.

    \b
    Examples:
      phicalc elastic model.pt kcl.cif
      phicalc elastic model.pt kcl.cif --strain 0.002 --clamped
    """
    from phicalc.workflows.crystal.elasticity import ElasticConstants

    atoms = evaluation.open(model, structure)
    simulation = ElasticConstants(atoms, settings, output)
    remark(simulation)
    result = simulation.run(restart=restart, progress=True)
    kind = "clamped" if result.relaxed is None else "relaxed atoms"
    Console(highlight=False).print(_matrix(result.stiffness, kind))
    bulk, shear = result.stiffness.bulk_modulus, result.stiffness.shear_modulus
    say(f"bulk modulus {bulk.hill:.3f} GPa (Voigt {bulk.voigt:.3f}, Reuss {bulk.reuss:.3f})")
    say(f"shear modulus {shear.hill:.3f} GPa (Voigt {shear.voigt:.3f}, Reuss {shear.reuss:.3f})")
    say(
        f"Young's modulus {result.stiffness.young_modulus:.3f} GPa, Poisson's ratio "
        f"{result.stiffness.poisson_ratio:.3f}, anisotropy {result.stiffness.anisotropy:.3f}"
    )
    say(
        f"space group {result.space_group}, stress before straining "
        f"{result.residual_stress:.2g} GPa, "
        + ("stable" if result.stiffness.stable else "UNSTABLE: an eigenvalue is not positive")
    )
    say(f"written: {', '.join(str(path) for path in result.files)}")


@command(commands)
def phonons(
    model: Model,
    structure: StructureFile,
    settings: Annotated["PhononSettings", OptionsOf("phicalc.workflows.crystal.phonons")],
    evaluation: Annotated["Structure", OptionsOf("phicalc.cli.evaluation")],
    output: Output = Path("phonons"),
    restart: Restart = False,
) -> None:
    """Phonon bands, density of states, thermal properties and moving pictures of a crystal.

    \b
    Examples:
      phicalc phonons model.pt kcl.cif
      phicalc phonons model.pt kcl.cif --length 20 --born BORN
    """
    from phicalc.data.entries import check_columns
    from phicalc.workflows.crystal.phonons import Phonons

    atoms = evaluation.open(model, structure)
    check_columns(atoms, "masses")
    simulation = Phonons(atoms, settings, output)
    remark(simulation)
    result = simulation.run(restart=restart, progress=True)
    if result.relaxation is not None:
        say(f"space group {result.relaxation.space_group}, cell {result.atoms.cell.cellpar()}")
    say(f"acoustic modes at Γ {result.acoustic:.2g} THz, lowest frequency {result.lowest:.3f} THz")
    if result.born is None:
        say(f"no LO-TO splitting: {result.note}")
    else:
        split = result.gamma((1.0, 0.0, 0.0))
        say(
            f"Γ without splitting {_listed(result.gamma())} THz, along the first axis "
            f"{_listed(split)} THz; Born charges of {result.born.source}, sum violated by "
            f"{result.born.violation:.2g} e"
        )
    if result.remark is not None:
        say(f"note: {result.remark}")
    say(f"written: {output}/phonons.png and {len(result.files) - 1} more")


def _matrix(stiffness: "Stiffness", kind: str) -> Table:
    """The 6×6 elastic constants."""
    title = f"elastic constants, {kind} / GPa, along x, y, z of the file"
    table = Table(title=title, show_header=True)
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    for name in ("", *names):
        table.add_column(name, justify="right")
    for name, row in zip(names, stiffness.matrix, strict=True):
        table.add_row(name, *(f"{value:.2f}" for value in row))
    return table


def _listed(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values)
