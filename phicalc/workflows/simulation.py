"""What every simulation begins with."""

from ase import Atoms

from phicalc.checks import check_structure
from phicalc.errors import ConfigError


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
