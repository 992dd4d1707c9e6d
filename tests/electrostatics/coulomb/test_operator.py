"""Coulomb sums on a mesh: Madelung constants, Ewald's sum, torch-pme, finite differences."""

import math

import numpy as np
import pytest
import torch
import torchpme
from ase import Atoms
from ase.build import bulk, molecule
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.coulomb.ewald import direct_matrix, ewald_matrix
from phicalc.electrostatics.coulomb.mesh import is_smooth, mesh_rule, mesh_size, spreading
from phicalc.electrostatics.coulomb.operator import coulomb_of
from phicalc.electrostatics.coulomb.particle_mesh import (
    ACCURACY,
    apply_operator,
    coulomb_energies,
    coulomb_operator,
)
from phicalc.electrostatics.solvers.charges import (
    equilibrate,
    equilibrate_iteratively,
    precondition,
    screening_mesh,
)
from phicalc.errors import UnsupportedError
from phicalc.units import COULOMB_CONSTANT
from tests.electrostatics.coulomb.test_ewald import CRYSTALS, random_charges, real_space_pairs

CUTOFF = 5.0
NARROW, WIDE = {8: 0.66, 1: 0.31}, {8: 1.3, 1: 0.31}  # one mesh, a mesh for each element


def graph_of(atoms, cutoff=CUTOFF):
    return graph_dict(collate([to_graph(atoms, cutoff)]))


def tilted_water(molecules=24):
    """Water in a cell without right angles, shaken."""
    atoms = water_box(molecules, seed=0)
    edge = atoms.cell[0, 0]
    atoms.set_cell([[edge, 0, 0], [1.5, edge, 0], [-1.0, 0.7, 1.1 * edge]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def widths_of(atoms, table):
    return torch.tensor([table[z] for z in atoms.numbers]).double()


def differentiated(atoms, charges, widths, accuracy, cutoff=CUTOFF):
    """Energy, forces, virial of ½ qᵀAq on the mesh, and dE/dq."""
    graph = graph_of(atoms, cutoff)
    names = (fields.EDGE_VECTORS, fields.POSITIONS, fields.CELL)
    graph.update({name: graph[name].clone().requires_grad_() for name in names})
    charges = charges.clone().requires_grad_()
    operator = coulomb_operator(graph, widths, cutoff, accuracy)
    energy = coulomb_energies(operator, charges, graph).sum()
    inputs = [graph[name] for name in names]
    gradients = torch.autograd.grad(
        energy, [*inputs, charges], allow_unused=True, materialize_grads=True
    )
    edges, positions, cell, potential = (gradient.detach() for gradient in gradients)
    forces = -positions.index_add(0, graph[fields.EDGE_INDEX][0], edges)
    forces = forces.index_add(0, graph[fields.EDGE_INDEX][1], edges)
    virial = sum(
        x.detach().flatten(0, -2).T @ g.flatten(0, -2)
        for x, g in zip(inputs, (edges, positions, cell), strict=True)
    )
    return float(energy.detach()), forces, virial, potential


def by_ewald(atoms, charges, widths):
    positions = torch.tensor(atoms.positions).requires_grad_()
    cell = torch.tensor(atoms.cell.array).requires_grad_()
    matrix = COULOMB_CONSTANT * ewald_matrix(positions, cell, widths)
    energy = 0.5 * charges @ matrix @ charges
    forces, strain = torch.autograd.grad(energy, (positions, cell))
    virial = positions.detach().T @ forces + cell.detach().T @ strain
    return float(energy.detach()), -forces, virial, matrix.detach() @ charges


@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name):
    """At a tight setting; the charges are narrow enough to be points to one another."""
    atoms, charges, distance, expected = CRYSTALS[name]
    width, q = 0.1875, torch.tensor(charges).double()
    operator = coulomb_operator(graph_of(atoms), torch.full((len(q),), width).double(), 5.0, 1e-10)
    own = float((q**2).sum()) / (2.0 * math.sqrt(math.pi) * width)
    energy = 0.5 * float(q @ apply_operator(operator, q)) / COULOMB_CONSTANT - own
    assert -energy * distance == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("accuracy", [1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("table", [NARROW, WIDE])
@pytest.mark.parametrize("total", [0.0, 2.0])
def test_the_stated_error_against_ewalds_sum(accuracy, table, total):
    """Energy, forces, virial and potential; any widths, any total charge, no right angles."""
    atoms = tilted_water()
    widths, number = widths_of(atoms, table), len(atoms)
    charges = torch.tensor(np.where(atoms.numbers == 8, -0.8, 0.4)) + total / number
    charges = charges + 0.1 * random_charges(number)
    found = differentiated(atoms, charges, widths, accuracy)
    expected = by_ewald(atoms, charges, widths)
    unit = accuracy * COULOMB_CONSTANT
    assert abs(found[0] - expected[0]) < unit * number
    assert float((found[1] - expected[1]).square().mean().sqrt()) < 20.0 * unit
    assert float((found[2] - expected[2]).abs().max()) < 10.0 * unit * number
    assert float((found[3] - expected[3]).square().mean().sqrt()) < 20.0 * unit
    assert float(expected[1].abs().max()) > 1.0


def test_two_images_of_one_cell():
    """A supercell of another mesh has twice the energy and the same forces."""
    atoms = tilted_water(8)
    charges, widths = random_charges(len(atoms), 0.5), widths_of(atoms, NARROW)
    one = differentiated(atoms, charges, widths, 1e-9)
    two = differentiated(atoms * (1, 2, 1), charges.repeat(2), widths.repeat(2), 1e-9)
    assert two[0] == pytest.approx(2.0 * one[0], abs=1e-7)
    assert_allclose(two[1], one[1].repeat(2, 1), atol=1e-6)


def check_derivatives(atoms, charges, widths, accuracy):
    """Forces and virial of a Coulomb sum against central differences of its energy."""

    def energy(structure):
        return differentiated(structure, charges, widths, accuracy)[0]

    _, forces, virial, _ = differentiated(atoms, charges, widths, accuracy)
    step = 1e-4
    for atom, axis in ((0, 0), (7, 1), (20, 2)):
        values = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            values.append(energy(moved))
        numerical = -(values[0] - values[1]) / (2 * step)
        assert float(forces[atom, axis]) == pytest.approx(numerical, abs=1e-6)
    for a, b in ((0, 0), (1, 2)):
        values = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            values.append(energy(moved))
        numerical = (values[0] - values[1]) / (2 * step)
        assert float(virial[a, b]) == pytest.approx(numerical, abs=2e-5)  # of about 30 eV


@pytest.mark.parametrize("accuracy", [1e-4, 1e-7])
def test_forces_and_virial_are_those_of_what_is_summed(accuracy):
    """Finite differences through mesh and pairs, however rough the setting."""
    atoms = tilted_water(16)
    charges, widths = random_charges(len(atoms), 1.0), widths_of(atoms, WIDE)
    check_derivatives(atoms, charges, widths, accuracy)


def test_smooth_across_mesh_points_and_the_cutoff():
    """An atom dragged over 3 Å: energy differences are the integral of its force, step by step."""
    atoms = tilted_water(16)
    charges, widths = random_charges(len(atoms)), widths_of(atoms, NARROW)
    direction = np.array([0.6, 0.64, 0.48])
    step, energies, forces = 0.005, [], []
    for _ in range(41):
        energy, force, _, _ = differentiated(atoms, charges, widths, 1e-5)
        energies.append(energy)
        forces.append(float(force[0] @ torch.tensor(direction)))
        atoms.positions[0] += step * direction
    energies, forces = np.array(energies), np.array(forces)
    simpson = -(step / 3.0) * (forces[:-2:2] + 4.0 * forces[1:-1:2] + forces[2::2])
    assert_allclose(np.diff(energies[::2]), simpson, atol=1e-7)
    assert np.abs(np.diff(forces, 2)).max() < 1e-2  # and the force has no corners


def test_point_charges_agree_with_torch_pme():
    """A particle mesh of other hands, at the accuracy it can reach."""
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True)
    atoms.rattle(0.2, seed=0)
    width, q = 0.1875, random_charges(8)
    operator = coulomb_operator(graph_of(atoms), torch.full((8,), width).double(), 5.0, 1e-9)
    own = 1.0 / (math.sqrt(math.pi) * width)
    ours = apply_operator(operator, q) / COULOMB_CONSTANT - own * q
    positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    i, j, distances = real_space_pairs(positions, cell, 6.5)
    calculator = torchpme.PMECalculator(
        torchpme.CoulombPotential(smearing=0.9),
        mesh_spacing=0.1,
        interpolation_nodes=7,
        full_neighbor_list=True,
    ).double()
    potential = calculator(q[:, None], cell, positions, torch.stack([i, j], 1), distances)
    assert_allclose(2.0 * potential[:, 0], ours, atol=1e-5)


def test_a_molecule_in_a_growing_box():
    """The difference from the direct sum falls as 1/L³ (doi:10.1103/PhysRevB.51.4014)."""
    water = molecule("H2O")
    q = torch.tensor([-0.8, 0.4, 0.4]).double()
    widths = widths_of(water, NARROW)
    free = direct_matrix(torch.tensor(water.positions)[None], widths[None])[0]
    dipole = float(torch.linalg.vector_norm(q @ torch.tensor(water.positions)))
    for edge in (16.0, 24.0):
        water.set_cell([edge] * 3)
        water.pbc = True
        operator = coulomb_operator(graph_of(water), widths, CUTOFF, 1e-9)
        box = 0.5 * float(q @ apply_operator(operator, q)) / COULOMB_CONSTANT
        expected = -2.0 * math.pi * dipole**2 / (3.0 * edge**3)
        assert box - 0.5 * float(q @ free @ q) == pytest.approx(expected, rel=0.05)


def test_a_large_molecule_is_summed_directly():
    atoms = molecule("C6H6")
    widths, q = torch.full((12,), 0.5).double(), random_charges(12, 1.0)
    found = differentiated(atoms, q, widths, 1e-7)
    positions = torch.tensor(atoms.positions).requires_grad_()
    matrix = COULOMB_CONSTANT * direct_matrix(positions[None], widths[None])[0]
    energy = 0.5 * q @ matrix @ q
    (gradient,) = torch.autograd.grad(energy, positions)
    assert found[0] == pytest.approx(float(energy.detach()), abs=1e-12)
    assert_allclose(found[1], -gradient, atol=1e-12)
    assert_allclose(found[3], matrix.detach() @ q, atol=1e-12)


def test_the_coupling_of_two_sets_of_charges():
    """Its derivative with respect to one set is the potential of the other."""
    atoms = tilted_water(8)
    first, second = random_charges(24, 1.0), random_charges(24).flip(0).requires_grad_()
    graph = graph_of(atoms)
    coulomb = coulomb_of(graph, widths_of(atoms, NARROW), CUTOFF, ACCURACY, 0, False)
    energy = coulomb.coupling(first, second).sum()
    potential = coulomb.apply(first)
    assert float(energy.detach()) == pytest.approx(float(second.detach() @ potential), abs=1e-10)
    (found,) = torch.autograd.grad(energy, second)
    assert_allclose(found, potential, atol=1e-10)


def test_a_slab_is_refused():
    atoms = tilted_water(4)
    atoms.pbc = [True, True, False]
    with pytest.raises(UnsupportedError, match="slab or a wire"):
        coulomb_operator(graph_of(atoms), widths_of(atoms, NARROW), CUTOFF)


def medium(name):
    """Water, a slab of water in vacuum, a drop of it."""
    atoms = water_box(24, seed=0)
    stretch = {"liquid": [1, 1, 1], "slab": [1, 1, 3], "drop": [1.8, 1.8, 1.8]}[name]
    atoms.set_cell(atoms.cell.array * np.array(stretch))
    return atoms


@pytest.mark.parametrize("name", ["liquid", "slab", "drop"])
@pytest.mark.parametrize("total", [0.0, 1.0])
def test_equilibration_with_and_without_screening(name, total):
    """The preconditioner is positive definite, and the charges are those of the dense solve."""
    atoms = medium(name)
    graph, widths = graph_of(atoms), widths_of(atoms, NARROW)
    number, hardness = len(atoms), torch.full((len(atoms),), 10.0).double()
    chi = torch.tensor(np.where(atoms.numbers == 8, 3.44, 2.2)) + 0.1 * random_charges(number)
    coulomb = coulomb_of(graph, widths, CUTOFF, 1e-10, 0, False)
    diagonal = hardness + coulomb.diagonal()
    screening = screening_mesh(graph, diagonal)
    columns = [precondition(screening, diagonal, unit) for unit in torch.eye(number).double()]
    assert float(torch.linalg.eigvalsh(torch.stack(columns)).min()) > 0
    kernel = COULOMB_CONSTANT * ewald_matrix(
        torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), widths
    )
    charge = torch.tensor([total]).double()
    expected = equilibrate(chi[None], (kernel + torch.diag(hardness))[None], charge)[0]
    arguments = (chi, hardness, coulomb, charge)
    counts = []
    for mesh, guess in ((None, None), (screening, None), (screening, expected + 1e-4)):
        found, iterations, residual = equilibrate_iteratively(*arguments, mesh, guess, 1e-10)
        assert_allclose(found, expected, atol=1e-8)
        assert float(found.sum()) == pytest.approx(total, abs=1e-12)
        assert residual < 1e-10
        counts.append(iterations)
    assert counts[1] < counts[0]


def test_too_much_screening_is_noticed():
    """A preconditioner that is not positive definite is left, and the charges are right."""
    atoms = medium("drop")
    graph, widths = graph_of(atoms), widths_of(atoms, NARROW)
    hardness = torch.full((len(atoms),), 10.0).double()
    chi = torch.tensor(np.where(atoms.numbers == 8, 3.44, 2.2))
    coulomb = coulomb_of(graph, widths, CUTOFF, ACCURACY, 0, False)
    screening = screening_mesh(graph, hardness + coulomb.diagonal())
    arguments = (chi, hardness, coulomb, torch.zeros(1).double())
    expected, _, _ = equilibrate_iteratively(*arguments, None)
    screening.kernel.mul_(20.0)
    found, _, residual = equilibrate_iteratively(*arguments, screening)
    assert residual < 1e-8
    assert_allclose(found, expected, atol=1e-7)


def test_charges_that_hardly_vary_are_solved_at_once():
    """A perfect crystal of one element: no charges, no iterations on rounding errors."""
    atoms = bulk("Al", cubic=True) * (2, 2, 2)
    hardness = torch.full((32,), 10.0).double()
    widths = torch.full((32,), 1.2).double()
    coulomb = coulomb_of(graph_of(atoms), widths, CUTOFF, ACCURACY, 0, False)
    chi = 1.61 + 1e-13 * random_charges(32)
    found, iterations, _ = equilibrate_iteratively(chi, hardness, coulomb, torch.zeros(1).double())
    assert iterations == 0 and float(found.abs().max()) < 1e-10


def test_the_rule_and_the_sizes_of_meshes():
    rule = mesh_rule(1e-7, 5.0)
    assert math.erfc(2.5 / rule.split_width) == pytest.approx(1e-7, rel=0.2)
    assert rule.order == 8 and 0.4 < rule.spacing < 0.6
    assert [mesh_size(length, 0.5) for length in (0.1, 5.2, 16.0, 16.5)] == [4, 12, 32, 36]
    assert not is_smooth(14) and is_smooth(60)
    z = torch.linspace(-1.26, 1.26, 25).double().requires_grad_()
    value, slope = spreading(z, 15.0)
    (expected,) = torch.autograd.grad(value.sum(), z)
    assert_allclose(slope.detach(), expected, atol=1e-12)
    assert_allclose(value[[0, 12]].detach(), [0.0, 1.0], atol=1e-14)


def test_atoms_far_outside_the_cell():
    atoms = tilted_water(8)
    charges, widths = random_charges(len(atoms)), widths_of(atoms, NARROW)
    expected = differentiated(atoms, charges, widths, 1e-7)
    images = np.random.default_rng(0).integers(-3, 4, (len(atoms), 3))
    moved = Atoms(atoms)
    moved.positions += images @ atoms.cell.array
    found = differentiated(moved, charges, widths, 1e-7)
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    assert_allclose(found[1], expected[1], atol=1e-9)
    assert_allclose(found[2], expected[2], atol=1e-8)
