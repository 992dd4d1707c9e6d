"""The wall below the closest distances of the training data."""

import numpy as np
import pytest
import torch
from ase import Atoms

from phicalc.data.graph import to_graph
from phicalc.model.contact import BEGIN, FADE, WALL_ENERGY, Contact
from phicalc.train.initial import closest_distances

PAIR = torch.tensor([[1, 0], [0, 1]])


def contact() -> Contact:
    """Of H and O, in data where no two oxygens ever met."""
    made = Contact([1, 8], 4.0)
    made.closest.copy_(torch.tensor([[1.3, 0.9], [0.9, 0.0]], dtype=torch.float64))
    return made


def along_x(*distances: float) -> torch.Tensor:
    """Edge vectors (E, 3)."""
    x = torch.tensor(distances, dtype=torch.float64)
    return torch.stack([x, 0 * x, 0 * x], 1)


def pair_energy(distance: float, species: int = 0) -> float:
    index = torch.full((2,), species)
    depths = contact().depths(index, PAIR, along_x(distance, -distance))
    return float(contact().wall(depths, PAIR, 2).sum())


def pair_gate(distance: float) -> float:
    index = torch.zeros(2, dtype=torch.int64)
    depths = contact().depths(index, PAIR, along_x(distance, -distance))
    gates = contact().edge_gates(depths, PAIR, 2)
    assert gates[0] == gates[1]
    return float(gates[0])


@pytest.mark.parametrize(
    ("at_300", "at_1200"), [(1.562, 1.400), (1.268, 1.199), (0.981, 0.943), (1.313, 1.275)]
)
def test_a_hotter_run_does_not_meet_it(at_300, at_1200):
    """H–H, C–N, C–H and C–C of 3BPA: the closest of 450 structures, and of 65 hotter ones | Å."""
    assert at_300 * BEGIN < at_1200 - 0.04


def test_begins_at_its_distance_and_counts_each_pair_once():
    assert pair_energy(1.3) == 0.0
    assert pair_energy(1.17) == pytest.approx(WALL_ENERGY * 1e-4, rel=1e-5)


def test_two_elements_that_never_met_repel_within_half_a_bond():
    """O–O: half the sum of the covalent radii, 0.66 Å each."""
    assert pair_energy(0.6600001, species=1) == 0.0
    assert pair_energy(0.594, species=1) == pytest.approx(WALL_ENERGY * 1e-4, rel=1e-5)


def test_no_reach_beyond_the_cutoff():
    short = Contact([55], 1.5)
    depths = short.depths(torch.zeros(2, dtype=torch.int64), PAIR, along_x(1.5, -1.5))
    assert not depths.any()


def test_an_edge_is_whole_in_the_data_and_gone_where_the_fade_ends():
    assert pair_gate(1.3) == 1.0
    assert 0.0 < pair_gate(1.3 * (1 - FADE / 2)) < 1.0
    assert pair_gate(1.3 * (1 - FADE)) == pytest.approx(0.0, abs=1e-60)
    assert pair_gate(0.01) == 0.0


def test_a_crowd_of_neighbours_fades_an_atom_sooner():
    """Two at a depth where one alone leaves something of an atom; its other edges fade with it."""
    edges = torch.tensor([[1, 0, 2, 0, 3, 0], [0, 1, 0, 2, 0, 3]])
    depth = 0.86 * FADE  # 0.86⁴ = 0.547, twice that is more than 1
    near, far = 1.3 * (1 - depth), 2.0
    index = torch.zeros(4, dtype=torch.int64)
    one = contact().depths(index, edges, along_x(near, -near, -far, far, far, -far))
    two = contact().depths(index, edges, along_x(near, -near, -near, near, far, -far))
    left = (1 - 0.86**4) ** 4
    expected = [left**2, left**2, left, left, left, left]
    assert contact().edge_gates(one, edges, 4).tolist() == pytest.approx(expected, rel=1e-9)
    assert not contact().edge_gates(two, edges, 4).any()


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


def test_the_fade_has_three_continuous_derivatives():
    """Third differences across both of its ends stay as small as the step times the fourth."""
    step = 1e-3
    for end in (1.3, 1.3 * (1 - FADE)):
        gates = np.array([pair_gate(end + k * step) for k in range(-6, 7)])
        third = np.diff(gates, 3) / step**3
        inner = [pair_gate(1.3 * (1 - FADE / 2) + k * step) for k in range(-6, 7)]
        assert np.abs(third).max() < 0.1 * np.abs(np.diff(inner, 3)).max() / step**3
