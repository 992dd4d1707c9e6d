"""The atoms of a batch as padded rows, one row per structure, for dense linear algebra.

N atoms, B structures, M atoms in the largest of them.
"""

from typing import Tuple

import torch
from torch import Tensor


def row_slots(batch: Tensor, num_structures: int) -> Tuple[Tensor, int]:
    """Place of every atom (N,) in the flattened (B, M) rows, and M."""
    if num_structures == 1:  # nothing to count, nor for a GPU to wait for
        return torch.arange(batch.shape[0], device=batch.device), batch.shape[0]
    counts = torch.bincount(batch, minlength=num_structures)
    size = int(counts.max())
    first = torch.cumsum(counts, 0) - counts
    local = torch.arange(batch.shape[0], device=batch.device) - first.index_select(0, batch)
    return batch * size + local, size


def to_rows(values: Tensor, slots: Tensor, num_structures: int, size: int) -> Tensor:
    """Values (N, …) as rows (B, M, …), zero where a row is padded."""
    shape = list(values.shape)
    shape[0] = num_structures * size
    rows = torch.zeros(shape, dtype=values.dtype, device=values.device)
    filled: Tensor = rows.index_copy(0, slots, values).unflatten(0, [num_structures, size])
    return filled


def from_rows(rows: Tensor, slots: Tensor) -> Tensor:
    """Back from rows (B, M) to the values (N,) of the atoms."""
    return rows.reshape(-1).index_select(0, slots)


def multiply_rows(matrices: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Matrices (B, M, M) times the values (N,) of their structures' atoms: (N,)."""
    rows = to_rows(values, slots, matrices.shape[0], matrices.shape[1])
    return from_rows(torch.matmul(matrices, rows[:, :, None]), slots)
