"""Crystals in an electric field, which breaks symmetries that their atoms still have."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from phicalc.workflows.crystal.phonon_modes import modes_at
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from phicalc.workflows.symmetry import point_group
from tests.workflows.crystal.test_phonons import THZ
from tests.workflows.ions import RigidIons

FIELD = np.array([0.0, 0.0, 0.3])
COUPLING = 10.0  # eV/V²


class IonsInField(RigidIons):
    """Ions that the field pulls, and bonds that it makes stiffer along itself.

    E = E₀ − f·Σ q r + ½ κ Σ (f·d)² over the bonds d: quadratic, as an induced moment would be.
    """

    def calculate(self, atoms: Atoms | None = None, *args: Any, **options: Any) -> None:
        super().calculate(atoms, *args, **options)
        charges = np.array([self.charge_of[s] for s in self.atoms.symbols])
        field = np.asarray(self.atoms.info["external_field"])
        i, d = neighbor_list("iD", self.atoms, 3.5)
        drops = d @ field
        energy = 0.25 * COUPLING * np.sum(drops**2) - field @ self.atoms.positions.T @ charges
        forces = np.multiply.outer(charges, field)
        np.add.at(forces, i, COUPLING * np.multiply.outer(drops, field))
        self.results["forces"] = self.results["forces"] + forces
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + energy


def salt(field: np.ndarray = FIELD) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.info["external_field"] = field
    atoms.calc = IonsInField({"Na": 1.0, "Cl": -1.0})
    return atoms


@pytest.mark.parametrize(
    ("field", "order"), [((0, 0, 0), 48), ((0, 0, 1), 8), ((1, 1, 1), 6), ((1, 2, 4), 1)]
)
def test_the_point_group_is_that_of_crystal_and_field(field, order):
    assert len(point_group(salt(0.01 * np.array(field)))) == order


@pytest.mark.parametrize("field", [FIELD, np.array([0.05, 0.1, 0.2])])
def test_a_symmetric_crystal_relaxes_along_the_field(field):
    """Keeping the symmetry that is left ends where keeping none does."""
    ends = []
    for keep in (True, False):
        settings = RelaxSettings(max_force=1e-5, keep_symmetry=keep)
        end = Relaxation(salt(field), settings).run()
        ends.append(end.atoms.get_distance(0, 1, vector=True, mic=True))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)
    start = salt().get_distance(0, 1, vector=True, mic=True)
    assert np.abs(ends[0] - start).max() > 1e-3


def test_phonons_know_that_the_field_breaks_the_symmetry():
    """At Γ against the Hessian by finite differences: optical modes along the field are stiffer."""
    atoms = salt()
    settings = PhononSettings(
        relax=None, supercell=(2, 2, 2), correction="none", mesh=(2, 2, 2), points=3, animated=()
    )
    found = modes_at(Phonons(atoms, settings).run().phonopy, (0.0, 0.0, 0.0))[0]
    hessian = np.zeros((6, 6))
    for column in range(6):
        for sign in (1.0, -1.0):
            moved = salt()
            moved.positions.flat[column] += sign * 1e-3
            hessian[:, column] -= sign * moved.get_forces().ravel() / 2e-3
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    squares = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) / np.outer(root, root))
    expected = np.sign(squares) * np.sqrt(np.abs(squares)) * THZ
    np.testing.assert_allclose(found[3:], expected[3:], rtol=1e-3)
    assert found[5] - found[3] > 0.5


def test_it_is_remarked_on():
    phonons = Phonons(salt(), PhononSettings(relax=None))
    assert any("electric field of 0 0 0.3 V/Å" in remark for remark in phonons.remarks)
    assert not Phonons(salt(np.zeros(3)), PhononSettings(relax=None)).remarks
