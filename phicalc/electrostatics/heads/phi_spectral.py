"""The Φ-Module of arXiv 2505.14606, done right per molecule: potential and charges in few modes.

Potential and charges are combinations of the k lowest modes of the Laplacian, L u_m = λ_m u_m,

    φ = Σ_m f_m α_m u_m,   ρ = Σ_m f_m β_m u_m,   E = ½ φᵀρ

and that they obey Poisson's equation Lφ = ρ and carry no net charge is a matter of two further
terms in the training loss, not of construction. As against the paper's public code, every
molecule has modes and an energy of its own, the lowest ones, and the coefficients are pooled over
the set of its atoms, α_m = Σ_i u_m(i) a(h_i): whatever their order, the sign of u_m, or the choice
of vectors where eigenvalues coincide, φ = P a and ρ = P b are the same, with P = f(L).

Taking exactly k modes makes the energy jump where λ_k and λ_{k+1} cross. So f is a Fermi function,
f_m = 1/(1 + exp((λ_m − ν)/τ)) with ν such that Σ_m f_m = k, like electrons in states: P is then a
smooth function of L, and forces are exact derivatives, at degenerate eigenvalues too.

What cannot be mended: k modes are k modes for a structure of any size. The energy is not
extensive, and two molecules that do not touch share the k between them.
"""

from typing import Dict, List, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.electronegativity import starting_charges
from phicalc.electrostatics.heads.atom_parameters import AtomScalar
from phicalc.electrostatics.heads.head import Head
from phicalc.electrostatics.laplacian import apply_laplacian, edge_weights, laplacian_rows
from phicalc.electrostatics.padding import from_rows, row_slots, to_rows

BISECTIONS: int = 60
CLOSE: float = 1e-6
"""Eigenvalues nearer to each other than this are one, for divided differences."""


def occupations(
    eigenvalues: Tensor, real: Tensor, modes: int, width: float, bisections: int = BISECTIONS
) -> Tuple[Tensor, Tensor]:
    """Fermi weights f of the lowest modes, Σ f = k, and τ⁻¹ f (1 − f), both (B, M).

    Parameters
    ----------
    eigenvalues
        (B, M) | e/V
    real
        (B, M) bool | False where padded; there f is 0
    modes, width
        k, and τ | e/V; a structure with no more than k atoms keeps all of its modes, f = 1
    """
    reach = 50.0 * width
    low = torch.where(real, eigenvalues, torch.inf).amin(1, keepdim=True) - reach
    high = torch.where(real, eigenvalues, -torch.inf).amax(1, keepdim=True) + reach
    for _ in range(bisections):
        middle = 0.5 * (low + high)
        filled = torch.sigmoid((middle - eigenvalues) / width) * real
        too_many = filled.sum(1, keepdim=True) > modes
        high = torch.where(too_many, middle, high)
        low = torch.where(too_many, low, middle)
    x = (0.5 * (low + high) - eigenvalues) / width
    some = (real.sum(1, keepdim=True) > modes) & real
    occupied = torch.where(some, torch.sigmoid(x), real.to(x.dtype))
    slope = torch.where(some, torch.sigmoid(x) * torch.sigmoid(-x) / width, 0.0)
    return occupied, slope


def lowest_modes(
    laplacian: Tensor, real: Tensor, modes: int, width: float, close_by: float = CLOSE
) -> Tensor:
    """P = f(L) (B, M, M), the smooth projector on the k lowest modes, with its first derivative.

    The derivative of a function of a matrix needs eigenvalues and eigenvectors only at one point:
    dP = U (Γ ∘ UᵀdL U) Uᵀ + U diag(∂f/∂ν) Uᵀ dν with the divided differences Γ of f
    (Daleckii and Krein; N. J. Higham, doi:10.1137/1.9780898717778, theorem 3.11). It is finite
    and unique however eigenvalues lie. Second derivatives in L are not provided, and not needed:
    L has no learned parameters.
    """
    constant = laplacian.detach()
    # Padded rows get the eigenvalue −1, below all of a Laplacian, and never mix with the others.
    eigenvalues, vectors = torch.linalg.eigh(
        constant - torch.diag_embed((~real).to(constant.dtype))
    )
    occupied, slope = occupations(eigenvalues, eigenvalues > -0.5, modes, width)
    change = torch.matmul(vectors.transpose(1, 2), torch.matmul(laplacian - constant, vectors))
    difference = eigenvalues[:, :, None] - eigenvalues[:, None, :]
    close = difference.abs() < close_by
    divided = torch.where(
        close,
        -0.5 * (slope[:, :, None] + slope[:, None, :]),
        (occupied[:, :, None] - occupied[:, None, :]) / torch.where(close, 1.0, difference),
    )
    share = slope / slope.sum(1, keepdim=True).clamp(min=1e-300)
    level = (share * change.diagonal(0, 1, 2)).sum(1, keepdim=True)
    inner = divided * change + torch.diag_embed(occupied + slope * level)
    return torch.matmul(vectors, torch.matmul(inner, vectors.transpose(1, 2)))


class PhiSpectralHead(Head):
    """Potential, charges and energy in the k lowest modes of every structure's Laplacian.

    Parameters
    ----------
    features, layers
        width F and number T of the feature tensors h¹ … hᵀ
    elements
        atomic numbers of the model, in the order of the species index
    cutoff, sigma
        r_c and decay length of the edge weights | Å
    modes
        k
    width
        τ, over which modes fade out | e/V
    """

    def __init__(
        self,
        features: int,
        layers: int,
        elements: List[int],
        cutoff: float,
        sigma: float,
        modes: int,
        width: float,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.sigma = sigma
        self.modes = modes
        self.width = width
        self.potential = AtomScalar(features, layers, [0.0] * len(elements))
        # Only the product of φ and ρ enters the energy: electronegativity tells their sign.
        self.charges = AtomScalar(features, layers, starting_charges(elements))

    def forward(
        self, features: List[Tensor], species_index: Tensor, graph: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Per-atom energies, charges and potential (N,) float64, and AUXILIARY_LOSS (B,) | e².

        The auxiliary loss is the mean square of Lφ − ρ over the atoms of a structure plus the
        square of its net charge Σρ, by atom. The net charge is the loss's to lower; what is left
        of it the potential spreads over the atoms, so that reported charges sum to Q.
        """
        edge_index, batch = graph[fields.EDGE_INDEX], graph[fields.BATCH]
        num = graph[fields.TOTAL_CHARGE].shape[0]
        distances = torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1)
        weights = edge_weights(distances, self.cutoff, self.sigma)
        slots, size = row_slots(batch, num)
        laplacian = laplacian_rows(weights, edge_index, slots, num, size)
        real = to_rows(torch.ones_like(batch), slots, num, size) > 0
        projector = lowest_modes(laplacian, real, self.modes, self.width)
        values = torch.stack(
            [self.potential(features, species_index), self.charges(features, species_index)], 1
        )
        rows = torch.matmul(projector, to_rows(values, slots, num, size))
        potential, charges = from_rows(rows[:, :, 0], slots), from_rows(rows[:, :, 1], slots)
        residual = apply_laplacian(weights, edge_index, potential) - charges
        count = real.sum(1)
        nothing = torch.zeros_like(graph[fields.TOTAL_CHARGE])
        net = nothing.index_add(0, batch, charges)
        poisson = nothing.index_add(0, batch, residual**2)
        return {
            fields.ENERGIES: 0.5 * potential * charges,
            fields.CHARGES: charges,
            fields.POTENTIAL: potential,
            fields.AUXILIARY_LOSS: (poisson + net**2) / count,
        }
