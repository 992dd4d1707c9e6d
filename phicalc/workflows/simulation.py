"""What every simulation begins with."""

from pathlib import Path

from ase import Atoms

from phicalc.checks.structure import check_structure
from phicalc.errors import ConfigError
from phicalc.machine.files import prepare_folder
from phicalc.workflows.remarks import on_constraints, on_masses


class Simulation:
    """A structure of one's own and the files' place: the base of the workflows.

    Parameters
    ----------
    atoms
        With a calculator; not modified.
    folder
        Where to write; None: nowhere.
    name
        Start of the files' names.

    Attributes
    ----------
    remarks
        Sentences on what the structure brings along that changes the calculation: constraints,
        masses, velocities.

    Raises
    ------
    ConfigError
        No calculator.
    StructureError
        An unsound structure.
    """

    keeps_constraints = True
    """Whether the structure's own constraints hold in this simulation."""

    def __init__(self, atoms: Atoms, folder: str | Path | None, name: str) -> None:
        self.atoms = own_copy(atoms)
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self.remarks = [
            *on_constraints(self.atoms, kept=self.keeps_constraints),
            *on_masses(self.atoms),
        ]

    def begin(self) -> Path | None:
        """Start of the files' paths, in a folder that can be written to; None: write nothing.

        The forces come first, so that a structure that the calculator refuses leaves no files.

        Raises
        ------
        StructureError, UnsupportedError
            The calculator refuses the structure.
        OutputError
            The folder cannot be written to.
        """
        self.atoms.get_forces()
        return None if self.folder is None else prepare_folder(self.folder) / self.name


def own_copy(atoms: Atoms) -> Atoms:
    """A copy to work on, with the same calculator and the very same constraints.

    Parameters
    ----------
    atoms
        The user's structure.

    Raises
    ------
    ConfigError
        It has no calculator.
    StructureError
        It is unsound: NaN positions, a flat cell …
    """
    if atoms.calc is None:
        raise ConfigError("expected atoms with a calculator, got none; set atoms.calc")
    check_structure(atoms.numbers, atoms.positions, atoms.cell, atoms.pbc)
    copy: Atoms = atoms.copy()
    copy.set_constraint(list(atoms.constraints))
    copy.calc = atoms.calc
    return copy
