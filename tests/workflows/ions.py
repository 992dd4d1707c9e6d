"""Rigid ions: Ewald's sum and a repulsion, whose Born charges are known exactly."""

from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from scipy.special import erfc

COULOMB = units.Hartree * units.Bohr
SCREENING = 0.6  # 1/Å, of the part summed in real space
CUTOFF, LARGEST_WAVE = 8.0, 6.0  # Å, 1/Å


class RigidIons(Calculator):
    """Ions of fixed charge: Z* is the charge, ε∞ is one.

    Repulsion A exp(−r/ρ) between unlike ions, A = 1133 eV and ρ = 0.32 Å: rock salt near 5.64 Å.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "forces", "born_effective_charges", "dielectric_tensor"),
    ]

    def __init__(self, charges: dict[str, float], born_error: float = 0.0) -> None:
        super().__init__()
        self.charge_of, self.born_error = charges, born_error

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        charges = np.array([self.charge_of[s] for s in self.atoms.symbols])
        energy, forces = self._near(charges)
        far_energy, far_forces = self._far(charges)
        energy += far_energy - COULOMB * SCREENING / np.sqrt(np.pi) * np.sum(charges**2)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces + far_forces,
            "born_effective_charges": (charges + self.born_error)[:, None, None] * np.eye(3),
            "dielectric_tensor": np.eye(3),
        }

    def _near(self, charges: np.ndarray) -> tuple[float, np.ndarray]:
        i, j, r, d = neighbor_list("ijdD", self.atoms, CUTOFF)
        product = COULOMB * charges[i] * charges[j]
        screened = erfc(SCREENING * r) / r
        gaussian = 2.0 * SCREENING / np.sqrt(np.pi) * np.exp(-((SCREENING * r) ** 2))
        slope = (screened + gaussian) / r
        repulsion = np.where(product < 0.0, 1133.0 * np.exp(-r / 0.32), 0.0)
        pull = (product * slope + repulsion / 0.32) / r
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, -pull[:, None] * d)
        return 0.5 * float(np.sum(product * screened + repulsion)), forces

    def _far(self, charges: np.ndarray) -> tuple[float, np.ndarray]:
        reciprocal = 2.0 * np.pi * np.linalg.inv(self.atoms.cell.array).T
        most = np.ceil(LARGEST_WAVE * self.atoms.cell.lengths() / (2.0 * np.pi)).astype(int)
        grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1)
        waves = grid.reshape(-1, 3) @ reciprocal
        squares = np.sum(waves**2, axis=1)
        kept = (squares > 0.0) & (squares <= LARGEST_WAVE**2)
        waves, squares = waves[kept], squares[kept]
        weights = 4.0 * np.pi * np.exp(-squares / (4.0 * SCREENING**2)) / squares
        phases = np.exp(1j * waves @ self.atoms.positions.T)
        structure = phases @ charges
        factor = COULOMB / self.atoms.get_volume()
        energy = 0.5 * factor * float(np.sum(weights * np.abs(structure) ** 2))
        gradient = np.imag(np.conj(structure)[:, None] * phases).T * weights
        return energy, factor * charges[:, None] * (gradient @ waves)
