"""Graphs of single structures and of batches."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from phicalc import fields
from phicalc.data.graph import average_neighbours, collate, graph_dict, to_graph
from phicalc.data.neighbours import build_neighbours
from phicalc.data.read import Labels
from phicalc.data.tensors import grouped
from phicalc.errors import DataError, StructureError

CUTOFF = 4.0
INPUTS = {
    fields.SPECIES: ("N",),
    fields.POSITIONS: ("N", 3),
    fields.CELL: ("B", 3, 3),
    fields.PBC: ("B", 3),
    fields.EDGE_INDEX: (2, "E"),
    fields.EDGE_VECTORS: ("E", 3),
    fields.BATCH: ("N",),
    fields.TOTAL_CHARGE: ("B",),
}
LABELS = {
    fields.ENERGY: ("B",),
    fields.FORCES: ("N", 3),
    fields.STRESS: ("B", 3, 3),
    fields.CHARGES: ("N",),
    fields.DIPOLE: ("B", 3),
}
INTEGER = {fields.SPECIES, fields.EDGE_INDEX, fields.BATCH}


def structures() -> list[Atoms]:
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=1)
    ion = molecule("OH")
    ion.info["charge"] = -1
    return [salt, ion, Atoms("Ar"), molecule("C6H6")]


def labels(atoms: Atoms, seed: int) -> Labels:
    rng = np.random.default_rng(seed)
    return Labels(
        energy=float(rng.normal()),
        forces=rng.normal(size=(len(atoms), 3)),
        stress=rng.normal(size=(3, 3)),
        charges=rng.normal(size=len(atoms)),
        dipole=rng.normal(size=3),
        total_charge=float(seed),
    )


@pytest.mark.parametrize("batched", [False, True])
def test_every_field_has_its_name_shape_and_kind(batched: bool) -> None:
    frames = structures() if batched else structures()[:1]
    graphs = [to_graph(atoms, CUTOFF, labels(atoms, k)) for k, atoms in enumerate(frames)]
    graph = graph_dict(collate(graphs) if batched else graphs[0])
    sizes = {
        "N": sum(map(len, frames)),
        "B": len(frames),
        "E": sum(g.edge_index.shape[1] for g in graphs),
    }
    expected = INPUTS | LABELS
    assert set(graph) == set(expected)
    for name, shape in expected.items():
        assert graph[name].shape == tuple(sizes.get(n, n) for n in shape), name
        kind = torch.int64 if name in INTEGER else torch.float64
        assert graph[name].dtype == (torch.bool if name == fields.PBC else kind), name


def test_a_batch_is_block_diagonal_and_takes_nothing_from_its_neighbours() -> None:
    frames = structures()
    graphs = [to_graph(atoms, CUTOFF, labels(atoms, k)) for k, atoms in enumerate(frames)]
    batch = graph_dict(collate(graphs))
    sender, receiver = batch[fields.EDGE_INDEX]
    assert torch.equal(batch[fields.BATCH][sender], batch[fields.BATCH][receiver])
    assert (receiver.diff() >= 0).all(), "sorted by receiver"
    first = 0
    for number, alone in enumerate(map(graph_dict, graphs)):
        atoms = batch[fields.BATCH] == number
        edges = atoms[receiver]
        for name in INPUTS | LABELS:
            if name == fields.EDGE_INDEX:
                assert torch.equal(batch[name][:, edges] - first, alone[name])
            elif name == fields.EDGE_VECTORS:
                assert torch.equal(batch[name][edges], alone[name])
            elif name in (fields.SPECIES, fields.POSITIONS, fields.FORCES, fields.CHARGES):
                assert torch.equal(batch[name][atoms], alone[name])
            elif name != fields.BATCH:
                assert torch.equal(batch[name][number : number + 1], alone[name])
        first += int(atoms.sum())


def test_vectors_are_what_fields_says() -> None:
    frames = structures()
    graph = graph_dict(collate([to_graph(atoms, CUTOFF) for atoms in frames]))
    sender, receiver = graph[fields.EDGE_INDEX]
    cells = graph[fields.CELL][graph[fields.BATCH][receiver]]
    found = [build_neighbours(a.positions, a.cell.array, a.pbc, CUTOFF) for a in frames]
    positions, shifts = graph[fields.POSITIONS], torch.cat([n.edge_shifts for n in found])
    vectors = positions[sender] + torch.einsum("ek,ekx->ex", shifts, cells) - positions[receiver]
    torch.testing.assert_close(graph[fields.EDGE_VECTORS], vectors, rtol=0, atol=1e-13)
    assert (vectors.norm(dim=1) < CUTOFF).all()


def test_the_cell_is_zero_where_not_periodic() -> None:
    atoms = structures()[0]
    atoms.pbc = (True, False, True)
    expected = atoms.cell.array * [[1.0], [0.0], [1.0]]
    np.testing.assert_array_equal(to_graph(atoms, CUTOFF)[fields.CELL][0].numpy(), expected)


def test_without_labels_only_inputs() -> None:
    graph = graph_dict(to_graph(structures()[1], CUTOFF))
    assert set(graph) == set(INPUTS)
    assert graph[fields.TOTAL_CHARGE].tolist() == [-1.0]
    assert graph[fields.BATCH].tolist() == [0, 0]


def test_the_total_charge_of_labels_wins() -> None:
    graph = to_graph(structures()[1], CUTOFF, Labels(energy=1.0, total_charge=2.0))
    assert graph[fields.TOTAL_CHARGE].tolist() == [2.0]


def test_the_graph_does_not_alias_the_structure() -> None:
    atoms = structures()[0]
    graph = to_graph(atoms, CUTOFF)
    before = graph[fields.POSITIONS].clone(), graph[fields.CELL].clone()
    atoms.positions += 1.0
    atoms.cell[:] *= 2.0
    atoms.numbers[:] = 1
    assert torch.equal(graph[fields.POSITIONS], before[0])
    assert torch.equal(graph[fields.CELL], before[1])
    assert set(graph[fields.SPECIES].tolist()) == {11, 17}


def test_graphs_of_isolated_atoms_batch_too() -> None:
    batch = collate([to_graph(Atoms("Ar"), CUTOFF)] * 3)
    graph = graph_dict(batch)
    assert graph[fields.EDGE_INDEX].shape == (2, 0)
    assert graph[fields.BATCH].tolist() == [0, 1, 2]
    assert batch.num_nodes == 3
    assert batch.num_graphs == 3


def test_large_structures_have_groups_of_their_own() -> None:
    sizes = [3, 3, 65, 3, 64, 3, 3, 100, 200, 3]
    groups = [list(group) for group in grouped(sizes, 3, 64)]
    assert groups == [[0, 1], [2], [3, 4, 5], [6], [7], [8], [9]]
    assert [len(group) for group in grouped(sizes, 4)] == [4, 4, 2]
    assert [len(group) for group in grouped(sizes, 1, 64)] == [1] * 10
    assert not list(grouped([], 4, 64))


def test_average_neighbours() -> None:
    crystal = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    assert average_neighbours([to_graph(crystal, 3.0)]) == 6.0
    mixed = [to_graph(crystal, 3.0), to_graph(Atoms("Ar"), 3.0)]
    assert average_neighbours(mixed) == pytest.approx(48 / 9)
    with pytest.raises(DataError, match="expected at least one graph with atoms, got none"):
        average_neighbours([])


def test_errors() -> None:
    atoms = molecule("H2O")
    with pytest.raises(DataError, match="expected at least one graph, got none"):
        collate([])
    mixed = [to_graph(atoms, CUTOFF, Labels(energy=1.0)), to_graph(atoms, CUTOFF)]
    with pytest.raises(DataError, match="same labels in every graph, got energy in only one of"):
        collate(mixed)
    with pytest.raises(StructureError, match="expected at least one atom"):
        to_graph(Atoms(), CUTOFF)
