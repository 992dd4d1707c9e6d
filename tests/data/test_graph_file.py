import tracemalloc

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.data.graph_file import GraphFile, chosen_of, record_of, tensors_of, write_graphs
from phicalc.data.read import Labels
from phicalc.errors import DataError
from tests.conftest import structure

CUTOFF = 4.0


def labelled(atoms, seed):
    random = np.random.default_rng(seed)
    labels = Labels(
        energy=float(random.normal()),
        forces=random.normal(size=(len(atoms), 3)),
        stress=random.normal(size=(3, 3)),
        charges=random.normal(size=len(atoms)),
        dipole=np.full(3, np.nan),
        total_charge=1.0,
    )
    return to_graph(atoms, CUTOFF, labels)


@pytest.fixture
def graphs():
    """Of three kinds of structure, an atom by itself among them, which has no edges."""
    kinds = [structure("molecule"), Atoms("Og"), structure("bulk"), structure("slab"), Atoms("H")]
    return [labelled(atoms, seed) for seed, atoms in enumerate(kinds)]


def written(path, graphs, notes=None):
    with path.open("wb") as stream:
        write_graphs(stream, map(record_of, graphs), {} if notes is None else notes)
    return opened(path)


def opened(path):
    with path.open("rb") as stream:
        return GraphFile(stream)


def same(first, second):
    one, other = graph_dict(first), graph_dict(second)
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_graphs_come_back_to_the_bit(graphs, tmp_path):
    kept = written(tmp_path / "kept", graphs, {"a": [1, 0.1]})
    kept.check()
    assert kept.notes == {"a": [1, 0.1]}
    assert kept.sizes.tolist() == [9, 1, 4, 8, 1]
    assert kept.edges.tolist() == [graph[fields.EDGE_INDEX].shape[1] for graph in graphs]
    assert len(kept) == 5
    for one, other in zip(kept, graphs, strict=True):
        assert one.num_nodes == other.num_nodes
        same(one, other)
    same(collate(list(kept)), collate(graphs))


def test_some_of_the_graphs(graphs, tmp_path):
    kept = written(tmp_path / "kept", graphs)
    some = kept.only([3, 0]).only([1])
    assert len(some) == 1
    same(some[0], graphs[0])
    same(kept[-2], graphs[-2])
    same(kept[1:][1], graphs[2])
    same(chosen_of(kept, [2])[0], chosen_of(graphs, [2])[0])
    for name in (fields.SPECIES, fields.FORCES):
        for one, other in zip(tensors_of(kept, name), tensors_of(graphs, name), strict=True):
            assert torch.equal(one, other)
    assert list(tensors_of(kept, "none")) == list(tensors_of(graphs, "none")) == [None] * 5
    with pytest.raises(IndexError):
        kept[5]


def test_notes_are_taken_as_graphs_come(graphs, tmp_path):
    notes: dict[str, int] = {}

    def noting():
        for graph in graphs:
            notes["count"] = notes.get("count", 0) + 1
            yield graph

    assert written(tmp_path / "kept", noting(), notes).notes == {"count": 5}


def test_every_damage_is_told(graphs, tmp_path):
    path = tmp_path / "kept"
    written(path, graphs)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for length in [0, 1, 35, *random.integers(len(whole), size=40).tolist()]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"part of one|damaged"):
            opened(path).check()
    for place in [
        8,
        *range(len(whole) - 40, len(whole)),
        *random.integers(len(whole), size=100).tolist(),
    ]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"part of one|damaged"):
            opened(path).check()


def test_memory_does_not_grow_with_the_graphs(tmp_path):
    crystal = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 2
    graph = to_graph(crystal, 6.0)
    stored = sum(tensor.nbytes for tensor in graph_dict(graph).values())
    assert stored > 80_000

    def peak(number):
        path = tmp_path / str(number)
        tracemalloc.start()
        kept = written(path, (graph for _ in range(number)))
        kept.check()
        for _ in tensors_of(kept, fields.EDGE_VECTORS):
            pass
        for start in range(0, number, 10):
            collate([kept[i] for i in range(start, start + 10)])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert path.stat().st_size > 0.5 * number * stored
        # read where it lies in the file
        ends = [kept.tensor(n, fields.EDGE_VECTORS).data_ptr() for n in (0, number - 1)]
        assert ends[1] - ends[0] > 0.5 * (number - 1) * stored
        return most

    peak(10)  # what is made once
    assert peak(200) - peak(40) < 160 * 1_000
