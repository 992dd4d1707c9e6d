"""A uniform electric field f in the heads: the energy is E − f·PV, and what follows from it.

Each head makes its energy stationary in its unknowns x (charges, or potential and flow), so that
PV = −∂E/∂f at fixed x. With x' = dx/df_i, which is one linear solve per direction of the field,

    ∂(PV)_i/∂f_j = −∂²E/∂f_i∂f_j − ∂²E/∂f_i∂x · x'_j,
    ∂(PV)_i/∂r  = −∂D_i/∂r,  D_i = ∂E/∂f_i + ∂E/∂x · x'_i  at fixed x and x'

so that Born charges need no second derivative: D_i is to them what the energy is to forces. All
but Σ q⁰ r depends on edge vectors and differences of positions alone, so that Born charges sum to
the total charge by construction.

Forces and stress are the derivatives at fixed f, which is given in Cartesian axes and does not
turn or stretch with the cell. The energy of a crystal in a field, and with it the stress, is that
of the positions as given: moving an ion to another image changes them, forces stay.
"""

from typing import Dict, NamedTuple, Optional

from torch import Tensor

from phicalc import fields
from phicalc.errors import UnsupportedError


class FieldResponse(NamedTuple):
    """How one structure answers to a field, ions clamped."""

    mixed: Tensor  # (3,) e·Å | D, whose negative gradient is that of the moment
    moment: Tensor  # (3,) e·Å | PV
    polarisability: Tensor  # (3, 3) e·Å²/V | ∂(PV)_i/∂f_j


def edge_drops(graph: Dict[str, Tensor]) -> Optional[Tensor]:
    """f·r_e of every edge (E,) | V; none without a field."""
    if fields.FIELD not in graph:
        return None
    batch_of_edge = graph[fields.BATCH].index_select(0, graph[fields.EDGE_INDEX][1])
    field = graph[fields.FIELD].index_select(0, batch_of_edge)
    return (field * graph[fields.EDGE_VECTORS]).sum(1)


def field_potential(graph: Dict[str, Tensor]) -> Optional[Tensor]:
    """−f·r_i of every atom (N,) | V, the potential of the field; none without a field."""
    if fields.FIELD not in graph:
        return None
    field = graph[fields.FIELD].index_select(0, graph[fields.BATCH])
    return -(field * graph[fields.POSITIONS]).sum(1)


def refuse_periodic_field(graph: Dict[str, Tensor]) -> None:
    """Raise UnsupportedError for a periodic structure of a head whose charges have no edges."""
    if bool(graph[fields.PBC].any()):
        raise UnsupportedError(
            "expected a structure that is not periodic for the field and the polarisation of this "
            "head, got a periodic one: its charges belong to no edge, so that the polarisation "
            "would depend on the choice of periodic images; use phi-coulomb"
        )
