"""The wall below the closest distances of the training data."""

import numpy as np
import pytest
import torch
from ase import Atoms

from phicalc.data.graph import to_graph
from phicalc.model.contact import WALL_ENERGY, ContactRepulsion
from phicalc.train.initial import closest_distances


def pair_energy(distance: float) -> float:
    wall = ContactRepulsion([1, 8])
    wall.closest.copy_(torch.tensor([[1.3, 0.9], [0.9, 0.0]]))
    edges = torch.tensor([[1, 0], [0, 1]])
    r = torch.full((2,), distance, dtype=torch.float64)
    return float(wall(torch.tensor([0, 0]), edges, r).sum())


def test_begins_where_the_data_end_and_counts_each_pair_once():
    assert pair_energy(1.3) == 0.0
    assert pair_energy(1.17) == pytest.approx(WALL_ENERGY * 1e-4, rel=1e-5)


def test_a_pair_of_elements_never_seen_has_no_wall():
    wall = ContactRepulsion([1, 8])
    edges, r = torch.tensor([[1, 0], [0, 1]]), torch.tensor([0.3, 0.3]).double()
    assert float(wall(torch.tensor([1, 1]), edges, r).sum()) == 0.0


def test_repulsive_with_continuous_curvature():
    r = np.arange(0.7, 1.4, 1e-3)
    energy = np.array([pair_energy(x) for x in r])
    assert (np.diff(energy) <= 0).all()
    curvature = np.diff(energy, 2) / 1e-6
    assert np.abs(np.diff(curvature)).max() < 6e-3 * curvature.max()


def test_closest_distances_of_the_data():
    near = Atoms("OHH", [[0, 0, 0], [0.9, 0, 0], [0, 1.1, 0]])
    periodic = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], cell=[2.5, 9, 9], pbc=True)
    index = torch.full([119], -1)
    index[torch.tensor([1, 8])] = torch.arange(2)
    found = closest_distances([to_graph(atoms, 3.0) for atoms in (near, periodic)], index)
    expected = [[np.hypot(0.9, 1.1), 0.9], [0.9, 2.5]]
    assert found.tolist() == [pytest.approx(row) for row in expected]
