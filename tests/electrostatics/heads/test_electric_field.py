"""What fields do to matter: chains of any length, and optical phonons of rock salt."""

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.units import _amu, _e
from torch import Tensor, nn

from phicalc import fields
from phicalc.data.graph import Graph, collate, graph_dict, to_graph
from phicalc.electrostatics.heads.phi_coulomb import PhiCoulombHead
from phicalc.electrostatics.heads.qeq import QEqHead
from phicalc.electrostatics.laplacian import edge_weights
from phicalc.envelope import polynomial_envelope
from phicalc.model.derivatives import Differentiated
from phicalc.units import COULOMB_CONSTANT

CUTOFF = 5.0
SPACING = 5.64  # Å, lattice constant of the salt
FREQUENCY = np.sqrt(_e / _amu) * 1e10 / (2 * np.pi) / 1e12  # THz of √(1 eV/Å²/amu)


def graph_of(atoms: Atoms) -> Graph:
    return graph_dict(collate([to_graph(atoms, CUTOFF)]))


def no_features(graph: Graph) -> list[Tensor]:
    return [torch.zeros(graph[fields.SPECIES].shape[0], 4)]


def conducting(head: PhiCoulombHead, conductance: float) -> PhiCoulombHead:
    with torch.no_grad():
        head.log_conductance.fill_(float(np.log(conductance)))
    return head


# --- a metal or a dielectric --------------------------------------------------------------------


def polarisability(head: nn.Module, num_atoms: int, field: float = 0.01) -> float:
    """Along a chain of equal atoms in a field, per atom | e·Å²/V."""
    chain = Atoms("C" * num_atoms, [[1.4 * i, 0.0, 0.0] for i in range(num_atoms)])
    graph = graph_of(chain)
    graph[fields.FIELD] = torch.tensor([[field, 0.0, 0.0]], dtype=torch.float64)
    species = torch.zeros(num_atoms, dtype=torch.long)
    charges = head.eval()(no_features(graph), species, graph)[fields.CHARGES].detach()
    assert abs(float(charges.sum())) < 1e-12
    return float(charges @ graph[fields.POSITIONS][:, 0]) / num_atoms / field


@pytest.mark.parametrize(("conductance", "ends"), [(0.1, 0.05), (1.0, 0.16)])
def test_charge_on_edges_makes_a_dielectric(conductance, ends):
    """In a long chain all edges carry the same flow, no atom has a charge, and what is left is

        α/N = Σ w_e r_e² over the edges of one atom, counted once

    whatever the Coulomb interaction. The ends take away a part that goes as 1/N and is longer
    the better the bonds conduct (as √w): a chain of 10 well conducting atoms is all end.
    """
    head = conducting(
        PhiCoulombHead(4, 0, [6], CUTOFF, 2.0, 10.0, [0.0], "formal", True), conductance
    )
    found = np.array([polarisability(head, n) for n in (10, 20, 40, 80, 160)])
    reach = 1.4 * torch.arange(1, 4).double()
    limit = conductance * float((edge_weights(reach, CUTOFF, 2.0) * reach**2).sum())
    missing = 1.0 - found / limit
    assert (np.diff(found) > 0).all() and (missing > 0).all()
    assert missing[4] < ends
    assert missing[4] / missing[3] == pytest.approx(0.5, abs=0.03)


def test_equilibration_makes_a_metal():
    """Its polarisability per atom grows with the length, nearly as the square of it."""
    found = np.array([polarisability(QEqHead(4, 0, [6], CUTOFF), n) for n in (10, 20, 40, 80, 160)])
    assert (found[1:] > 2.9 * found[:-1]).all()


def test_equal_atoms_without_a_dense_solve():
    """Sources that drive no flow at all are solved, not taken for a failure to converge."""
    chain = Atoms("C" * 30, [[1.4 * i, 0.0, 0.0] for i in range(30)])
    graph, species = graph_of(chain), torch.zeros(30, dtype=torch.long)
    head = PhiCoulombHead(4, 0, [6], CUTOFF, 2.0, 10.0, [0.0], "formal", True).eval()
    head.dense_limit = 0
    output = head(no_features(graph), species, graph)
    assert float(output[fields.SOLVER_RESIDUAL]) < 1e-6
    assert int(output[fields.SOLVER_ITERATIONS]) < 50
    assert float(output[fields.CHARGES].detach().abs().max()) < 1e-10
    assert torch.isfinite(head.response(no_features(graph), species, graph).mixed).all()


# --- optical phonons of rock salt ---------------------------------------------------------------


class RockSalt(nn.Module):
    """Fixed parameters: a charge head and the repulsion B·exp(−r/ρ) between all ions."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.needs_positions = True

    def forward(self, graph: Graph) -> Graph:
        output = self.head(no_features(graph), self.species_index(graph), graph)
        distances = torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1)
        pair = 750.0 * torch.exp(-distances / 0.31) * polynomial_envelope(distances / CUTOFF)
        output[fields.ENERGY] = (output[fields.ENERGIES].sum() + pair.sum())[None]
        return output

    def response(self, graph: Graph):
        return self.head.response(no_features(graph), self.species_index(graph), graph)

    def species_index(self, graph: Graph) -> Tensor:
        return (graph[fields.SPECIES] == 17).long()


@cache
def salt(kind: str) -> Differentiated:
    """With phi-coulomb, formal charges ±1 and ε∞ near 2.4; or with charge equilibration."""
    flowing = PhiCoulombHead(4, 0, [11, 17], CUTOFF, 2.0, 10.0, [1.0, -1.0], "formal", True)
    head = conducting(flowing, 0.4) if kind == "phi-coulomb" else QEqHead(4, 0, [11, 17], CUTOFF)
    return Differentiated(RockSalt(head)).eval()


def dynamical_matrix(model: Differentiated, cells: int, axis: int) -> np.ndarray:
    """Of waves cos(qx) along [100] that move ions along an axis, q = 2π/(cells·a); 0 for 1 cell.

    (2, 2) | eV/Å²/amu, by central differences of forces. A plane across x holds ions of both
    kinds, and inversion makes the matrix real.
    """
    atoms = bulk("NaCl", "rocksalt", a=SPACING, cubic=True) * (cells, 1, 1)
    wave = np.cos(2 * np.pi * atoms.positions[:, 0] / (cells * SPACING)) if cells > 1 else None
    wave = np.ones(len(atoms)) if wave is None else wave
    kinds = [np.flatnonzero(atoms.numbers == number) for number in (11, 17)]
    matrix = np.zeros((2, 2))
    for column, moving in enumerate(kinds):
        forces = []
        for step in (1e-3, -1e-3):
            moved = atoms.copy()
            moved.positions[moving, axis] += step * wave[moving]
            forces.append(model(graph_of(moved))[fields.FORCES].numpy()[:, axis])
        constants = -(forces[0] - forces[1]) / 2e-3
        for row, felt in enumerate(kinds):
            matrix[row, column] = constants[felt] @ wave[felt] / (wave[felt] @ wave[felt])
    return matrix / np.sqrt(np.outer(*[salt_masses()] * 2))


def salt_masses() -> np.ndarray:
    return Atoms("NaCl").get_masses()


def optical(matrix: np.ndarray) -> float:
    """Frequency of the upper branch | THz."""
    return float(np.sqrt(np.linalg.eigvalsh(matrix)[-1]) * FREQUENCY)


def towards_gamma(model: Differentiated) -> float:
    """The longitudinal optical branch, ω² as a polynomial in q², at q → 0 | THz."""
    cells = np.array([2, 3, 4, 6])
    squares = [optical(dynamical_matrix(model, int(n), 0)) ** 2 for n in cells]
    return float(np.sqrt(np.polyfit(1.0 / cells**2.0, squares, 2)[-1]))


def test_the_longitudinal_branch_meets_the_heads_own_lo_frequency():
    """D_LO = D_TO + 4π k_e Z*Z*ᵀ/(V ε∞ √(m m')), all of one model and nothing fitted."""
    model = salt("phi-coulomb")
    cell = bulk("NaCl", "rocksalt", a=SPACING)
    response = model.response(graph_of(cell))
    born = response[fields.BORN_CHARGES].numpy()
    assert np.abs(born.sum(axis=0)).max() < 1e-6
    assert born == pytest.approx(born[:, :1, :1] * np.eye(3), abs=1e-9)  # cubic sites
    coupling = 4 * np.pi * COULOMB_CONSTANT / cell.get_volume()
    dielectric = 1.0 + coupling * float(response[fields.POLARISABILITY][0, 0])
    assert 2.0 < dielectric < 3.0
    weighted = born[:, 0, 0] / np.sqrt(salt_masses())
    transverse = dynamical_matrix(model, 1, 0)
    longitudinal = optical(transverse + coupling / dielectric * np.outer(weighted, weighted))
    assert longitudinal > 1.2 * optical(transverse)
    assert towards_gamma(model) == pytest.approx(longitudinal, rel=0.01)


def test_equilibrated_charges_do_not_split_the_optical_branch():
    """They screen like a metal: the longitudinal branch ends at the transverse frequency."""
    model = salt("qeq")
    transverse = optical(dynamical_matrix(model, 1, 0))
    assert towards_gamma(model) == pytest.approx(transverse, rel=0.02)
