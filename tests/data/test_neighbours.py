"""Neighbours against a brute-force sum over images, and the skin against fresh lists."""

import copy
import itertools
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from phicalc.checks.structure import check_separation
from phicalc.data import neighbours as module
from phicalc.data.lattice import periodic_frame
from phicalc.data.neighbours import NeighbourList, Neighbours, build_neighbours
from phicalc.errors import ConfigError, StructureError

CUTOFF, SKIN = 4.0, 1.0
SKEWED = np.array([[6.0, 0.3, 0.0], [2.5, 5.0, -0.4], [-1.0, 2.0, 7.0]])
Edge = tuple[int, int, int, int, int]


def brute_force(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, images: int
) -> dict[Edge, np.ndarray]:
    """(sender, receiver, S) → vector, over all translations up to ±images."""
    ranges = [range(-images, images + 1) if p else range(1) for p in pbc]
    edges = {}
    for shift in itertools.product(*ranges):
        vectors = positions[:, None] + np.array(shift) @ cell - positions[None]
        for j, i in np.argwhere(np.linalg.norm(vectors, axis=2) < cutoff):
            if i != j or any(shift):
                edges[(int(j), int(i), *shift)] = vectors[j, i]
    return edges


def as_dict(neighbours: Neighbours) -> dict[Edge, np.ndarray]:
    index, shifts = neighbours.edge_index.T.tolist(), neighbours.edge_shifts.long().tolist()
    vectors = neighbours.edge_vectors.numpy()
    keys = [(*pair, *shift) for pair, shift in zip(index, shifts, strict=True)]
    assert len(set(keys)) == len(keys), "an edge appears twice"
    return dict(zip(keys, vectors, strict=True))


def assert_identical(one: Neighbours, other: Neighbours) -> None:
    assert torch.equal(one.edge_index, other.edge_index)
    assert torch.equal(one.edge_shifts, other.edge_shifts)
    assert torch.equal(one.edge_vectors, other.edge_vectors)
    assert one.closest_distance == other.closest_distance


def assert_each_edge_has_its_exact_reverse(neighbours: Neighbours) -> None:
    edges = as_dict(neighbours)
    for (j, i, *shift), vector in edges.items():
        reverse = edges[(i, j, *(-s for s in shift))]
        assert (vector == -reverse).all()


def assert_sorted(neighbours: Neighbours) -> None:
    keys = [(i, j, *s) for j, i, *s in as_dict(neighbours)]
    assert keys == sorted(keys)


STRUCTURES = {
    "molecule": (12, np.zeros((3, 3)), "FFF", 6.0, 0),
    "bulk": (20, 9.0 * np.eye(3), "TTT", 9.0, 1),
    "skewed": (7, SKEWED, "TTT", 6.0, 3),
    "left-handed": (7, SKEWED[[1, 0, 2]], "TTT", 6.0, 3),
    "smaller than the cutoff": (2, 2.0 * np.eye(3) + 0.1, "TTT", 2.0, 5),
    "outside of its cell": (9, SKEWED, "TTT", 30.0, 9),
    "slab without a third vector": (10, np.diag([5.0, 6.0, 0.0]), "TTF", 6.0, 2),
    "slab taller than its cell": (10, np.diag([5.0, 6.0, 2.0]), "TTF", 14.0, 4),
    "slab with its normal first": (10, SKEWED, "FTT", 6.0, 4),
    "wire": (6, np.array([[0, 0, 0], [0.4, 3.0, 1.0], [0, 0, 0.0]]), "FTF", 4.0, 4),
}


def structure(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    atoms, cell, pbc, spread, images = STRUCTURES[name]
    positions = np.random.default_rng(seed).uniform(0, spread, (atoms, 3))
    return positions, cell, np.array([p == "T" for p in pbc]), images


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("skin", [0.0, SKIN])
def test_finds_what_brute_force_finds(name: str, skin: float) -> None:
    positions, cell, pbc, images = structure(name)
    neighbours = NeighbourList(CUTOFF, skin).update(positions, cell, pbc)
    expected = brute_force(positions, cell, pbc, CUTOFF, images + 2)
    found = as_dict(neighbours)
    assert len(expected) > 10
    assert set(found) == set(expected)
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, rtol=0, atol=1e-12)
    shortest = min(expected, key=lambda key: float(np.linalg.norm(expected[key])))
    assert set(neighbours.closest_pair) == set(shortest[:2])
    assert neighbours.closest_distance == pytest.approx(np.linalg.norm(expected[shortest]))
    assert_sorted(neighbours)
    assert_each_edge_has_its_exact_reverse(neighbours)


@pytest.mark.parametrize("name", STRUCTURES)
def test_reused_list_is_bitwise_a_fresh_one(name: str) -> None:
    """Random walk with wrapping, unwrapping and a breathing, shearing, turning cell."""
    rng = np.random.default_rng(1)
    positions, cell, pbc, _ = structure(name)
    listed = NeighbourList(CUTOFF, SKIN)
    for step in range(40):
        strain = np.eye(3) + rng.normal(0, 0.002, (3, 3))
        cell, positions = cell @ strain, positions @ strain + rng.normal(0, 0.03, positions.shape)
        if step % 3 == 0:
            whole = rng.integers(-2, 3, positions.shape) * pbc
            positions = positions + whole @ cell
        reused = listed.update(positions, cell, pbc)
        assert_identical(reused, build_neighbours(positions, cell, pbc, CUTOFF))
        assert_each_edge_has_its_exact_reverse(reused)
    assert listed.updates == 40
    assert 1 < listed.rebuilds < 25
    assert listed.topology == listed.rebuilds


def test_perfect_crystal_with_a_shell_at_the_cutoff_stays_symmetric() -> None:
    """Rounding must not keep one direction of a pair at r = cutoff and drop the other."""
    rng = np.random.default_rng(2)
    halves = 0
    for _ in range(20):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        grid = np.array(list(itertools.product(range(3), repeat=3)), dtype=float)
        positions, cell = 2.0 * grid @ turn + rng.normal(size=3), 6.0 * turn
        listed = NeighbourList(4.0, SKIN)
        for shift in rng.normal(0, 0.1, (3, 3)):
            neighbours = listed.update(positions + shift, cell, [True] * 3)
            assert_each_edge_has_its_exact_reverse(neighbours)
            halves += 0 < neighbours.edge_index.shape[1] - 27 * 26 < 27 * 6
    assert halves > 10, "the shell at the cutoff never split, so nothing was tested"


def test_reuse_neither_searches_nor_rebuilds(monkeypatch: pytest.MonkeyPatch) -> None:
    positions, cell, pbc, _ = structure("bulk")
    listed = NeighbourList(CUTOFF, SKIN)
    listed.update(positions, cell, pbc)
    monkeypatch.delattr(module, "neighbour_list")
    listed.update(positions + 0.1, cell, pbc)
    assert (listed.rebuilds, listed.topology, listed.updates) == (1, 1, 2)
    with pytest.raises(NameError):
        listed.update(positions + 0.5, cell, pbc)


def rebuilds_after(positions: np.ndarray, cell: np.ndarray, new: np.ndarray, to: np.ndarray) -> int:
    listed = NeighbourList(CUTOFF, SKIN)
    listed.update(positions, cell, [True] * 3)
    listed.update(new, to, [True] * 3)
    return listed.rebuilds


def test_rebuilt_when_one_atom_moved_half_the_skin() -> None:
    positions, cell, _, _ = structure("bulk")
    step = np.zeros_like(positions)
    step[3] = 0.499 * SKIN * np.array([0.6, 0.0, 0.8])
    assert rebuilds_after(positions, cell, positions + step, cell) == 1
    assert rebuilds_after(positions, cell, positions + step * 1.004, cell) == 2


@pytest.mark.parametrize("name", ["bulk", "skewed"])
def test_rebuild_counts_compression_but_not_expansion_or_rotation(name: str) -> None:
    positions, cell, _, _ = structure(name)
    limit = 1.0 - SKIN / (CUTOFF + SKIN)
    along = np.diag([1.0, 1.0, limit])
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    for gradient, rebuilds in [
        (limit * 1.001 * np.eye(3), 1),
        (limit * 0.999 * np.eye(3), 2),
        (along + np.diag([0, 0, 1e-3]), 1),
        (along - np.diag([0, 0, 1e-3]), 2),
        (1.5 * np.eye(3), 1),
        (turn, 1),
    ]:
        assert rebuilds_after(positions, cell, positions @ gradient, cell @ gradient) == rebuilds


def test_rebuild_adds_compression_and_displacement() -> None:
    positions, cell, _, _ = structure("bulk")
    squeeze = 1.0 - 0.5 * SKIN / (CUTOFF + SKIN)
    step = np.zeros_like(positions)
    step[0, 1] = 0.25 * SKIN
    squeezed = positions * squeeze
    assert rebuilds_after(positions, cell, squeezed + 0.999 * step, cell * squeeze) == 1
    assert rebuilds_after(positions, cell, squeezed + 1.001 * step, cell * squeeze) == 2


def test_expansion_gives_no_room_to_move_further() -> None:
    positions, cell, _, _ = structure("bulk")
    step = np.zeros_like(positions)
    step[7, 2] = 0.5 * SKIN
    grown = 1.2 * positions
    assert rebuilds_after(positions, cell, grown + 0.999 * step, 1.2 * cell) == 1
    assert rebuilds_after(positions, cell, grown + 1.001 * step, 1.2 * cell) == 2


@pytest.mark.parametrize("name", ["bulk", "skewed", "slab without a third vector", "wire"])
def test_wrapping_is_no_move(name: str) -> None:
    positions, cell, pbc, _ = structure(name)
    listed = NeighbourList(CUTOFF, SKIN)
    before = listed.update(positions, cell, pbc)
    whole = np.random.default_rng(4).integers(-3, 4, positions.shape) * pbc
    moved = positions + whole @ cell + 0.05
    after = listed.update(moved, cell, pbc)
    assert (listed.rebuilds, listed.topology) == (1, 1)
    assert torch.equal(before.edge_index, after.edge_index)
    torch.testing.assert_close(before.edge_vectors, after.edge_vectors, rtol=0, atol=1e-12)
    assert not torch.equal(before.edge_shifts, after.edge_shifts)
    assert_identical(after, build_neighbours(moved, cell, pbc, CUTOFF))


def test_a_cell_vector_along_a_non_periodic_direction_is_a_move() -> None:
    positions, _, _, _ = structure("bulk")
    cell, pbc = 9.0 * np.eye(3), [True, True, False]
    listed = NeighbourList(CUTOFF, SKIN)
    listed.update(positions, cell, pbc)
    positions[0, 2] += 9.0
    assert_identical(listed.update(positions, cell, pbc), build_neighbours(positions, cell, pbc, 4))
    assert listed.rebuilds == 2


def test_rebuilt_for_other_atoms_or_other_pbc() -> None:
    positions, cell, _, _ = structure("bulk")
    listed = NeighbourList(CUTOFF, SKIN)
    for number, pbc in [(20, [True] * 3), (19, [True] * 3), (19, [True, True, False])]:
        reused = listed.update(positions[:number], cell, pbc)
        assert_identical(reused, build_neighbours(positions[:number], cell, pbc, CUTOFF))
    assert listed.rebuilds == 3


@pytest.mark.parametrize("name", ["molecule", "bulk", "slab without a third vector"])
def test_far_from_the_origin(name: str) -> None:
    """Only the rounding of the coordinates themselves (1e-10 Å at 1e6 Å) is left."""
    positions, cell, pbc, _ = structure(name)
    away = np.array([1e6, -2e6, 3e6])
    here, there = (build_neighbours(r, cell, pbc, CUTOFF) for r in (positions, positions + away))
    assert len(as_dict(here)) == len(as_dict(there)) > 0
    lengths = [n.edge_vectors.norm(dim=1).sort().values for n in (here, there)]
    torch.testing.assert_close(*lengths, rtol=0, atol=5e-9)
    if name == "molecule":
        assert torch.equal(here.edge_index, there.edge_index)
        exact = (positions + away)[:, None] - (positions + away)[None]
        j, i = there.edge_index.numpy()
        assert (there.edge_vectors.numpy() == exact[j, i]).all()


def test_atoms_a_million_cells_apart() -> None:
    """Integer shifts too large for one sort key; still each edge and the right order."""
    positions, cell, pbc, _ = structure("skewed")
    whole = np.random.default_rng(5).integers(-(10**8), 10**8, positions.shape)
    near, far = (
        build_neighbours(r, cell, pbc, CUTOFF) for r in (positions, positions + whole @ cell)
    )
    assert far.edge_index.shape == near.edge_index.shape
    torch.testing.assert_close(
        near.edge_vectors.norm(dim=1).sort().values,
        far.edge_vectors.norm(dim=1).sort().values,
        rtol=0,
        atol=1e-5,
    )
    assert_sorted(far)


@pytest.mark.parametrize("pbc", ["FFF", "TTT", "TFT"])
def test_fragments_in_a_huge_vacuum(pbc: str) -> None:
    """No memory for empty search bins, no warning, all neighbours of either fragment."""
    fragment = np.random.default_rng(6).uniform(0, 5, (8, 3))
    positions = np.concatenate([fragment, fragment + 3e5, fragment - np.array([2e6, 1e6, 4e5])])
    periodic = [p == "T" for p in pbc]
    found = build_neighbours(positions, 1e7 * np.eye(3), periodic, CUTOFF)
    alone = build_neighbours(fragment, np.zeros((3, 3)), [False] * 3, CUTOFF)
    assert found.edge_index.shape[1] == 3 * alone.edge_index.shape[1]
    assert torch.equal(found.edge_index[:, : alone.edge_index.shape[1]], alone.edge_index)
    torch.testing.assert_close(
        found.edge_vectors, alone.edge_vectors.repeat(3, 1), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("periodic", [False, True])
def test_no_edges_are_empty_tensors_of_the_right_kind(periodic: bool) -> None:
    lonely = NeighbourList(CUTOFF, SKIN)
    for _ in range(2):
        neighbours = lonely.update(np.zeros((1, 3)), 20.0 * np.eye(3), [periodic] * 3)
        assert neighbours.edge_index.shape == (2, 0)
        assert neighbours.edge_index.dtype == torch.int64
        for tensor in (neighbours.edge_vectors, neighbours.edge_shifts):
            assert tensor.shape == (0, 3)
            assert tensor.dtype == torch.float64
        assert neighbours.closest_distance == float("inf")
    assert lonely.rebuilds == 1


def test_a_single_atom_sees_its_own_images() -> None:
    neighbours = build_neighbours(np.ones((1, 3)), 3.0 * np.eye(3), [True] * 3, 3.1)
    assert neighbours.edge_index.tolist() == [[0] * 6, [0] * 6]
    assert neighbours.edge_vectors.norm(dim=1).tolist() == [3.0] * 6
    assert neighbours.closest_pair == (0, 0)


def test_two_atoms_on_one_spot_are_noticed_even_across_a_face() -> None:
    positions = np.array([[0.0, 1.0, 1.0], [5.0, 5.0, 5.0], [9.0, 1.0, 1.0]])
    neighbours = build_neighbours(positions, 9.0 * np.eye(3), [True] * 3, CUTOFF)
    assert set(neighbours.closest_pair) == {0, 2}
    with pytest.raises(StructureError, match="between atom"):
        check_separation(neighbours.closest_distance, neighbours.closest_pair)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_bad_input_is_an_error_and_leaves_the_list_usable(bad: float) -> None:
    positions, cell, pbc, _ = structure("bulk")
    listed = NeighbourList(CUTOFF, SKIN)
    listed.update(positions, cell, pbc)
    broken = positions.copy()
    broken[2, 0] = bad
    with pytest.raises(StructureError, match="expected finite positions"):
        listed.update(broken, cell, pbc)
    with pytest.raises(StructureError, match="zero volume"):
        listed.update(positions, np.diag([9.0, 9.0, 0.0]), pbc)
    with pytest.raises(StructureError, match="at least one atom"):
        listed.update(np.zeros((0, 3)), cell, pbc)
    fresh = build_neighbours(positions + 0.1, cell, pbc, CUTOFF)
    assert_identical(listed.update(positions + 0.1, cell, pbc), fresh)
    assert listed.rebuilds == 1


def test_bad_cutoff_or_skin() -> None:
    for cutoff in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="expected a positive cutoff"):
            NeighbourList(cutoff)
    with pytest.raises(ConfigError, match="expected a skin of 0 Å or more, got -1"):
        NeighbourList(5.0, -1)


def test_results_of_earlier_steps_and_the_input_stay_as_they_were() -> None:
    positions, cell, pbc, _ = structure("bulk")
    listed = NeighbourList(CUTOFF, SKIN)
    first = listed.update(positions, cell, pbc)
    kept = first.edge_vectors.clone(), first.edge_index.clone()
    listed.update(positions + np.array([9.0, 0.0, 0.1]), cell, pbc)
    assert torch.equal(first.edge_vectors, kept[0])
    assert torch.equal(first.edge_index, kept[1])
    assert_identical(first, build_neighbours(structure("bulk")[0], cell, pbc, CUTOFF))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_independently(clone: Callable[[NeighbourList], NeighbourList]) -> None:
    positions, cell, pbc, _ = structure("skewed")
    listed = NeighbourList(CUTOFF, SKIN)
    listed.update(positions, cell, pbc)
    copied = clone(listed)
    assert_identical(
        copied.update(positions + 0.1, cell, pbc), listed.update(positions + 0.1, cell, pbc)
    )
    copied.update(positions + 5.0, cell, pbc)
    assert (listed.rebuilds, copied.rebuilds) == (1, 2)


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_periodic_frame(pbc: tuple[bool, bool, bool]) -> None:
    frame = periodic_frame(SKEWED, np.array(pbc))
    for row, periodic in enumerate(pbc):
        if periodic:
            assert (frame[row] == SKEWED[row]).all()
        else:
            overlaps = np.delete(frame, row, axis=0) @ frame[row]
            np.testing.assert_allclose(overlaps, 0.0, atol=1e-14)
            assert np.linalg.norm(frame[row]) == pytest.approx(1.0)


@pytest.mark.parametrize("largest", [5, 1 << 40, 1 << 61])
def test_keys_with_and_without_room_for_their_number_sort_alike(largest):
    """The order is that of Python's own comparisons, whichever way it was found."""
    keys = [-largest, largest, 0, 3, -2, largest - 1, 1 - largest]
    expected = sorted(range(len(keys)), key=keys.__getitem__)
    assert module._ascending(np.array(keys, dtype=np.int64)).tolist() == expected
    assert module._ascending(np.array([], dtype=np.int64)).tolist() == []
