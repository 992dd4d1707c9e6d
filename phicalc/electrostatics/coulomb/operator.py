"""The Coulomb interaction A of a structure or a batch: one object, which way it is summed inside.

Batches, training and small structures take dense matrices; one large structure takes the
matrix-free operator of ``particle_mesh.py``. Nobody else asks which, but for the solvers, which
factorise a matrix and iterate without one.
"""

from typing import Dict, Optional

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices
from phicalc.electrostatics.coulomb.particle_mesh import (
    CoulombOperator,
    apply_operator,
    coulomb_energies,
    coulomb_operator,
)
from phicalc.electrostatics.padding import multiply_rows, row_slots, to_rows


class Coulomb:
    """A, made by `coulomb_of` or `no_coulomb`; N atoms, B structures, M atoms in the largest.

    Attributes
    ----------
    matrices
        (B, M, M) | eV/e² | A, padded with zeros; differentiable to any order. None: matrix-free
    operator
        A of one structure where there are no matrices; None besides: charges do not interact
    slots
        (N,) | place of every atom in the flattened rows of the matrices
    graph
        what A was made of
    """

    def __init__(
        self,
        matrices: Optional[Tensor],
        operator: Optional[CoulombOperator],
        slots: Tensor,
        graph: Dict[str, Tensor],
    ) -> None:
        self.matrices = matrices
        self.operator = operator
        self.slots = slots
        self.graph = graph

    def apply(self, charges: Tensor) -> Tensor:
        """A q (N,) | V of charges (N,) | e; without gradient where there are no matrices."""
        matrices, operator = self.matrices, self.operator
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
        return Coulomb(matrices, self.operator, self.slots, graph)

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
    if by_matrices(graph, dense_limit, training):
        slots, _ = row_slots(graph[fields.BATCH], graph[fields.TOTAL_CHARGE].shape[0])
        return Coulomb(coulomb_matrices(graph, widths), None, slots, graph)
    operator = coulomb_operator(graph, widths, cutoff, accuracy)
    return Coulomb(None, operator, graph[fields.BATCH], graph)


def no_coulomb(graph: Dict[str, Tensor], dense_limit: int, training: bool) -> Coulomb:
    """The same for charges that do not interact: A = 0. Arguments of `coulomb_of`."""
    if not by_matrices(graph, dense_limit, training):
        return Coulomb(None, None, graph[fields.BATCH], graph)
    num = graph[fields.TOTAL_CHARGE].shape[0]
    slots, size = row_slots(graph[fields.BATCH], num)
    zeros = torch.zeros(num, size, size, dtype=torch.float64, device=slots.device)
    return Coulomb(zeros, None, slots, graph)
