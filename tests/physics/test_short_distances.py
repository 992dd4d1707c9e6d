"""Atoms closer than any in the training data: a lower bound of the energy, and repulsion.

With random weights, and with ten times as large ones, of every backbone and head.
"""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.model.contact import FADE
from phicalc.nn.saturation import FEATURE_LIMIT
from phicalc.train.initial import closest_distances
from tests.physics.models import CUTOFF, energy, evaluate, make_model
from tests.physics.test_derivatives import numerical_forces, numerical_stress

CLOSEST = 1.05
"""Å; of all pairs of elements in these models."""

REPULSION = ("energy_zbl", "energy_contact")


def squeezed(distance: float, pbc: bool = False) -> Atoms:
    """Six atoms with edges among them, the first two of which are at a given distance."""
    sites = [[0, 0, 0], [0, 0, 0], [1.4, 0, 0], [0, 1.6, 0], [-1.2, -1.2, 0.3], [0.4, -1.0, 1.5]]
    atoms = Atoms("OHClNaCH", sites, cell=[5.0, 5.5, 6.0], pbc=pbc)
    atoms.positions[1] = distance * np.array([0.3, 0.3, -np.sqrt(0.82)])
    return atoms


def learned_energy(model, atoms: Atoms) -> float:
    """Network and heads: all but the references and what is repulsive by construction | eV."""
    output = evaluate(model, atoms)
    terms = {name: float(value) for name, value in output.items() if name.startswith("energy_")}
    apart = (*REPULSION, "energy_reference")
    return sum(value for name, value in terms.items() if name not in apart)


def last_features(potential, atoms: Atoms) -> torch.Tensor:
    """Features of the last message step, (N, F)."""
    graph = graph_dict(collate([to_graph(atoms, CUTOFF)]))
    index = potential.species_index[graph[fields.SPECIES]]
    edges = graph[fields.EDGE_INDEX]
    depths = potential.contact.depths(index, edges, graph[fields.EDGE_VECTORS])
    gates = potential.contact.edge_gates(depths, edges, len(atoms))
    return potential.features(index, graph, gates)[-1].detach()


@pytest.fixture(scope="module", params=[1.0, 10.0], ids=["weights", "large weights"])
def any_model(names, request):
    """Each model in float64, all its parameters times one number."""
    model = make_model(*names, "float64")
    with torch.no_grad():
        for parameter in model.potential.parameters():
            parameter.mul_(request.param)
    return model


@pytest.mark.parametrize("met", [True, False], ids=["met in training", "never met"])
def test_energy_has_a_lower_bound_at_any_distance(any_model, met):
    """Below the fade the energy takes on its limit, that of atoms on one spot: no hole is left."""
    model = any_model
    if not met:
        model = copy.deepcopy(any_model)
        model.potential.contact.closest.zero_()
    begin = CLOSEST if met else 0.5 * (0.31 + 0.66)  # half the covalent radii of O–H
    bounds = begin * (1 - FADE) * np.array([0.95, 1.0])
    bound = [learned_energy(model, squeezed(r)) for r in bounds]
    scale = max(1.0, np.abs(bound).max())
    for distance in np.geomspace(0.01, begin * (1 - FADE), 6):
        assert learned_energy(model, squeezed(distance)) > min(bound) - 0.5 * scale


def test_what_overlaps_is_alone_to_the_network(any_model):
    """Its features are those of a lonely atom, and its neighbours' those without it."""
    potential = any_model.potential
    atoms = squeezed(0.2)
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    found = last_features(potential, atoms)
    assert_allclose(found[:1], last_features(potential, atoms[:1]), **tolerance)
    assert_allclose(found[1:2], last_features(potential, atoms[1:2]), **tolerance)
    assert_allclose(found[2:], last_features(potential, atoms[2:]), **tolerance)


def test_features_are_bounded_however_atoms_are_packed(any_model):
    """A crystal with every atom 1.06 Å from twelve others, which fills the cutoff."""
    packed = bulk("Na", "fcc", a=1.06 * np.sqrt(2), cubic=True).repeat(2)
    packed.numbers[::3], packed.numbers[::5] = 8, 1
    found = last_features(any_model.potential, packed)
    assert found.square().mean(1).sqrt().max() < 2.000001 * FEATURE_LIMIT
    assert evaluate(any_model, packed)[fields.ENERGY].isfinite().all()


def test_a_heap_of_atoms_is_many_lonely_atoms(any_model):
    """However many lie within half an ångström, the network knows each by itself."""
    generator = np.random.default_rng(3)
    heap = Atoms("OHClNaC" * 6, generator.uniform(0, 0.5, (30, 3)))
    alone = [float(evaluate(any_model, Atoms([z]))["energy_network"]) for z in heap.numbers]
    output = evaluate(any_model, heap)
    assert float(output["energy_network"]) == pytest.approx(sum(alone), rel=1e-9)
    assert output[fields.ENERGY].isfinite().all()


def test_repulsion_wins(exact_model):
    """Energies rise all the way from half the closest distance to one spot."""
    distances = [0.5 * CLOSEST, 0.2, 0.1, 0.05, 0.02, 0.01]
    energies = [energy(exact_model, squeezed(r)) for r in distances]
    assert (np.diff(energies) > 0).all()
    assert energies[0] > energy(exact_model, squeezed(CLOSEST)) + 50.0
    assert energies[-1] - energies[0] > 1e4


@pytest.mark.parametrize("depth", [0.12, 0.18])
def test_forces_and_stress_through_the_fade(exact_model, depth):
    atoms = squeezed(CLOSEST * (1 - depth), exact_model.potential.needs_positions)
    atoms.positions[2] *= 1.0 / 1.4 * 0.96  # a second pair within the fade, O–Cl
    forces = evaluate(exact_model, atoms)[fields.FORCES].numpy()
    expected = numerical_forces(exact_model, atoms, [0, 2])
    assert_allclose(forces[[0, 2]], expected, rtol=1e-6, atol=2e-6)
    if depth == 0.18 and atoms.pbc.all():
        stress = evaluate(exact_model, atoms)[fields.STRESS][0].numpy()
        assert_allclose(stress, numerical_stress(exact_model, atoms), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("end", [CLOSEST, CLOSEST * (1 - FADE)], ids=["begins", "is complete"])
def test_smooth_where_the_fade(exact_model, end):
    """Slopes of the force on both sides agree, with another neighbour within the fade besides."""

    def force(distance: float) -> float:
        atoms = squeezed(distance)
        atoms.positions[2] *= 1.0 / 1.4 * 0.93
        direction = (atoms.positions[1] - atoms.positions[0]) / distance
        return float(evaluate(exact_model, atoms)[fields.FORCES][1].numpy() @ direction)

    step = 2e-4
    before, at, after = (force(end + k * step) for k in (-1, 0, 1))
    assert (at - before) / step == pytest.approx((after - at) / step, rel=5e-3, abs=0.05)


def test_nothing_changes_in_the_training_data(model, atoms):
    """Down to the closest distances of the data every number is the same to the bit."""
    changed = copy.deepcopy(model)
    contact = changed.potential.contact
    contact.closest.copy_(
        closest_distances([to_graph(atoms, CUTOFF)], changed.potential.species_index)
    )
    contact.unseen.fill_(1e-3)
    found = evaluate(changed, atoms)
    assert float(found["energy_contact"]) == 0.0
    contact.closest.fill_(1e-3)
    for name, value in evaluate(changed, atoms).items():
        assert torch.equal(found[name], value), name
