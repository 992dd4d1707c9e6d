"""Coulomb sums in cells that are mostly empty: what they cost, and that they stay what they are."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.electrostatics.coulomb import lattice
from phicalc.electrostatics.coulomb.ewald import (
    SPLIT_WIDTH,
    best_split,
    coulomb_matrices,
    direct_matrix,
    ewald_matrix,
    ewald_terms,
)
from phicalc.electrostatics.coulomb.mesh import POINTS_PER_ATOM, affordable_spacing, mesh_shape
from phicalc.electrostatics.coulomb.particle_mesh import apply_operator, coulomb_operator
from phicalc.electrostatics.solvers.charges import screening_mesh
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT
from tests.electrostatics.coulomb.test_ewald import random_charges, real_space_pairs
from tests.electrostatics.coulomb.test_operator import (
    CUTOFF,
    by_ewald,
    check_derivatives,
    differentiated,
    graph_of,
)

WIGNER = 2.837297479480620  # of charges on a cubic lattice in a uniform background
SHAPES = {"box": (1, 1, 1), "slab": (0, 0, 1), "wire": (0, 1, 1)}


def few_atoms() -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and widths | Å of three atoms about a bond length apart."""
    positions = torch.tensor([[0.1, 0.2, 0.0], [1.1, 0.0, 0.4], [-0.3, 1.5, 2.1]]).double()
    return positions, torch.tensor([0.4, 1.3, 0.7]).double()


def cell_of(edge: float, shape: str = "box") -> torch.Tensor:
    """A tilted cell, of this edge | Å where the shape is large and of 8 Å where it is not."""
    lengths = torch.tensor([edge if large else 8.0 for large in SHAPES[shape]]).double()
    tilt = torch.tensor([[1.0, 0, 0], [0.1, 1.0, 0], [0.05, -0.1, 1.0]]).double()
    return tilt * lengths[None, :]


def gas(edge: float = 60.0, molecules: int = 27) -> Atoms:
    """Water molecules on a lattice in a tilted cell, shaken."""
    per_axis = round(molecules ** (1 / 3))
    one = water_box(8, seed=0)[:3]
    one.positions -= one.positions[0]
    atoms = Atoms(cell=cell_of(edge).numpy(), pbc=True)
    for site in np.ndindex(per_axis, per_axis, per_axis):
        moved = one.copy()
        moved.positions += np.array(site) @ atoms.cell.array / per_axis
        atoms += moved
    atoms.rattle(0.3, seed=2)
    return atoms


def charges_and_widths(atoms: Atoms, total: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    oxygen = torch.tensor(atoms.numbers == 8)
    charges = torch.where(oxygen, -0.8, 0.4).double() + total / len(atoms)
    return charges + 0.1 * random_charges(len(atoms)), torch.where(oxygen, 0.66, 0.31).double()


# --- matrices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_terms_follow_the_atoms(shape):
    """Cells 250 times as long have about as many pairs and waves; flat ones a few times more."""
    positions, widths = few_atoms()
    counts = []
    for edge in (20.0, 100.0, 1000.0, 5000.0):
        cell = cell_of(edge, shape)
        split = best_split(cell, 3, float(widths.max()))
        terms = ewald_terms(positions, cell, widths, split)
        counts.append(terms.near.shape[0] + terms.waves.numel())
    assert counts[0] < 1000
    assert max(counts) < (3 if shape == "box" else 12) * counts[0]


def test_condensed_matter_keeps_its_split():
    """Whatever was computed before is computed to the bit as it was."""
    for atoms in (bulk("NaCl", "rocksalt", a=5.64), water_box(8, seed=0), water_box(64, seed=0)):
        cell = torch.tensor(atoms.cell.array)
        assert best_split(cell, len(atoms), 1.7) == SPLIT_WIDTH
        widths = torch.full((len(atoms),), 0.8).double()
        positions = torch.tensor(atoms.positions)
        expected = ewald_matrix(positions, cell, widths, SPLIT_WIDTH)
        assert torch.equal(ewald_matrix(positions, cell, widths), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("edge", [25.0, 60.0])
def test_the_split_does_not_matter(edge, shape):
    positions, widths = few_atoms()
    cell = cell_of(edge, shape)
    assert best_split(cell, 3, 1.3) > 1.4
    expected = ewald_matrix(positions, cell, widths, SPLIT_WIDTH)
    assert_allclose(ewald_matrix(positions, cell, widths), expected, atol=2e-12)


@pytest.mark.parametrize("edge", [50.0, 400.0, 5000.0])
def test_an_ion_in_an_empty_box(edge):
    """Self-energy, the interaction with its images and the background, and what its width adds."""
    width = 0.7
    cell, widths = edge * torch.eye(3).double(), torch.tensor([width], dtype=torch.float64)
    found = float(ewald_matrix(torch.zeros(1, 3).double(), cell, widths)[0, 0])
    own = 1.0 / (math.sqrt(math.pi) * width)
    expected = own - WIGNER / edge + 4.0 * math.pi * width**2 / edge**3
    assert found == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("edge", [100.0, 1000.0, 5000.0])
def test_a_molecule_in_an_empty_box(edge):
    """The direct sum, but for the field of image dipoles (doi:10.1103/PhysRevB.51.4014)."""
    positions, widths = few_atoms()
    q = torch.tensor([0.8, -0.5, -0.3]).double()
    free = direct_matrix(positions[None], widths[None])[0]
    box = ewald_matrix(positions, edge * torch.eye(3).double(), widths)
    dipole = float(torch.linalg.vector_norm(q @ positions))
    expected = -2.0 * math.pi * dipole**2 / (3.0 * edge**3)
    assert 0.5 * float(q @ (box - free) @ q) == pytest.approx(expected, rel=0.05, abs=1e-11)


def test_point_charges_agree_with_torch_pme():
    torchpme = pytest.importorskip("torchpme")
    positions, _ = few_atoms()
    cell, width, smearing, q = cell_of(40.0), 2.0**-7, 2.5, random_charges(3)
    ours = ewald_matrix(positions, cell, torch.full((3,), width).double())
    expected = ours @ q - q / (math.sqrt(math.pi) * width)
    i, j, distances = real_space_pairs(positions, cell, 20.0)
    calculator = torchpme.EwaldCalculator(
        torchpme.CoulombPotential(smearing=smearing), lr_wavelength=1.0, full_neighbor_list=True
    ).double()
    potential = calculator(q[:, None], cell, positions, torch.stack([i, j], 1), distances)
    assert_allclose(2.0 * potential[:, 0], expected, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_to_second_order(shape):
    positions, widths = few_atoms()
    q = random_charges(3, 0.5)

    def energy(x, h, w):
        return q @ ewald_matrix(x, h, w) @ q

    inputs = [x.clone().requires_grad_() for x in (positions, cell_of(40.0, shape), widths)]
    assert torch.autograd.gradcheck(energy, inputs, eps=1e-4, atol=1e-8, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, inputs, eps=1e-4, atol=1e-7, fast_mode=True)


def test_a_batch_of_cells_of_any_emptiness():
    positions, widths = few_atoms()
    cells = [cell_of(edge) for edge in (8.0, 60.0, 900.0)]
    graph = {
        fields.POSITIONS: positions.repeat(3, 1),
        fields.CELL: torch.stack(cells),
        fields.PBC: torch.ones(3, 3, dtype=torch.bool),
        fields.BATCH: torch.arange(3).repeat_interleave(3),
    }
    matrices = coulomb_matrices(graph, widths.repeat(3), 1.0)
    for matrix, cell in zip(matrices, cells, strict=True):
        assert torch.equal(matrix, ewald_matrix(positions, cell, widths))


def test_a_charged_supercell_costs_as_many_cells():
    """One ion in its cell, against the background, and eight such cells as one."""
    for edge in (3.0, 30.0):
        cell, width = cell_of(edge), torch.tensor([0.6]).double()
        one = float(ewald_matrix(torch.zeros(1, 3).double(), cell, width)[0, 0])
        sites = torch.cartesian_prod(*[torch.arange(2.0).double()] * 3) @ cell
        eight = ewald_matrix(sites, 2.0 * cell, width.repeat(8))
        assert float(eight.sum()) == pytest.approx(8.0 * one, rel=1e-10)


# --- the mesh -----------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [40.0, 100.0, 1000.0, 50_000.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_mesh_points_follow_the_atoms(edge, shape):
    cell = cell_of(edge, shape)
    spacing = affordable_spacing(cell, 0.5, 300)
    points = math.prod(mesh_shape(cell, spacing))
    assert points <= POINTS_PER_ATOM * 300
    assert points > 0.3 * POINTS_PER_ATOM * 300 or spacing == 0.5  # and is not coarser than it must


def test_dense_matter_keeps_its_mesh_and_its_edges():
    atoms = water_box(64, seed=0)
    _, widths = charges_and_widths(atoms)
    assert coulomb_operator(graph_of(atoms), widths, CUTOFF).distant is None


@pytest.mark.parametrize("total", [0.0, 2.0])
@pytest.mark.parametrize("accuracy", [1e-5, 1e-7, 1e-9])
def test_a_gas_against_ewalds_sum(accuracy, total):
    """The accuracy that is promised of liquids: energy, forces, virial and potential."""
    atoms = gas()
    charges, widths = charges_and_widths(atoms, total)
    assert coulomb_operator(graph_of(atoms), widths, CUTOFF, accuracy).distant is not None
    found = differentiated(atoms, charges, widths, accuracy)
    expected = by_ewald(atoms, charges, widths)
    unit, number = accuracy * COULOMB_CONSTANT, len(atoms)
    assert abs(found[0] - expected[0]) < unit * number
    assert float((found[1] - expected[1]).square().mean().sqrt()) < 20.0 * unit
    assert float((found[2] - expected[2]).abs().max()) < 10.0 * unit * number
    assert float((found[3] - expected[3]).square().mean().sqrt()) < 20.0 * unit
    assert float(expected[1].abs().max()) > 1.0


@pytest.mark.parametrize("stretch", [(1, 1, 20), (1, 9, 9), (12, 12, 12)], ids=list(SHAPES)[::-1])
def test_a_slab_a_wire_and_a_drop_against_ewalds_sum(stretch):
    atoms = water_box(24, seed=0)
    atoms.set_cell(atoms.cell.array * np.array(stretch)[:, None])
    charges, widths = charges_and_widths(atoms)
    assert coulomb_operator(graph_of(atoms), widths, CUTOFF).distant is not None
    found, expected = differentiated(atoms, charges, widths, 1e-7), by_ewald(atoms, charges, widths)
    assert found[0] == pytest.approx(expected[0], abs=1e-7 * COULOMB_CONSTANT * len(atoms))
    assert_allclose(found[1], expected[1], atol=1e-5 * COULOMB_CONSTANT)
    assert_allclose(found[2], expected[2], atol=1e-6 * COULOMB_CONSTANT * len(atoms))


def test_forces_and_virial_are_those_of_what_is_summed():
    """Finite differences at a rough setting, at which they would differ from the exact sum's."""
    atoms = gas()
    charges, widths = charges_and_widths(atoms, 1.0)
    check_derivatives(atoms, charges, widths, 1e-4)


def test_the_screening_mesh_follows_the_atoms_too():
    atoms = gas(edge=800.0)
    mesh = screening_mesh(graph_of(atoms), torch.full((len(atoms),), 20.0).double(), 14.4)
    assert math.prod(mesh.shape) <= POINTS_PER_ATOM * len(atoms)


# --- what does not fit --------------------------------------------------------------------------


def test_pairs_are_the_same_however_they_are_searched():
    atoms = gas(edge=20.0)
    positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    reach = torch.full((len(positions),), 0.5 * 14.0**2).double()
    whole = lattice.image_pairs(positions, cell, reach)
    parts = lattice.image_pairs(positions, cell, reach, block=3000)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    distances = torch.linalg.vector_norm(lattice.pair_vectors(whole, positions, cell), dim=1)
    _, _, expected = real_space_pairs(positions, cell, 14.0)
    assert_allclose(distances.sort().values, expected.sort().values[::2], atol=1e-12)


@pytest.mark.parametrize("scripted", [False, True])
def test_more_than_memory_holds_is_a_sentence(scripted):
    check = torch.jit.script(lattice.require_room) if scripted else lattice.require_room
    check(1e9, "a matrix", 7)
    with pytest.raises(Exception, match=r"got one of 7 atoms, for which a matrix would take 80 GB"):
        check(1e10, "a matrix", 7)


@pytest.mark.parametrize("pbc", [False, True])
def test_a_matrix_that_does_not_fit(pbc):
    """Before memory is taken: of 80,000 atoms it would be 51 GB."""
    number = 80_000
    positions = 30.0 * torch.arange(number).double()[:, None] * torch.ones(3).double()
    graph = {
        fields.POSITIONS: positions,
        fields.CELL: 1e7 * torch.eye(3).double()[None],
        fields.PBC: torch.full((1, 3), pbc),
        fields.BATCH: torch.zeros(number, dtype=torch.long),
        fields.EDGE_INDEX: torch.zeros(2, 0, dtype=torch.long),
        fields.EDGE_VECTORS: torch.zeros(0, 3).double(),
    }
    widths = torch.full((number,), 0.5).double()
    with pytest.raises(UnsupportedError, match=r"80000 atoms, for which a matrix of all pairs"):
        coulomb_matrices(graph, widths)
    if not pbc:
        with pytest.raises(UnsupportedError, match="pbc=True for a cluster of very many atoms"):
            coulomb_operator(graph, widths, CUTOFF)


def test_potentials_of_a_gas_far_from_each_other_are_those_of_its_molecules():
    """27 molecules 300 Å apart hardly feel each other: each has the potential it has alone."""
    atoms = gas(edge=900.0)
    charges, widths = charges_and_widths(atoms)
    operator = coulomb_operator(graph_of(atoms), widths, CUTOFF, 1e-9)
    found = apply_operator(operator, charges)
    one = torch.tensor(atoms.positions[:3])[None]
    alone = COULOMB_CONSTANT * direct_matrix(one, widths[None, :3])[0] @ charges[:3]
    assert_allclose(found[:3], alone, atol=0.05)
