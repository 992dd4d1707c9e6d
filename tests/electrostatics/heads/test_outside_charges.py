"""Charge equilibration against a program of other hands: the EEQ model of tad-multicharge.

Its matrix is ours (doi:10.1063/1.5090222): Gaussian charges of radius a = √2 σ and a hardness. So
its electronegativities, hardnesses and radii must give its charges, energies and gradients. It
knows molecules alone, in Hartree and Bohr.
"""

import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from numpy.testing import assert_allclose
from tad_mctc.io.structure import Structure
from tad_multicharge import eeq

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices
from phicalc.electrostatics.coulomb.operator import coulomb_of
from phicalc.electrostatics.coulomb.particle_mesh import ACCURACY
from phicalc.electrostatics.solvers.charges import equilibrate, equilibrate_iteratively

CUTOFF = 5.0


def cluster() -> Atoms:
    """Seventy-two ions of shaken rock salt."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (1, 3, 3)
    atoms.pbc = False
    atoms.rattle(0.1, seed=1)
    return atoms


STRUCTURES = {
    "water": molecule("H2O"),
    "ethanol": molecule("CH3CH2OH"),
    "lithium fluoride": molecule("LiF"),
    "silane and chlorine": molecule("SiH4") + Atoms("Cl2", [[4.0, 0.3, 0.0], [6.0, 0.0, 0.2]]),
    "salt": cluster(),
}


@pytest.fixture(params=STRUCTURES)
def atoms(request) -> Atoms:
    return STRUCTURES[request.param]


@pytest.fixture(params=[0.0, 1.0, -2.0], ids=["neutral", "+1", "-2"])
def total(request) -> float:
    return request.param


@pytest.fixture
def theirs(atoms, total):
    """Charges | e, energy | eV and its gradient | eV/Å, at fixed coordination numbers."""
    positions = torch.tensor(atoms.positions / units.Bohr).requires_grad_()
    structure = Structure(
        numbers=torch.tensor(atoms.numbers),
        positions=positions,
        charge=torch.tensor(total).double(),
    )
    model = eeq.EEQModel.param2019(dtype=torch.float64)
    coordination = model.cn(structure).detach()
    charges, energies = model.solve(structure, coordination, return_energy=True)
    (gradient,) = torch.autograd.grad(energies.sum(), positions)
    index = structure.numbers
    electronegativity = model.chi[index] - model.kcn[index] * coordination.sqrt()
    return {
        "electronegativity": units.Hartree * electronegativity,
        "hardness": units.Hartree * model.eta[index],
        "widths": units.Bohr * model.rad[index] / 2.0**0.5,
        "charges": charges.detach(),
        "energy": units.Hartree * float(energies.sum().detach()),
        "gradient": units.Hartree / units.Bohr * gradient,
    }


def graph_of(atoms: Atoms) -> dict[str, torch.Tensor]:
    graph = graph_dict(collate([to_graph(atoms, CUTOFF)]))
    graph[fields.POSITIONS].requires_grad_()
    return graph


def compare(charges, interaction, graph, theirs) -> None:
    """Charges to 1e-9 e, energies to 1e-9 eV per atom, gradients to 1e-8 eV/Å."""
    assert_allclose(charges, theirs["charges"], rtol=0, atol=1e-9)
    chi, hardness = theirs["electronegativity"], theirs["hardness"]
    energy = (charges * (chi + 0.5 * hardness * charges)).sum() + interaction
    (gradient,) = torch.autograd.grad(energy, graph[fields.POSITIONS])
    assert float(energy.detach()) == pytest.approx(theirs["energy"], abs=1e-9 * len(charges))
    assert_allclose(gradient, theirs["gradient"], rtol=0, atol=1e-8)
    assert float(gradient.abs().max()) > 0.01  # there is something to compare


def test_solved_by_matrices(atoms, total, theirs):
    graph = graph_of(atoms)
    matrix = coulomb_matrices(graph, theirs["widths"])
    kernel = matrix.detach() + torch.diag(theirs["hardness"])
    sum_to = torch.tensor([total], dtype=torch.float64)
    charges = equilibrate(theirs["electronegativity"][None], kernel, sum_to)[0]
    compare(charges, 0.5 * charges @ matrix[0] @ charges, graph, theirs)


def test_solved_by_iterations(atoms, total, theirs):
    graph = graph_of(atoms)
    coulomb = coulomb_of(graph, theirs["widths"], CUTOFF, ACCURACY, 0, False)
    sum_to = torch.tensor([total], dtype=torch.float64)
    charges, _, residual = equilibrate_iteratively(
        theirs["electronegativity"], theirs["hardness"], coulomb, sum_to, tolerance=1e-13
    )
    assert residual < 1e-12
    compare(charges, coulomb.energies(charges).sum(), graph, theirs)
