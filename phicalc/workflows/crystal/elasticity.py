"""Elastic constants of a crystal from the stresses of small strains.

Why not matscipy's `fit_elastic_constants`, which the tests' oracle belongs to: it must be told
the symmetry, in the crystal's standard orientation, and gives either clamped or relaxed constants;
here both come of one set of strains, and the point group is found, however the crystal lies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from pydantic import Field

from phicalc.checks.settings import Positive
from phicalc.errors import SimulationError, UnsupportedError
from phicalc.machine.files import refuse_existing, write_json
from phicalc.workflows.crystal.start import CrystalSettings, CrystalSimulation
from phicalc.workflows.crystal.stiffness import PAIRS, Array, Stiffness, symmetrised
from phicalc.workflows.relax import Relaxation, RelaxResult, RelaxSettings
from phicalc.workflows.symmetry import point_group, space_group
from phicalc.workflows.watching import Display


class ElasticSettings(CrystalSettings):
    """Elastic constants. Forces in eV/Å."""

    strain: Positive = Field(
        0.005, lt=0.1, description="largest strain, both ways; the error grows with its square"
    )
    relax_atoms: bool = Field(
        True, description="let the atoms follow each strain; else clamped constants only"
    )
    max_force: Positive = Field(1e-3, description="largest force left in a strained cell, eV/Å")
    steps: int = Field(300, ge=1, description="most steps of a relaxation in a strained cell")
    symmetry_tolerance: Positive = Field(
        1e-3, description="distance by which atoms may miss their symmetric places, Å"
    )


@dataclass(frozen=True)
class ElasticResult:
    """Elastic constants of a crystal.

    Attributes
    ----------
    clamped
        With the atoms carried along by the strain.
    relaxed
        With the atoms where they want to be in the strained cell: what an experiment measures.
        None if not asked for; the same as `clamped` where symmetry holds the atoms.
    residual_stress
        Largest component before straining, GPa. Elastic constants are those of the unstressed
        crystal only where it is small beside them.
    space_group
        Such as "Fm-3m (225)"; None where spglib finds none.
    atoms
        The crystal that was strained, with the calculator.
    relaxation
        Its relaxation, None where none was asked for.
    files
        What was written.
    """

    clamped: Stiffness
    relaxed: Stiffness | None
    residual_stress: float
    space_group: str | None
    atoms: Atoms
    relaxation: RelaxResult | None
    files: tuple[Path, ...]

    @property
    def stiffness(self) -> Stiffness:
        """The relaxed constants where there are any, else the clamped ones."""
        return self.clamped if self.relaxed is None else self.relaxed


class ElasticConstants(CrystalSimulation):
    """Elastic constants with any ASE calculator that gives stress.

        result = ElasticConstants(atoms, ElasticSettings(), folder="run").run()
        result.stiffness.matrix, result.stiffness.bulk_modulus.hill

    Six strains, each both ways: C_IJ = [σ_I(+η_J) − σ_I(−η_J)] / 2η_J, made symmetric and averaged
    over the point group. The axes are those of the given cell. Writes `elastic.json`.

    Parameters
    ----------
    atoms
        A crystal with a calculator; not modified.
    settings
        What to do.
    folder
        Where to write; None: nowhere.
    name
        Start of the files' names.

    Raises
    ------
    ConfigError, StructureError, UnsupportedError
        Settings, structure and calculator that do not go together.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: ElasticSettings,
        folder: str | Path | None = None,
        name: str = "elastic",
    ) -> None:
        super().__init__(atoms, folder, name)
        if "stress" not in atoms.calc.implemented_properties:
            raise UnsupportedError("elastic constants: expected a calculator with stress")
        self.settings = settings

    def run(self, *, restart: bool = False, progress: bool = False) -> ElasticResult:
        """Relax, strain, and compute what follows from the stresses.

        Parameters
        ----------
        restart
            Take up the relaxation of an earlier call where it ended, and replace its results.
        progress
            Show bars.

        Raises
        ------
        ConvergenceError
            A relaxation did not converge, or a signal stopped it.
        SimulationError
            Stresses that are NaN.
        StructureError, UnsupportedError
            The calculator refuses the structure.
        OutputError
            A file is in the way or cannot be written.
        """
        stem, settings = self.begin(), self.settings
        path = None if stem is None else stem.with_name(f"{self.name}.json")
        if path is not None and not restart:
            refuse_existing(path)
        atoms, relaxation = self.relaxed(settings.relax, restart, progress)
        rotations = point_group(atoms, settings.symmetry_tolerance)
        clamped, relaxed = self._measured(atoms, progress)
        result = ElasticResult(
            clamped=symmetrised(clamped, rotations),
            relaxed=None if relaxed is None else symmetrised(relaxed, rotations),
            residual_stress=float(np.abs(_stress(atoms)).max()),
            space_group=space_group(atoms, settings.symmetry_tolerance),
            atoms=atoms,
            relaxation=relaxation,
            files=() if path is None else (path,),
        )
        if path is not None:
            write_json(path, _summary(result))
        return result

    def _measured(self, atoms: Atoms, progress: bool) -> tuple[Array, Array | None]:
        """[I, J] = ∂σ_I/∂η_J in GPa, clamped and relaxed, as the stresses give them."""
        step = self.settings.strain
        clamped, relaxed = np.zeros((6, 6)), np.zeros((6, 6))
        with Display(12, f"{self.name}: strains", progress) as bar:
            for column, pair in enumerate(PAIRS):
                for number, sign in enumerate((1.0, -1.0)):
                    cell = strained(atoms, pair, sign * step)
                    clamped[:, column] += sign * _stress(cell) / (2.0 * step)
                    if self.settings.relax_atoms:
                        settings = RelaxSettings(
                            max_force=self.settings.max_force, steps=self.settings.steps
                        )
                        cell = Relaxation(cell, settings).run().atoms
                        relaxed[:, column] += sign * _stress(cell) / (2.0 * step)
                    bar.show(2 * column + number + 1)
        return clamped, relaxed if self.settings.relax_atoms else None


def strained(atoms: Atoms, pair: tuple[int, int], strain: float) -> Atoms:
    """The crystal, atoms carried along, under one component of Voigt's strain.

    Parameters
    ----------
    atoms
        With its calculator.
    pair
        The component; a shear strain is shared between its two symmetric places.
    strain
        Its size.
    """
    deformation = np.eye(3)
    deformation[pair] += 0.5 * strain
    deformation[pair[::-1]] += 0.5 * strain
    copy: Atoms = atoms.copy()
    copy.calc = atoms.calc
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return copy


def _stress(atoms: Atoms) -> Array:
    """(6,) in GPa."""
    stress = np.asarray(atoms.get_stress(), dtype=np.float64) / units.GPa
    if not np.isfinite(stress).all():
        raise SimulationError("the stress is NaN or infinite")
    return stress


def _summary(result: ElasticResult) -> dict[str, Any]:
    """The result as JSON has it."""
    return {
        "unit": "GPa",
        "order": "xx yy zz yz xz xy",
        "space_group": result.space_group,
        "residual_stress": result.residual_stress,
        "relaxed": None if result.relaxed is None else _described(result.relaxed),
        "clamped": _described(result.clamped),
    }


def _described(stiffness: Stiffness) -> dict[str, Any]:
    return {
        "elastic_constants": stiffness.matrix.round(6).tolist(),
        "bulk_modulus": stiffness.bulk_modulus._asdict(),
        "shear_modulus": stiffness.shear_modulus._asdict(),
        "young_modulus": stiffness.young_modulus,
        "poisson_ratio": stiffness.poisson_ratio,
        "anisotropy": stiffness.anisotropy,
        "eigenvalues": stiffness.eigenvalues.round(6).tolist(),
        "stable": stiffness.stable,
        "asymmetry": stiffness.asymmetry,
        "symmetry_error": stiffness.symmetry_error,
    }
