import torch

from phicalc.nn.rows import neighbour_rows
from tests.nn.graphs import CUTOFF, N, ones, random_graph


def test_rows_of_a_block_are_as_wide_as_its_widest():
    edge_index, edge_vectors = random_graph()
    sharp = edge_vectors.norm(dim=1) < 1.7  # from no neighbour to some
    edge_index, edge_vectors = edge_index[:, sharp], edge_vectors[sharp]
    counts = torch.bincount(edge_index[1], minlength=N)
    rows = neighbour_rows(edge_index, edge_vectors, ones(edge_index), N, CUTOFF, 3)
    assert counts.min() < counts.max()
    assert rows.widths == [int(counts[block].max()) for block in rows.order.split(3)]
    receivers = rows.order.repeat_interleave(
        torch.tensor(rows.widths).repeat_interleave(torch.tensor(rows.atoms))
    )
    kept = rows.gates > 0
    found = torch.stack([rows.order[rows.senders], receivers])[:, kept]
    key = found[1] * N + found[0]
    by_receiver = key.argsort()
    expected = (edge_index[1] * N + edge_index[0]).argsort()
    assert torch.equal(found[:, by_receiver], edge_index[:, expected])
    assert torch.equal(rows.vectors[kept][by_receiver], edge_vectors[expected])
    assert (rows.vectors[~kept].norm(dim=1) == CUTOFF).all()
