"""How a command evaluates structures: the options that all such commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from phicalc.checks.settings import BATCH_SIZE, Settings
from phicalc.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms


class Computer(Settings):
    """Where a model computes."""

    device: str = Field("auto", description='"auto", "cpu" or "cuda[:n]"')


class Batches(Computer):
    """How many structures of a file a model takes."""

    batch_size: int = Field(BATCH_SIZE, ge=1, description="structures at a time")


class Threaded(Computer):
    """Where, and on how many threads of a CPU."""

    threads: int | None = Field(None, ge=1, description="CPU threads")


class Evaluation(Computer):
    """What structures are in that do not say so themselves."""

    charge: float | None = Field(None, description="total charge, e, where a frame names none")
    field: tuple[float, float, float] | None = Field(
        None, description="electric field, V/Å, along x, y and z, where a frame names none"
    )


class Structure(Threaded, Evaluation):
    """One structure of a file."""

    frame: int = Field(-1, description="which structure of the file, from 0; -1 is the last")

    def open(self, model: Path, structure: Path) -> "Atoms":
        """The structure with its calculator.

        Raises
        ------
        PhicalcError
            A file that is missing or not what it should be; no such frame.
        """
        from phicalc.data.read import read_structures
        from phicalc.engines.ase import PhiCalculator

        frames = read_structures(structure)
        if not -len(frames) <= self.frame < len(frames):
            raise ConfigError(
                f"--frame: expected one of {len(frames)} structures, got {self.frame}"
            )
        atoms = frames[self.frame]
        atoms.calc = PhiCalculator(
            [model, *self.further_models],
            device=self.device,
            charge=self.charge,
            field=self.field,
            threads=self.threads,
        )
        return atoms

    @property
    def further_models(self) -> tuple[Path, ...]:
        """Those that form a committee with the model."""
        return ()


class StructureInCommittee(Structure):
    """One structure, evaluated by one model or several."""

    committee: tuple[Path, ...] = Field((), description="further model file; repeatable")

    @property
    def further_models(self) -> tuple[Path, ...]:
        """Those that form a committee with the model."""
        return self.committee


class InLammps(Threaded, Evaluation):
    """The atoms of a LAMMPS, by one model or several."""

    elements: str | None = Field(
        None, description='symbols of the atom types, as "O,H"; by default those of their masses'
    )
    committee: tuple[Path, ...] = Field((), description="further model file; repeatable")

    @property
    def symbols(self) -> list[str] | None:
        """Of the atom types, in their order; None where none are named.

        Raises
        ------
        ConfigError
            One is no element's.
        """
        from ase.data import atomic_numbers

        if self.elements is None:
            return None
        found = [part.strip() for part in self.elements.split(",")]
        if not all(atomic_numbers.get(symbol, 0) for symbol in found):
            raise ConfigError(f'--elements: expected symbols as "O,H", got {self.elements!r}')
        return found


class Structures(Batches, Evaluation):
    """All structures of a file."""
