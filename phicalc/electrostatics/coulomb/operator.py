"""The Coulomb interaction A of a structure or a batch: one object, which way it is summed inside.

Batches, training and small structures take dense matrices; one large structure takes the
matrix-free operator of ``particle_mesh.py``. Nobody else asks which, but for the solvers, which
factorise a matrix and iterate without one. In training on crystals the matrices are constants to
solve with, and derivatives go through the sums of ``crystal.py``.
"""

from typing import Dict, List, Optional

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.crystal import (
    CrystalSum,
    apply_crystals,
    crystal_matrix,
    crystal_sum,
)
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices
from phicalc.electrostatics.coulomb.lattice import require_room
from phicalc.electrostatics.coulomb.particle_mesh import (
    CoulombOperator,
    apply_operator,
    coulomb_energies,
    coulomb_operator,
)
from phicalc.electrostatics.padding import multiply_rows, row_slots, to_rows
from phicalc.units import COULOMB_CONSTANT


class Coulomb:
    """A, made by `coulomb_of` or `no_coulomb`; N atoms, B structures, M atoms in the largest.

    Attributes
    ----------
    matrices
        (B, M, M) | eV/e² | A, padded with zeros. None: matrix-free
    operator
        A of one structure where there are no matrices; None besides: charges do not interact
    slots
        (N,) | place of every atom in the flattened rows of the matrices
    graph
        what A was made of
    crystals
        the same A, one for each structure, differentiable; empty: the matrices are, if any
    """

    def __init__(
        self,
        matrices: Optional[Tensor],
        operator: Optional[CoulombOperator],
        slots: Tensor,
        graph: Dict[str, Tensor],
        crystals: List[CrystalSum],
    ) -> None:
        self.crystals = crystals
        self.matrices = matrices
        self.operator = operator
        self.slots = slots
        self.graph = graph

    def apply(self, charges: Tensor) -> Tensor:
        """A q (N,) | V of charges (N,) | e; without gradient where there are no matrices."""
        matrices, operator = self.matrices, self.operator
        if not torch.jit.is_scripting() and self.crystals:  # type: ignore[attr-defined]
            return apply_crystals(self.crystals, charges)
        if matrices is not None:
            return multiply_rows(matrices, charges, self.slots)
        if operator is not None:
            return apply_operator(operator, charges)
        return torch.zeros_like(charges)

    def energies(self, charges: Tensor) -> Tensor:
        """½ q_i (Aq)_i (N,) | eV, with derivatives in charges, edge vectors, positions and cell.

        The sum over a structure has the right ones: of any order by matrices, first ones without.
        """
        operator = self.operator
        if operator is not None:
            return coulomb_energies(operator, charges, self.graph)
        return 0.5 * charges * self.apply(charges)

    def coupling(self, first: Tensor, second: Tensor) -> Tensor:
        """Energies (N,) | eV, in sum q'ᵀA q'' of two sets of charges; derivatives as above."""
        if self.operator is not None:
            both = self.energies(first + second)
            return both - (self.energies(first) + self.energies(second))
        return first * self.apply(second)

    def diagonal(self) -> Tensor:
        """Self-energies (N,) | eV/e², in a matrix with those of an atom's own images."""
        matrices, operator = self.matrices, self.operator
        if matrices is not None:
            return matrices.diagonal(0, 1, 2).reshape(-1).index_select(0, self.slots)
        if operator is not None:
            return operator.diagonal
        return torch.zeros_like(self.graph[fields.POSITIONS][:, 0])

    def fixed(self) -> "Coulomb":
        """The same without gradients."""
        matrices = self.matrices
        if matrices is not None:
            matrices = matrices.detach()
        graph: Dict[str, Tensor] = {}
        for name, value in self.graph.items():
            graph[name] = value.detach()
        return Coulomb(matrices, self.operator, self.slots, graph, no_crystals())

    def refined(self) -> bool:
        """Whether derivatives of a solve with the matrices come from refining it by `apply`."""
        return len(self.crystals) > 0

    def kernel(self, hardness: Tensor) -> Tensor:
        """J + A (B, M, M) | eV/e² from hardnesses (N,), where A is a matrix."""
        matrices = self.matrices
        assert matrices is not None
        return matrices + torch.diag_embed(self.rows(hardness))

    def rows(self, values: Tensor) -> Tensor:
        """Values (N, …) of the atoms as rows (B, M, …) of the matrices, padded with zeros."""
        matrices = self.matrices
        assert matrices is not None
        return to_rows(values, self.slots, matrices.shape[0], matrices.shape[1])


def by_matrices(graph: Dict[str, Tensor], dense_limit: int, training: bool) -> bool:
    """Whether A is to be a matrix: for training, in a batch, and up to so many atoms."""
    batch = graph[fields.BATCH]
    return training or graph[fields.TOTAL_CHARGE].shape[0] > 1 or batch.shape[0] <= dense_limit


def coulomb_of(
    graph: Dict[str, Tensor],
    widths: Tensor,
    cutoff: float,
    accuracy: float,
    dense_limit: int,
    training: bool,
) -> Coulomb:
    """A of Gaussian charges.

    Parameters
    ----------
    graph
        needs POSITIONS, CELL, PBC, EDGE_INDEX, EDGE_VECTORS, BATCH and TOTAL_CHARGE
    widths
        (N,) | Å | σ
    cutoff
        r_c of the edges | Å
    accuracy
        ε of a crystal without matrices; with them it is Ewald's sum to 1e-12
    dense_limit
        atoms of one structure up to which matrices cost less
    training
        derivatives of higher order are wanted, which need matrices

    Raises
    ------
    UnsupportedError
        A structure is periodic in one or two directions, or too large.
    """
    crystals = training and bool(graph[fields.PBC].all())
    if not torch.jit.is_scripting() and crystals:  # type: ignore[attr-defined]
        return coulomb_of_crystals(graph, widths)
    if by_matrices(graph, dense_limit, training):
        slots, _ = row_slots(graph[fields.BATCH], graph[fields.TOTAL_CHARGE].shape[0])
        return Coulomb(coulomb_matrices(graph, widths), None, slots, graph, no_crystals())
    operator = coulomb_operator(graph, widths, cutoff, accuracy)
    return Coulomb(None, operator, graph[fields.BATCH], graph, no_crystals())


def coulomb_of_crystals(graph: Dict[str, Tensor], widths: Tensor) -> Coulomb:
    """The same where all structures are crystals, cheap to differentiate twice."""
    num = graph[fields.TOTAL_CHARGE].shape[0]
    slots, size = row_slots(graph[fields.BATCH], num)
    require_room(8.0 * num * size**2, "a matrix of all pairs", size)
    crystals: List[CrystalSum] = []
    matrices: List[Tensor] = []
    start = 0
    for b, count in enumerate(torch.bincount(graph[fields.BATCH], minlength=num).tolist()):
        own = slice(start, start + count)
        crystal = crystal_sum(graph[fields.POSITIONS][own], graph[fields.CELL][b], widths[own])
        padding = [0, size - count, 0, size - count]
        matrices.append(torch.nn.functional.pad(crystal_matrix(crystal), padding))
        crystals.append(crystal)
        start += count
    return Coulomb(COULOMB_CONSTANT * torch.stack(matrices), None, slots, graph, crystals)


def no_crystals() -> List[CrystalSum]:
    """An empty list."""
    nothing: List[CrystalSum] = []
    return nothing


def no_coulomb(graph: Dict[str, Tensor], dense_limit: int, training: bool) -> Coulomb:
    """The same for charges that do not interact: A = 0. Arguments of `coulomb_of`."""
    if not by_matrices(graph, dense_limit, training):
        return Coulomb(None, None, graph[fields.BATCH], graph, no_crystals())
    num = graph[fields.TOTAL_CHARGE].shape[0]
    slots, size = row_slots(graph[fields.BATCH], num)
    zeros = torch.zeros(num, size, size, dtype=torch.float64, device=slots.device)
    return Coulomb(zeros, None, slots, graph, no_crystals())
