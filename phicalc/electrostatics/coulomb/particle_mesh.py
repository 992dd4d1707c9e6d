"""The Coulomb matrix of one large structure, applied without forming it where it is periodic.

A is that of ``ewald.py``. In a crystal the pair (i, j) of Gaussian charges is split at the
variance v_ij = max(σ_i² + σ_j², 2η²). What erf(r/√(2v_ij))/r leaves over is short-ranged and
summed over the edges that the network has anyway; the rest is smooth and summed on a mesh. No
range depends on how wide the charges are, no pairs are searched for, and the cost is O(N log N).
Where most of a cell is empty, such a mesh would have far more points than there are atoms; then
its spacing is wider, and the pairs reach beyond the cutoff as much and are searched for. A molecule
is one dense matrix.

**Accuracy.** One number ε sets the ranges and the mesh. Against Ewald's sum the energy per atom is
off by less than ε·k_e e²/Å and forces by less than 100 ε·k_e e²/Å² (root mean square), for charges
up to 1 e; tests hold it to that. Whatever ε is, forces and stress are exact derivatives of what
is summed, and continuous: pairs are switched off smoothly before the cutoff. Only a cell
that grows enough to get another number of mesh points sees a step, of the size of the error.

Why not torch-pme here (it is an oracle in the tests): its interpolation ends at 7 points per axis,
its pairs would have to be searched for at a range of their own, its charges share one width, and
a charge equilibration needs the same sum a dozen times per step, with all that does not depend on
the charges built once.
"""

import math
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.ewald import refuse_partial_pbc
from phicalc.electrostatics.coulomb.lattice import (
    ImagePairs,
    image_pairs,
    pair_vectors,
    require_room,
)
from phicalc.electrostatics.coulomb.mesh import (
    Mesh,
    affordable_spacing,
    apply_mesh,
    build_mesh,
    charge_waves,
    mesh_field,
    mesh_potential,
    mesh_rule,
    mesh_shape,
    mesh_virial,
)
from phicalc.electrostatics.laplacian import adjacency_matrix
from phicalc.electrostatics.on_cpu import cell_on_cpu, pbc_on_cpu
from phicalc.units import COULOMB_CONSTANT

ACCURACY: float = 1e-7
"""ε, the relative error of the energy of charges in a crystal."""

SWITCH: float = 0.05
"""Share of the cutoff over which pair terms of relative size ε go to zero."""


class CoulombOperator(NamedTuple):
    """A, as what it takes to apply it and to differentiate qᵀAq; no gradients go through it."""

    constant: float  # k_e | eV Å/e²
    pairs: Tensor  # (N, N) | 1/Å | short-ranged, CSR in a crystal; all there is in a molecule
    slopes: Tensor  # (E,), (P,) or (N, N) | 1/Å³ | derivative of pair terms over distance
    distant: Optional[ImagePairs]  # P pairs in place of the graph's edges, in a dilute crystal
    own: Tensor  # (N,) | 1/Å | self-energies, less what the mesh counts
    diagonal: Tensor  # (N,) | eV/e² | self-energies
    kinds: Tensor  # (N,) int64 | of width, 0 … S − 1
    background: Tensor  # (S, S) | 1/Å | k = 0 term of the short-ranged part
    mesh: Optional[Mesh]


def coulomb_operator(
    graph: Dict[str, Tensor],
    widths: Tensor,
    cutoff: float,
    accuracy: float = ACCURACY,
    constant: float = COULOMB_CONSTANT,
) -> CoulombOperator:
    """A of a single structure.

    Parameters
    ----------
    graph
        needs POSITIONS, CELL, PBC, EDGE_INDEX and EDGE_VECTORS of all pairs up to the cutoff
    widths
        (N,) | Å | σ, of few different values
    cutoff
        r_c of the edges | Å
    accuracy
        ε of a crystal

    Raises
    ------
    UnsupportedError
        The structure is periodic in one or two directions, or too large.
    """
    pbc = pbc_on_cpu(graph)
    refuse_partial_pbc(pbc)
    positions, cell = graph[fields.POSITIONS].detach(), graph[fields.CELL].detach()[0]
    if not bool(pbc.all()):
        return molecule_operator(positions, widths.detach(), constant)
    num_atoms = positions.shape[0]
    rule = mesh_rule(accuracy, cutoff)
    cpu_cell = cell_on_cpu(graph)[0]
    stretch = affordable_spacing(cpu_cell, rule.spacing, num_atoms) / rule.spacing
    edge_index, edge_vectors = graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS].detach()
    distant: Optional[ImagePairs] = None
    if stretch > 1.0:
        cutoff = stretch * cutoff
        rule = mesh_rule(accuracy, cutoff)
        half = torch.full_like(widths, 0.5 * cutoff**2).detach()
        distant = image_pairs(positions, cell, half)
        edge_index = torch.stack([distant.second, distant.first])
        edge_vectors = pair_vectors(distant, positions, cell)
    values, kinds, _ = torch._unique2(widths.detach(), True, True)
    narrow = values[:, None] ** 2 + values[None, :] ** 2
    wide = narrow.clamp(min=2.0 * rule.split_width**2)
    near, slopes = short_ranged(edge_vectors, edge_index, kinds, narrow, wide, cutoff)
    diagonal = (2.0 / math.pi) ** 0.5 * narrow.diagonal().rsqrt()
    own = diagonal - (2.0 / math.pi) ** 0.5 * wide.diagonal().rsqrt()
    # A charge is seen together with its background, in the short-ranged part too.
    background = (2.0 * math.pi / torch.linalg.det(cell).abs()) * (wide - narrow)
    classes = kinds
    if float(values[-1]) <= rule.split_width:  # one mesh for all, the usual case
        classes, wide = torch.zeros_like(kinds), wide[:1, :1]
    if distant is not None:  # each pair once so far
        edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
        order = edge_index[1].argsort()
        edge_index, near = edge_index[:, order], torch.cat([near, near])[order]
    return CoulombOperator(
        constant,
        adjacency_matrix(near, edge_index, num_atoms),
        slopes,
        distant,
        own[kinds],
        constant * diagonal[kinds],
        kinds,
        background,
        build_mesh(positions, cell, mesh_shape(cpu_cell, rule.spacing), classes, wide, rule),
    )


def short_ranged(
    edge_vectors: Tensor,
    edge_index: Tensor,
    kinds: Tensor,
    narrow: Tensor,
    wide: Tensor,
    cutoff: float,
    switch_share: float = SWITCH,
) -> Tuple[Tensor, Tensor]:
    """[erf(r/√(2 narrow)) − erf(r/√(2 wide))]/r of edges, and its derivative over r: (E,) both.

    The last ``switch_share`` of the range is switched off smoothly.

    Parameters
    ----------
    edge_vectors, edge_index
        (E, 3) | Å, (2, E)
    kinds
        (N,) | of width
    narrow, wide
        (S, S) | Å² | variances of pairs of kinds
    """
    pair = kinds.index_select(0, edge_index[1]) * narrow.shape[0]
    pair = pair + kinds.index_select(0, edge_index[0])
    steep = (2.0 * narrow).rsqrt().view(-1).index_select(0, pair)
    flat = (2.0 * wide).rsqrt().view(-1).index_select(0, pair)
    distance = torch.linalg.vector_norm(edge_vectors, dim=1)
    value, slope = split_term(distance, steep, flat)
    width = switch_share * cutoff
    rest = ((cutoff - distance) / width).clamp(0.0, 1.0)
    switch = rest * rest * (3.0 - 2.0 * rest)
    slope = slope * switch - value * rest * (1.0 - rest) * (6.0 / width)
    return value * switch, slope / distance


def split_term(distance: Tensor, steep: Tensor, flat: Tensor) -> Tuple[Tensor, Tensor]:
    """[erf(ar) − erf(br)]/r and its derivative."""
    value = (torch.erf(steep * distance) - torch.erf(flat * distance)) / distance
    decay = steep * torch.exp(-((steep * distance) ** 2))
    decay = decay - flat * torch.exp(-((flat * distance) ** 2))
    return value, ((2.0 / math.sqrt(math.pi)) * decay - value) / distance


def molecule_operator(positions: Tensor, widths: Tensor, constant: float) -> CoulombOperator:
    """All pairs of one molecule as a matrix; positions (N, 3), widths (N,) | Å."""
    num_atoms = positions.shape[0]
    require_room(8.0 * num_atoms**2, "a matrix of all pairs", num_atoms)
    distance = torch.cdist(positions, positions, 2.0, "donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(1.0)
    steep = (2.0 * (widths[:, None] ** 2 + widths[None, :] ** 2)).rsqrt()
    value, slope = split_term(distance, steep, torch.zeros_like(steep))
    slopes = slope / distance
    slopes.fill_diagonal_(0.0)
    value.fill_diagonal_(0.0)
    own = 1.0 / (math.sqrt(math.pi) * widths)
    kinds = torch.zeros(0, dtype=torch.int64, device=widths.device)
    none = widths.new_zeros(0, 0)
    return CoulombOperator(constant, value, slopes, None, own, constant * own, kinds, none, None)


def apply_operator(operator: CoulombOperator, charges: Tensor) -> Tensor:
    """A q (N,) | V of charges (N,) | e, without gradient."""
    potential = torch.mv(operator.pairs, charges) + operator.own * charges
    mesh = operator.mesh
    if mesh is not None:
        potential = potential + apply_mesh(mesh, charges) - background(operator, charges)
    return operator.constant * potential


def background(operator: CoulombOperator, charges: Tensor) -> Tensor:
    """Potential (N,) of the uniform background that the short-ranged part is seen with."""
    totals = torch.zeros_like(operator.background[0]).index_add(0, operator.kinds, charges)
    return torch.mv(operator.background, totals).index_select(0, operator.kinds)


def coulomb_energies(
    operator: CoulombOperator, charges: Tensor, graph: Dict[str, Tensor]
) -> Tensor:
    """½ q_i (Aq)_i (N,) | eV, whose sum has the right first derivatives, and no second ones.

    They are with respect to the charges, and to the EDGE_VECTORS, POSITIONS and CELL of the graph,
    which the operator must have been made of.
    """
    fixed = charges.detach()
    positions, cell = graph[fields.POSITIONS], graph[fields.CELL]
    potential = torch.mv(operator.pairs, fixed) + operator.own * fixed
    mesh = operator.mesh
    if mesh is None:
        tension = operator.slopes * fixed[:, None] * fixed[None, :]
        x = positions.detach()
        change = linear(positions, x * tension.sum(1)[:, None] - torch.mm(tension, x))
    else:
        waves = charge_waves(mesh, fixed)
        on_mesh = mesh_potential(mesh, waves)
        shift = background(operator, fixed)
        potential = potential + torch.mv(mesh.gather, on_mesh) - shift
        distant = operator.distant
        if distant is None:  # every pair stands twice among the edges, hence the half
            vectors, share = graph[fields.EDGE_VECTORS], 0.5
            i, j = graph[fields.EDGE_INDEX][1], graph[fields.EDGE_INDEX][0]
        else:
            vectors, share = pair_vectors(distant, positions, cell[0]), 1.0
            i, j = distant.first, distant.second
        tension = share * (fixed.index_select(0, j) * fixed.index_select(0, i)) * operator.slopes
        change = linear(vectors, tension[:, None] * vectors.detach())
        gradient = fixed[:, None] * mesh_field(mesh, on_mesh)
        # A strain of the cell alone moves atoms against the mesh, which the virial does not know.
        virial = mesh_virial(mesh, waves) - torch.mm(positions.detach().t(), gradient)
        virial = virial + 0.5 * torch.dot(fixed, shift) * torch.eye(
            3, dtype=shift.dtype, device=shift.device
        )
        change = change + linear(positions, gradient)
        change = change + linear(cell[0], torch.mm(mesh.inverse.t(), virial))
    felt = operator.constant * potential
    return (charges - 0.5 * fixed) * felt + (operator.constant / charges.shape[0]) * change


def linear(variable: Tensor, gradient: Tensor) -> Tensor:
    """Zero, with a given gradient."""
    return ((variable - variable.detach()) * gradient.detach()).sum()
