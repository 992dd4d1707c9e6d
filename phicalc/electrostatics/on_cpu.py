"""What a CPU asks of a graph that may be elsewhere."""

from typing import Dict

from torch import Tensor

from phicalc import fields


def cell_on_cpu(graph: Dict[str, Tensor]) -> Tensor:
    """Cells (B, 3, 3) | Å, without gradient; nothing to wait for where they are there already."""
    return graph.get(fields.CPU_CELL, graph[fields.CELL]).detach().cpu()


def pbc_on_cpu(graph: Dict[str, Tensor]) -> Tensor:
    """Periodic directions (B, 3)."""
    return graph.get(fields.CPU_PBC, graph[fields.PBC]).cpu()
