"""What an electrostatics head is: one file in this room, written to this signature.

The energy of a head that solves equations is stationary in its unknowns y, charges or a potential,

    E(x) = F(y*, c(x), x),   ∂F/∂y = 0 at y*

with coefficients c from the features. So it is written in three methods:

    coefficients   c of a batch, from features, elements and edges: the learned part, no solve
    solve          y*, without gradients but in training; all iterations are in here
    energies       F at fixed y, per atom; its gradients are the forces

and ``forward`` puts them together. What may be asked of a head, its configuration declares
(``capabilities``, in ``phicalc.model.config``).
"""

from typing import ClassVar, Dict, List, Tuple

from torch import Tensor, nn


class Head(nn.Module):
    """Base of all heads; what it leaves out, `Potential` finds by name where a head has it.

    adjoint_energies(gradient, result, features, species_index, graph) -> Tensor
        of heads that solve for charges: energies (N,) | eV of zero sum, whose gradient is that of
        ∂E/∂q · dq/dx, where ``gradient`` (N,) | V is ∂E/∂q of an energy that depends on the
        charges and ``result`` what ``forward`` gave. See ``phicalc.model.feedback``.
    inverse(species_index, graph) -> Tensor
        of heads whose solves take INVERSE: what is given as such at later geometries.
    response(features, species_index, graph) -> FieldResponse
        of heads that feel an electric field: polarisation of one structure, and what follows.

    Attributes
    ----------
    physical
        names of parameters with a physical meaning, which learn at a rate of their own and do not
        decay
    needs_positions
        on heads whose energy depends on positions and cell beyond the edge vectors
    refinements
        on heads that solve for charges: orders of derivatives of the solution that training on
        crystals gets right. One does for losses on charges, energies, forces and stress, since
        the energy is stationary; a loss on derivatives of the charges needs one more
    """

    physical: ClassVar[Tuple[str, ...]] = ()

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Energies of the atoms of a batch, and whatever else the head knows.

        Parameters
        ----------
        features
            T tensors (N, F), node features after each message step
        species_index
            (N,) int64 | place of each atom's element in the model's list
        graph
            see ``phicalc.fields``; every head is given all of it, and says what it needs

        Returns
        -------
        ENERGIES (N,) float64 | eV, extensive and smooth; CHARGES (N,) float64 | e of a head that
        has them; AUXILIARY_LOSS (B,) in training; and what the head reports of its solve.

        Raises
        ------
        UnsupportedError
            A structure or a field that the head cannot do.
        ConvergenceError
        """
        raise NotImplementedError
