"""What a model says about one structure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from phicalc import fields
from phicalc.checks.structure import check_finite

Array = NDArray[np.float64]

_TERM = "energy_"  # prefix of the model's outputs that add up to the energy


@dataclass(frozen=True, eq=False)
class Result:
    """What a model says about one structure of N atoms; None where it is not defined.

    Attributes
    ----------
    energy
        eV.
    energies
        (N,) in eV, per atom.
    forces
        (N, 3) in eV/Å.
    stress
        (6,) in eV/Å³, ASE's order and sign; of cells periodic in three directions.
    charges
        (N,) in e; of models with an electrostatics head.
    dipole
        (3,) in e·Å about the centre of mass; of such models, not periodic.
    potential
        (N,) in V; φ of models with a Φ head, with or without Coulomb.
    energy_terms
        Terms in eV that add up to the energy: reference, network, zbl, phi, …
    features
        (N, F) of each message step, invariant under rotation; where they were asked for.
    """

    energy: float
    energies: Array
    forces: Array
    stress: Array | None
    charges: Array | None
    dipole: Array | None
    potential: Array | None = None
    energy_terms: dict[str, float] = field(default_factory=dict)
    features: tuple[Array, ...] | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """All that is defined, by ASE's names, free_energy among them."""
        known = {name: getattr(self, name, None) for name in fields.PROPERTY}
        found = {name: value for name, value in known.items() if value is not None}
        return {"free_energy": self.energy, **found}

    def attached_to(self, atoms: Atoms) -> Atoms:
        """A copy of the structure that bears these results and no others.

        Labels under the names of ASE's properties, in ``info`` or ``arrays``, are left out:
        a file with both would not say which is which.
        """
        copy: Atoms = atoms.copy()
        for name in all_properties:
            copy.info.pop(name, None)
            copy.arrays.pop(name, None)
        copy.calc = SinglePointCalculator(copy, **self.properties)
        return copy


def results_of(structures: Sequence[Atoms], output: dict[str, Tensor]) -> Iterator[Result]:
    """One result per structure of a batch; every number is finite.

    Parameters
    ----------
    structures
        Of which the model was given a batch.
    output
        What it gave, on the CPU.

    Raises
    ------
    StructureError
        When the structure comes whose numbers are NaN or infinite.
    """
    terms = [name for name in output if name.startswith(_TERM)]
    first = 0
    for number, atoms in enumerate(structures):
        periodic = int(atoms.pbc.sum())
        rows = slice(first, first + len(atoms))
        first = rows.stop
        values: dict[str, Any] = {}
        for row in fields.PROPERTIES:
            if row.name in output and row.is_defined(periodic):
                part = output[row.name][rows if row.per == "atom" else number]
                values[row.name] = part.numpy() if part.ndim else float(part)
        check_finite(values)
        stress, potential = values.get("stress"), output.get(fields.POTENTIAL)
        yield Result(
            energy=values["energy"],
            energies=values["energies"],
            forces=values["forces"],
            stress=None if stress is None else full_3x3_to_voigt_6_stress(stress),
            charges=values.get("charges"),
            dipole=values.get("dipole"),
            potential=None if potential is None else potential[rows].numpy(),
            energy_terms={name.removeprefix(_TERM): float(output[name][number]) for name in terms},
        )
