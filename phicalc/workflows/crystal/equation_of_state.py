"""Energy of a crystal against its volume: equilibrium volume, lattice constant, bulk modulus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ase.eos
import numpy as np
from ase import Atoms, units
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from phicalc.checks.settings import Positive
from phicalc.errors import ConvergenceError, SimulationError, UnsupportedError
from phicalc.machine.files import refuse_existing, replacing, write_json
from phicalc.workflows.crystal.start import CrystalSettings, CrystalSimulation
from phicalc.workflows.figures import LINE, save_figure
from phicalc.workflows.relax import Relaxation, RelaxResult, RelaxSettings
from phicalc.workflows.symmetry import conventional_atoms
from phicalc.workflows.watching import Display

Array = NDArray[np.float64]
Equation = Literal["birchmurnaghan", "vinet", "murnaghan"]


class EquationOfStateSettings(CrystalSettings):
    """An equation of state. Forces in eV/Å."""

    span: Positive = Field(
        0.06, lt=0.5, description="largest relative change of the volume, both ways"
    )
    points: int = Field(9, ge=5, le=1000, description="number of volumes")
    free: Literal["nothing", "atoms", "shape"] = Field(
        "atoms", description="what relaxes at each volume; shape: atoms and shape of the cell"
    )
    equation: Equation = Field("birchmurnaghan", description="what is fitted, as ASE names it")
    max_force: Positive = Field(1e-3, description="largest force left at each volume, eV/Å")
    steps: int = Field(300, ge=1, description="most steps of the relaxation at each volume")


@dataclass(frozen=True)
class EquationOfStateResult:
    """An equation of state.

    Attributes
    ----------
    volume
        At the minimum, Å³ of the given cell.
    lattice_constant
        Of the conventional cell in Å; None unless the crystal is cubic.
    energy
        At the minimum, eV.
    bulk_modulus
        B₀ = −V dP/dV at the minimum, GPa.
    bulk_modulus_derivative
        B₀′ = dB/dP.
    residual
        Root mean square of what the fit leaves, eV per atom.
    volumes, energies
        (points,) in Å³ and eV, ascending in volume.
    curve
        (2, 200) volumes and energies of the fitted equation.
    equation
        Its name.
    relaxation
        Relaxation of the start, None where none was asked for.
    files
        What was written.
    """

    volume: float
    lattice_constant: float | None
    energy: float
    bulk_modulus: float
    bulk_modulus_derivative: float
    residual: float
    volumes: Array
    energies: Array
    curve: Array
    equation: str
    relaxation: RelaxResult | None
    files: tuple[Path, ...]


class EquationOfState(CrystalSimulation):
    """An equation of state with any ASE calculator.

        result = EquationOfState(atoms, EquationOfStateSettings(), folder="run").run()
        result.lattice_constant, result.bulk_modulus

    Writes `eos.json` and `eos.png`.

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
        settings: EquationOfStateSettings,
        folder: str | Path | None = None,
        name: str = "eos",
    ) -> None:
        super().__init__(atoms, folder, name)
        if settings.free == "shape" and "stress" not in atoms.calc.implemented_properties:
            raise UnsupportedError("free: expected a calculator with stress for shape")
        self.settings = settings

    def run(self, *, restart: bool = False, progress: bool = False) -> EquationOfStateResult:
        """Relax, change the volume, and fit.

        Parameters
        ----------
        restart
            Take up the relaxation of an earlier call where it ended, and replace its results.
        progress
            Show bars.

        Raises
        ------
        ConvergenceError
            A relaxation did not converge, or a signal stopped it; or the energies have no minimum
            within the volumes.
        SimulationError
            Energies that are NaN.
        StructureError, UnsupportedError
            The calculator refuses the structure.
        OutputError
            A file is in the way or cannot be written.
        """
        stem = self.begin()
        files: tuple[Path, ...] = ()
        if stem is not None:
            files = tuple(stem.with_name(self.name + kind) for kind in (".png", ".json"))
            if not restart:
                refuse_existing(*files)
        atoms, relaxation = self.relaxed(self.settings.relax, restart, progress)
        volumes, energies = self._sampled(atoms, progress)
        result = self._fitted(atoms, volumes, energies, relaxation, files)
        if files:
            picture, table = files
            with replacing(picture) as new:
                save_figure(draw_equation_of_state(result), new)
            write_json(table, _summary(result))
        return result

    def _sampled(self, atoms: Atoms, progress: bool) -> tuple[Array, Array]:
        """Volumes and energies."""
        settings = self.settings
        ratios = np.linspace(1.0 - settings.span, 1.0 + settings.span, settings.points)
        energies = []
        with Display(settings.points, f"{self.name}: volumes", progress) as bar:
            for number, ratio in enumerate(ratios):
                cell: Atoms = atoms.copy()
                cell.calc = atoms.calc
                cell.set_cell(atoms.cell.array * ratio ** (1.0 / 3.0), scale_atoms=True)
                if settings.free != "nothing":
                    relax = RelaxSettings(
                        cell="shape" if settings.free == "shape" else "fixed",
                        max_force=settings.max_force,
                        steps=settings.steps,
                    )
                    cell = Relaxation(cell, relax).run().atoms
                energies.append(float(cell.get_potential_energy()))
                bar.show(number + 1)
        if not np.isfinite(energies).all():
            raise SimulationError("the energies are NaN or infinite")
        return float(atoms.get_volume()) * ratios, np.array(energies)

    def _fitted(
        self,
        atoms: Atoms,
        volumes: Array,
        energies: Array,
        relaxation: RelaxResult | None,
        files: tuple[Path, ...],
    ) -> EquationOfStateResult:
        """The equation's parameters."""
        reference = energies.min()  # small numbers fit better
        fit = ase.eos.EquationOfState(volumes, energies - reference, self.settings.equation)
        try:
            volume, energy, modulus = fit.fit(warn=False)
        except (RuntimeError, ValueError) as error:
            raise ConvergenceError(f"no {self.settings.equation} fits: {error}") from error
        if not volumes[0] < volume < volumes[-1]:
            raise ConvergenceError(
                f"expected the minimum between {volumes[0]:.4g} and {volumes[-1]:.4g} Å³, got "
                f"{volume:.4g} Å³; relax the cell first, or begin nearer"
            )
        equation = getattr(ase.eos, self.settings.equation)
        grid = np.linspace(volumes[0], volumes[-1], 200)
        rest = equation(volumes, *fit.eos_parameters) + reference - energies
        conventional = conventional_atoms(atoms)
        ratio = None if conventional is None else conventional / len(atoms)
        return EquationOfStateResult(
            volume=float(volume),
            lattice_constant=None if ratio is None else float((volume * ratio) ** (1.0 / 3.0)),
            energy=float(energy + reference),
            bulk_modulus=float(modulus / units.GPa),
            bulk_modulus_derivative=float(fit.eos_parameters[2]),
            residual=float(np.sqrt(np.mean(rest**2)) / len(atoms)),
            volumes=volumes,
            energies=energies,
            curve=np.array([grid, equation(grid, *fit.eos_parameters) + reference]),
            equation=self.settings.equation,
            relaxation=relaxation,
            files=files,
        )


def _summary(result: EquationOfStateResult) -> dict[str, Any]:
    """The result as JSON has it."""
    return {
        "equation": result.equation,
        "volume_A3": result.volume,
        "lattice_constant_A": result.lattice_constant,
        "energy_eV": result.energy,
        "bulk_modulus_GPa": result.bulk_modulus,
        "bulk_modulus_derivative": result.bulk_modulus_derivative,
        "fit_residual_eV_per_atom": result.residual,
        "volumes_A3": result.volumes.tolist(),
        "energies_eV": result.energies.tolist(),
    }


def draw_equation_of_state(result: EquationOfStateResult) -> Figure:
    """Energies and the fitted curve against the volume."""
    figure = Figure(figsize=(6.0, 4.5))
    axes = figure.subplots()
    volumes, energies = result.curve
    axes.plot(volumes, 1e3 * (energies - result.energy), color=LINE, label=result.equation)
    axes.plot(
        result.volumes, 1e3 * (result.energies - result.energy), "o", color=LINE, label="computed"
    )
    axes.axvline(result.volume, color="gray", linewidth=0.5)
    title = f"V₀ = {result.volume:.3f} Å³, B₀ = {result.bulk_modulus:.2f} GPa"
    if result.lattice_constant is not None:
        title += f", a₀ = {result.lattice_constant:.4f} Å"
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("volume / Å³")
    axes.set_ylabel("energy − minimum / meV per cell")
    axes.legend(frameon=False)
    return figure
