"""What phonons, equations of state and elastic constants begin with: a crystal, relaxed."""

from pathlib import Path

from ase import Atoms
from pydantic import Field

from phicalc.checks.settings import Settings
from phicalc.errors import UnsupportedError
from phicalc.workflows.relax import Relaxation, RelaxResult, RelaxSettings
from phicalc.workflows.remarks import on_field
from phicalc.workflows.simulation import Simulation

RELAXED_CRYSTAL = RelaxSettings(cell="full", keep_symmetry=True, max_force=1e-3)
"""Atoms and cell, symmetry kept, tight enough for second derivatives."""


class CrystalSettings(Settings):
    """What the settings of every simulation of a crystal begin with."""

    relax: RelaxSettings | None = Field(
        RELAXED_CRYSTAL,
        description="relax atoms and cell first; else the structure as it is",
    )


class CrystalSimulation(Simulation):
    """A simulation of a crystal without constraints; parameters as `Simulation`.

    Raises
    ------
    ConfigError, StructureError, UnsupportedError
        No calculator, an unsound structure, or one not periodic in three directions.
    """

    keeps_constraints = False

    def __init__(self, atoms: Atoms, folder: str | Path | None, name: str) -> None:
        super().__init__(atoms, folder, name)
        self.atoms.set_constraint()
        self.remarks += on_field(self.atoms)
        if not atoms.pbc.all():
            raise UnsupportedError(
                f"{name}: expected a crystal periodic in three directions, got pbc "
                f"{atoms.pbc.tolist()}"
            )

    def relaxed(
        self, settings: RelaxSettings | None, restart: bool, progress: bool
    ) -> tuple[Atoms, RelaxResult | None]:
        """The crystal as the settings relax it (None: as it is), in files `name`-relax….

        Raises
        ------
        ConvergenceError, SimulationError, OutputError
            As `Relaxation.run`.
        """
        if settings is None:
            return self.atoms, None
        relax = Relaxation(self.atoms, settings, self.folder, f"{self.name}-relax")
        result = relax.run(restart=restart, progress=progress)
        atoms = result.atoms
        atoms.set_constraint()
        return atoms, result
