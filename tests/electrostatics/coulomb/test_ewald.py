"""Coulomb sums against Madelung constants, torch-pme, the direct sum and finite differences."""

import math

import numpy as np
import pytest
import torch
import torchpme
from ase.build import bulk, molecule
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices, direct_matrix, ewald_matrix
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT

A = 5.0  # cubic lattice constant | Å
CRYSTALS = {
    # name: (crystal, charges, nearest distance, Madelung constant: C. Kittel, Introduction to
    # Solid State Physics; Y. Sakamoto, doi:10.1063/1.1744060)
    "NaCl": (bulk("NaCl", "rocksalt", a=A), [1, -1], A / 2, 1.747564594633),
    "CsCl": (bulk("CsCl", "cesiumchloride", a=A), [1, -1], A * math.sqrt(3) / 2, 1.762674773071),
    "ZnS": (bulk("ZnS", "zincblende", a=A), [1, -1], A * math.sqrt(3) / 4, 1.638055053389),
    "CaF2": (bulk("CaF2", "fluorite", a=A), [2, -1, -1], A * math.sqrt(3) / 4, 5.038784879861),
}


def tensors(atoms):
    return torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)


def shaken_salt():
    atoms = bulk("NaCl", "rocksalt", a=A) * (2, 1, 1)
    atoms.rattle(0.2, seed=0)
    widths = torch.tensor([0.5, 1.2, 0.9, 1.7], dtype=torch.float64)
    return *tensors(atoms), widths


def random_charges(count: int, total: float = 0.0) -> torch.Tensor:
    charges = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return charges + (total - charges.sum()) / count


@pytest.mark.parametrize("split_width", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name, split_width):
    atoms, charges, distance, expected = CRYSTALS[name]
    width, q = 2.0**-6, torch.tensor(charges).double()
    matrix = ewald_matrix(*tensors(atoms), torch.full((len(q),), width).double(), split_width)
    own = float((q**2).sum()) / (2.0 * math.sqrt(math.pi) * width)
    energy = 0.5 * float(q @ matrix @ q) - own
    assert -energy * distance == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_the_split_does_not_matter(total):
    positions, cell, widths = shaken_salt()
    expected = ewald_matrix(positions, cell, widths)
    assert_allclose(expected, expected.T, atol=1e-13)
    found = ewald_matrix(positions, cell, widths, 0.6)
    assert_allclose(found, expected, atol=1e-10)
    q = random_charges(4, total)
    assert float(q @ expected @ q) > 0  # the self-energy of any charge density is positive


@pytest.mark.parametrize("total", [0.0, 1.5])
def test_point_charges_agree_with_torch_pme(total):
    """An Ewald sum of other hands; its background shifts the potential by what widths do to it."""
    positions, cell, _ = shaken_salt()
    width, smearing, q = 2.0**-7, 0.7, random_charges(4, total)
    ours = ewald_matrix(positions, cell, torch.full((4,), width).double())
    own = 1.0 / (math.sqrt(math.pi) * width)
    background = 4.0 * math.pi * width**2 / float(torch.linalg.det(cell).abs())
    expected = ours @ q - own * q - background * q.sum()
    i, j, distances = real_space_pairs(positions, cell, 6.5)
    calculator = torchpme.EwaldCalculator(
        torchpme.CoulombPotential(smearing=smearing), lr_wavelength=0.25, full_neighbor_list=True
    ).double()
    potential = calculator(q[:, None], cell, positions, torch.stack([i, j], 1), distances)
    assert_allclose(2.0 * potential[:, 0], expected, atol=1e-8)


def real_space_pairs(positions, cell, cutoff):
    """Full neighbour list by brute force."""
    reach = torch.arange(-4, 5).double()
    images = torch.cartesian_prod(reach, reach, reach) @ cell
    vectors = positions[None, :, None] + images[None, None] - positions[:, None, None]
    distances = torch.linalg.vector_norm(vectors, dim=-1)
    i, j, s = torch.nonzero((distances < cutoff) & (distances > 1e-6), as_tuple=True)
    return i, j, distances[i, j, s]


def test_a_molecule_in_a_growing_box():
    """The difference from the direct sum falls as the interaction of image dipoles, 1/L³."""
    water = molecule("H2O")
    positions, q = torch.tensor(water.positions), torch.tensor([-0.8, 0.4, 0.4]).double()
    widths = torch.tensor([0.66, 0.31, 0.31]).double()
    free = direct_matrix(positions[None], widths[None])[0]
    dipole = float(torch.linalg.vector_norm(q @ positions))
    for edge in (16.0, 24.0, 32.0):
        box = ewald_matrix(positions, edge * torch.eye(3).double(), widths)
        difference = 0.5 * float(q @ (box - free) @ q)
        # G. Makov and M. C. Payne, doi:10.1103/PhysRevB.51.4014, eq. 14: −2πp²/(3L³)
        expected = -2.0 * math.pi * dipole**2 / (3.0 * edge**3)
        assert difference == pytest.approx(expected, rel=0.05)
    assert difference == pytest.approx(expected, abs=2e-7)


def test_two_gaussian_charges():
    """erf(r/γ)/r off the diagonal, 1/(√π σ) on it, and 1/r far away."""
    positions = torch.tensor([[0.0, 0, 0], [1.25, 0, 0], [0, 40.0, 0]]).double()
    widths = torch.tensor([0.5, 0.75, 1.0]).double()
    matrix = direct_matrix(positions[None], widths[None])[0]
    expected = math.erf(1.25 / math.sqrt(2 * (0.5**2 + 0.75**2))) / 1.25
    assert float(matrix[0, 1]) == pytest.approx(expected, abs=1e-14)
    assert float(matrix[0, 2]) == pytest.approx(1 / 40.0, abs=1e-14)
    assert_allclose(matrix.diagonal(), 1.0 / (math.sqrt(math.pi) * widths), rtol=1e-14)


def test_a_batch_of_molecules_and_crystals():
    positions, cell, widths = shaken_salt()
    water = torch.tensor(molecule("H2O").positions)
    sizes = torch.full((3,), 0.6).double()
    graph = {
        fields.POSITIONS: torch.cat([water, positions]),
        fields.CELL: torch.stack([torch.zeros(3, 3).double(), cell]),
        fields.PBC: torch.tensor([[False] * 3, [True] * 3]),
        fields.BATCH: torch.tensor([0] * 3 + [1] * 4),
    }
    matrices = coulomb_matrices(graph, torch.cat([sizes, widths]))
    expected = COULOMB_CONSTANT * direct_matrix(water[None], sizes[None])[0]
    assert_allclose(matrices[0, :3, :3], expected, atol=1e-14)
    assert not matrices[0, 3].any() and not matrices[0, :, 3].any()
    assert_allclose(matrices[1], COULOMB_CONSTANT * ewald_matrix(positions, cell, widths))


@pytest.mark.parametrize("pbc", [[True, True, False], [False, False, True]])
def test_slabs_and_wires_are_refused(pbc):
    positions, cell, widths = shaken_salt()
    graph = {
        fields.POSITIONS: positions,
        fields.CELL: cell[None],
        fields.PBC: torch.tensor([pbc]),
        fields.BATCH: torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(UnsupportedError, match="slab or a wire"):
        coulomb_matrices(graph, widths)


def test_derivatives_to_second_order():
    """With respect to positions, cell and widths, against finite differences of autograd's own."""
    positions, cell, widths = shaken_salt()
    q = random_charges(4, 0.5)

    def crystal(x, h, w):
        return q @ ewald_matrix(x, h, w) @ q

    def cluster(x, w):
        return q @ direct_matrix(x[None], w[None])[0] @ q

    for function, inputs in ((crystal, (positions, cell, widths)), (cluster, (positions, widths))):
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-6, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, eps=1e-5, atol=1e-5, fast_mode=True)


def test_any_image_of_an_atom():
    positions, cell, widths = shaken_salt()
    images = np.random.default_rng(0).integers(-3, 4, (4, 3))
    moved = positions + torch.tensor(images).double() @ cell
    assert_allclose(ewald_matrix(moved, cell, widths), ewald_matrix(positions, cell, widths))
