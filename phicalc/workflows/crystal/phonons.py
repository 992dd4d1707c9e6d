"""Phonons of a crystal from the forces of displaced atoms, on phonopy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray
from pydantic import Field, field_validator

from phicalc.checks.settings import Positive
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.machine.files import refuse_existing, replacing
from phicalc.workflows.conditions import field_of
from phicalc.workflows.crystal.born import PROPERTIES, BornCharges, from_calculator, from_file
from phicalc.workflows.crystal.displacements import DisplacedForces
from phicalc.workflows.crystal.figures import draw_phonons, draw_thermal
from phicalc.workflows.crystal.phonon_cells import (
    as_phonopy,
    conditions_of_supercell,
    isotopes,
    phonopy_errors,
    remark_on_size,
)
from phicalc.workflows.crystal.phonon_modes import animate, as_atoms, modes_at, standard_path
from phicalc.workflows.crystal.start import CrystalSettings, CrystalSimulation
from phicalc.workflows.figures import save_figure
from phicalc.workflows.frames import as_extxyz
from phicalc.workflows.relax import RelaxResult

if TYPE_CHECKING:
    from phonopy import Phonopy

FLAT = 0.01
"""Frequencies (THz) below this do not count in thermal sums: acoustic modes at Γ."""

Cells = Annotated[int, Field(ge=1)]


class PhononSettings(CrystalSettings):
    """A phonon calculation. Lengths in Å, frequencies in THz, temperatures in K."""

    supercell_length: Positive = Field(
        15.0, description="smallest height of the supercell along each axis, Å"
    )
    supercell: tuple[Cells, Cells, Cells] | None = Field(
        None, description="cells along each axis, instead of the length"
    )
    displacement: Positive = Field(0.01, description="displacement of an atom, both ways, Å")
    symmetry_tolerance: Positive = Field(
        1e-4, description="distance by which atoms may miss their symmetric places, Å"
    )
    correction: Literal["auto", "model", "none"] = Field(
        "auto",
        description="non-analytical term: auto takes a BORN file, else the model's own charges "
        "if it has them; model insists on those; none leaves LO and TO together",
    )
    born_file: Path | None = Field(None, description="Born charges in phonopy's BORN format")
    path: str | None = Field(
        None, description='special points, as "GXWKGL,UX"; else the standard path'
    )
    points: int = Field(51, ge=2, le=10_000, description="points on the longest line of the path")
    mesh: Positive | tuple[int, int, int] = Field(
        100.0,
        description="length from which the number of q-points follows, Å; or their number along "
        "each axis, as 20:20:20",
    )
    temperatures: tuple[float, float, float] = Field(
        (0.0, 1000.0, 10.0), description="first, last and interval of thermal properties, K"
    )
    animated: tuple[tuple[float, float, float], ...] = Field(
        ((0.0, 0.0, 0.0),),
        description="wave vectors whose modes become moving pictures, in reciprocal lattice "
        "vectors, as 0.5:0:0",
    )

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None and not re.fullmatch(r"([A-Z]\d*)+(,([A-Z]\d*)+)*", path):
            raise ValueError(f'path: expected special points as "GXWKGL,UX", got {path!r}')
        return path


@dataclass(frozen=True)
class PhononResult:
    """Phonons of a crystal.

    Attributes
    ----------
    phonopy
        The phonopy object with force constants, `band_structure`, `mesh`, `total_dos` and
        `thermal_properties` (per mole of primitive cells): see phonopy's documentation.
    atoms
        The unit cell, relaxed, with the calculator.
    relaxation
        Its relaxation, None where none was asked for.
    drift
        Largest violation of the acoustic sum rule by the force constants before it was enforced,
        eV/Å².
    acoustic
        Largest frequency, up or down, of the three acoustic modes at Γ, THz.
    lowest
        Lowest frequency on the mesh and the path, THz; negative where the crystal is unstable
        (an imaginary frequency).
    born
        Charges of the non-analytical term correction, None without it.
    note
        Why there is no correction, None with it.
    remark
        What is wrong with the supercell's size, None where nothing is.
    files
        What was written.
    """

    phonopy: "Phonopy"
    atoms: Atoms
    relaxation: RelaxResult | None
    drift: float
    acoustic: float
    lowest: float
    born: BornCharges | None
    note: str | None
    remark: str | None
    files: tuple[Path, ...]

    def gamma(self, direction: Sequence[float] | None = None) -> NDArray[np.float64]:
        """Frequencies (THz) at Γ.

        Parameters
        ----------
        direction
            From which Γ is approached, in reciprocal lattice vectors of the primitive cell; along
            it the longitudinal modes split off. None: no correction.
        """
        return modes_at(self.phonopy, (0.0, 0.0, 0.0), direction)[0]


class Phonons(CrystalSimulation):
    """Phonons with any ASE calculator.

        result = Phonons(atoms, PhononSettings(supercell_length=12), folder="run").run()

    Writes `phonons.yaml` (for phonopy.load), `phonons.png`, `phonons-thermal.png`, tables in
    phonopy's formats, and `phonons-mode-*.extxyz`. A run that ended early goes on with
    `run(restart=True)`: until then `phonons-forces.part` keeps the forces that are done.

    Parameters
    ----------
    atoms
        A unit cell, primitive or conventional, with a calculator; not modified.
    settings
        What to do.
    folder
        Where to write; None: nowhere.
    name
        Start of the files' names.

    Raises
    ------
    ConfigError, StructureError, UnsupportedError
        Settings, structure and calculator that do not go together, or no phonopy.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: PhononSettings,
        folder: str | Path | None = None,
        name: str = "phonons",
    ) -> None:
        try:
            import phonopy  # noqa: F401
        except ImportError as error:
            raise UnsupportedError("phonons need phonopy; pip install phonopy") from error
        super().__init__(atoms, folder, name)
        self.settings = settings
        if settings.born_file is not None and not settings.born_file.is_file():
            raise ConfigError(
                f"expected a BORN file in phonopy's format, got {settings.born_file}, which does "
                "not exist"
            )

    def run(self, *, restart: bool = False, progress: bool = False) -> PhononResult:
        """Relax, displace, and compute what follows from the forces.

        Parameters
        ----------
        restart
            Take up an earlier call where it ended, in the relaxation or between two
            displacements, and replace its results.
        progress
            Show bars.

        Raises
        ------
        ConvergenceError
            The relaxation did not converge, or a signal stopped the run (`StoppedError`).
        ConfigError
            Restarted with other displacements or another calculator.
        SimulationError
            Forces that are NaN.
        StructureError, UnsupportedError
            The calculator refuses the structure, or cannot give the correction asked for.
        OutputError
            A file is in the way or cannot be written.
        """
        stem, settings = self.begin(), self.settings
        if stem is not None and not restart:
            refuse_existing(stem.with_name(f"{self.name}.yaml"), _unfinished(stem))
        atoms, relaxation = self.relaxed(settings.relax, restart, progress)
        with phonopy_errors():
            phonopy = self._phonopy(atoms)
            path = standard_path(phonopy, settings.path, settings.points)
        born, note = self._born(atoms, phonopy)
        cells = phonopy.supercells_with_displacements
        assert cells is not None
        part = None if stem is None else _unfinished(stem)
        repeats = len(phonopy.supercell) // len(atoms)
        conditions = conditions_of_supercell(atoms, repeats)
        series = DisplacedForces(cells, atoms.calc, part, conditions)
        phonopy.forces = series.run(restart=restart, progress=progress, name=self.name)
        with phonopy_errors():
            drift = self._force_constants(phonopy, born)
            phonopy.run_band_structure(**path)
            self._frequencies(phonopy)
        files = () if stem is None else self._write(phonopy, stem)
        series.finish()
        return PhononResult(
            phonopy=phonopy,
            atoms=atoms,
            relaxation=relaxation,
            drift=drift,
            acoustic=float(np.sort(np.abs(modes_at(phonopy, (0.0, 0.0, 0.0))[0]))[2]),
            lowest=_lowest(phonopy),
            born=born,
            note=note,
            remark=remark_on_size(phonopy.supercell, atoms.calc),
            files=files,
        )

    def _frequencies(self, phonopy: "Phonopy") -> None:
        """Density of states and thermal properties."""
        settings = self.settings
        in_field = field_of(self.atoms).any()
        symmetric = not (in_field or isotopes(as_atoms(phonopy.primitive)))
        phonopy.run_mesh(settings.mesh, is_gamma_center=True, is_mesh_symmetry=symmetric)
        phonopy.run_total_dos()
        first, last, interval = settings.temperatures
        phonopy.run_thermal_properties(
            t_min=first, t_max=last, t_step=interval, cutoff_frequency=FLAT
        )

    def _phonopy(self, atoms: Atoms) -> "Phonopy":
        """The phonopy object with its displacements."""
        from phonopy import Phonopy
        from phonopy.structure.cells import guess_primitive_matrix

        cell = as_phonopy(atoms)
        tolerance = self.settings.symmetry_tolerance
        # phonopy's primitive cell is that of the elements, whatever the masses
        primitive = (
            np.eye(3) if isotopes(atoms) else guess_primitive_matrix(cell, symprec=tolerance)
        )
        phonopy = Phonopy(
            cell,
            supercell_matrix=np.diag(self._repeats(atoms)),
            primitive_matrix=primitive,
            symprec=tolerance,
            is_symmetry=not field_of(atoms).any(),  # phonopy knows no field
        )
        phonopy.generate_displacements(distance=self.settings.displacement, is_plusminus=True)
        return phonopy

    def _repeats(self, atoms: Atoms) -> NDArray[np.int64]:
        """Cells along each axis of the supercell."""
        if self.settings.supercell is not None:
            return np.array(self.settings.supercell)
        heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
        return np.asarray(np.ceil(self.settings.supercell_length / heights - 1e-6), dtype=int)

    def _born(self, atoms: Atoms, phonopy: "Phonopy") -> tuple[BornCharges | None, str | None]:
        """Charges for the correction, or why there are none."""
        settings = self.settings
        if settings.correction == "none":
            return None, "switched off"
        if settings.born_file is not None and settings.correction == "auto":
            return from_file(settings.born_file, phonopy), None
        try:
            missing = set(PROPERTIES) - set(atoms.calc.implemented_properties)
            if missing:
                raise UnsupportedError(
                    f"the calculator does not give {' and '.join(sorted(missing))}; for an "
                    "insulator give a BORN file"
                )
            return from_calculator(atoms, phonopy), None
        except UnsupportedError as error:
            if settings.correction == "model":
                raise
            return None, str(error)

    def _force_constants(self, phonopy: "Phonopy", born: BornCharges | None) -> float:
        """Fit them, enforce the sum rule, correct them; the violation of the sum rule before."""
        phonopy.produce_force_constants(show_drift=False)
        constants = phonopy.force_constants
        assert constants is not None
        drift = float(np.abs(constants.sum(axis=1)).max())
        phonopy.symmetrize_force_constants(level=3, show_drift=False)
        if born is not None:
            # Gonze and Lee's method takes the dipoles' long-range part out before interpolating
            phonopy.nac_params = {
                "born": born.charges,
                "dielectric": born.dielectric,
                "factor": units.Hartree * units.Bohr,
                "method": "gonze",
            }
        return drift

    def _write(self, phonopy: "Phonopy", stem: Path) -> tuple[Path, ...]:
        """Everything that phonopy and people read."""
        writers: dict[str, Any] = {
            "-bands.yaml": lambda path: phonopy.write_yaml_band_structure(filename=path),
            "-dos.dat": lambda path: phonopy.write_total_dos(filename=path),
            "-thermal.yaml": lambda path: phonopy.write_yaml_thermal_properties(filename=path),
            ".png": lambda path: save_figure(draw_phonons(phonopy), path),
            "-thermal.png": lambda path: save_figure(draw_thermal(phonopy), path),
        }
        for number, q in enumerate(self.settings.animated):
            for band in range(3 * len(phonopy.primitive)):
                name = f"-mode-{number}-{band:02d}.extxyz"
                text = "".join(as_extxyz(frame) for frame in animate(phonopy, q, band))
                writers[name] = lambda path, text=text: path.write_text(text, encoding="utf-8")
        # last, so that it stands for a finished calculation
        writers[".yaml"] = phonopy.save
        files = []
        for ending, write in writers.items():
            path = stem.with_name(stem.name + ending)
            with replacing(path) as new:
                write(new)
            files.append(path)
        return tuple(files)


def _unfinished(stem: Path) -> Path:
    """Where the forces are until the results are written."""
    return stem.with_name(f"{stem.name}-forces.part")


def _lowest(phonopy: "Phonopy") -> float:
    """Lowest frequency on the mesh and the path, THz."""
    path, mesh = phonopy.band_structure, phonopy.mesh
    assert path is not None and mesh is not None
    on_mesh = mesh.frequencies  # type: ignore[union-attr]
    return float(min(on_mesh.min(), *(line.min() for line in path.frequencies)))
