"""The neighbour list for devices against the one for the CPU, and how often it is looked at."""

import numpy as np
import pytest
import torch

from phicalc.data import neighbours
from phicalc.data.cell_list import half_pairs
from phicalc.data.device_neighbours import DeviceNeighbourList, DeviceNeighbours
from phicalc.data.lattice import periodic_frame, reduction
from phicalc.data.neighbours import NeighbourList, Neighbours
from phicalc.errors import ConfigError, StructureError
from tests.accelerator import DEVICE, Accelerator
from tests.data.test_neighbours import CUTOFF, SKIN, STRUCTURES, structure


def assert_same(found: DeviceNeighbours, expected: Neighbours) -> None:
    """The same edges in the same order, with the same vectors to the bit."""
    assert torch.equal(found.edge_index, expected.edge_index)
    assert torch.equal(found.edge_vectors, expected.edge_vectors)
    assert found.closest_distance == expected.closest_distance
    assert set(found.closest_pair) == set(expected.closest_pair)


def random_lattice(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms anywhere, in a cell of any shape, also far smaller than the cutoff, and any pbc."""
    while True:
        pbc = rng.random(3) < rng.random()
        cell = rng.normal(size=(3, 3)) * rng.uniform(1, 8)
        if not pbc.any() or np.linalg.svd(cell[pbc], compute_uv=False)[-1] > 0.8:
            break
    return rng.normal(size=(rng.integers(1, 40), 3)) * rng.uniform(1, 10), cell, pbc


def unordered(receivers, senders, shifts) -> set[tuple[int, ...]]:
    """Pairs, of which an atom's own images may stand for S or −S."""
    pairs = zip(receivers.tolist(), senders.tolist(), map(tuple, shifts.tolist()), strict=True)
    return {
        (i, j, *(max(shift, tuple(-s for s in shift)) if i == j else shift))
        for i, j, shift in pairs
    }


def test_the_search_finds_the_pairs_of_matscipy() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(150):
        positions, cell, pbc = random_lattice(rng)
        radius = rng.uniform(2, 5)
        expected = neighbours._half_pairs(positions, cell, pbc, radius)
        operation = reduction(cell, pbc)
        operation = np.eye(3, dtype=int) if operation is None else operation
        frame = periodic_frame(operation @ cell, pbc)
        i, j, shifts = half_pairs(torch.from_numpy(positions), frame, pbc, radius + 1e-6)
        found = unordered(i, j, shifts.numpy() @ operation)
        assert len(found) == len(i), "a pair was found twice"
        assert found == unordered(*expected)
        assert (i <= j).all()
        kinds.add(int(pbc.sum()))
    assert kinds == {0, 1, 2, 3}


def test_the_search_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    positions, cell, pbc, _ = structure("skewed")
    whole = half_pairs(torch.from_numpy(positions), cell, pbc, 5.0)
    monkeypatch.setattr("phicalc.data.cell_list.BLOCK", 1)
    parts = half_pairs(torch.from_numpy(positions), cell, pbc, 5.0)
    assert unordered(*whole) == unordered(*parts)


def test_two_molecules_far_apart_cost_no_empty_bins() -> None:
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [1e9, 1e9, 0], [1e9 + 1, 1e9, 0]])
    pairs = half_pairs(torch.from_numpy(positions), np.eye(3), np.zeros(3, bool), 3.0)
    assert unordered(*pairs) == {(0, 1, 0, 0, 0), (2, 3, 0, 0, 0)}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_walk_is_that_of_the_list_on_the_cpu(name: str) -> None:
    """Random walk with wrapping, unwrapping and a breathing, shearing, turning cell."""
    rng = np.random.default_rng(1)
    positions, cell, pbc, _ = structure(name)
    here, there = NeighbourList(CUTOFF, SKIN), DeviceNeighbourList(CUTOFF, SKIN)
    for step in range(40):
        strain = np.eye(3) + rng.normal(0, 0.002, (3, 3))
        cell, positions = cell @ strain, positions @ strain + rng.normal(0, 0.03, positions.shape)
        if step % 3 == 0:
            positions = positions + (rng.integers(-2, 3, positions.shape) * pbc) @ cell
        expected = here.update(positions, cell, pbc)
        found = there.update(torch.from_numpy(positions.copy()), cell, pbc)
        assert_same(found, expected)
        sizes = torch.bincount(expected.edge_index[1], minlength=len(positions))
        assert torch.equal(found.counts, sizes.sort()[0])
    assert (there.rebuilds, there.updates) == (here.rebuilds, here.updates)
    assert there.rebuilds < 25


def test_atoms_without_neighbours() -> None:
    for positions in (np.zeros((1, 3)), np.array([[0.0, 0, 0], [50, 0, 0]])):
        found = DeviceNeighbourList(CUTOFF, SKIN).update(
            torch.from_numpy(positions), np.zeros((3, 3)), np.zeros(3, bool)
        )
        assert found.edge_index.shape == (2, 0)
        assert found.edge_vectors.shape == (0, 3)
        assert (found.closest_distance, found.closest_pair) == (float("inf"), (-1, -1))


def test_errors_are_those_of_the_list_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="expected a positive cutoff"):
        DeviceNeighbourList(0.0)
    listed = DeviceNeighbourList(CUTOFF)
    positions = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(StructureError, match="linearly independent"):
        listed.update(positions, np.zeros((3, 3)), np.ones(3, bool))
    assert listed.rebuilds == 0


@pytest.mark.parametrize("name", ["molecule", "bulk", "slab taller than its cell"])
def test_one_look_for_a_reused_list(name: str) -> None:
    """Also where the cell has changed, which is sent; all sums are made on the device."""
    positions, cell, pbc, _ = structure(name)
    listed = DeviceNeighbourList(CUTOFF, SKIN)
    with Accelerator() as accelerator:
        listed.update(torch.from_numpy(positions.copy()).to(DEVICE), cell, pbc)
        new = torch.from_numpy(positions + 0.01).to(DEVICE)
        accelerator.forget()
        found = listed.update(new, cell, pbc)
        assert (accelerator.reads.total(), accelerator.uploads) == (1, 0)
        assert accelerator.launches.total() <= 40
        assert found.edge_vectors.device == DEVICE
        accelerator.forget()
        listed.update(new, 1.001 * cell, pbc)
        assert accelerator.reads.total() == 1
        assert listed.rebuilds == 1
