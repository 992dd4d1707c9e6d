"""The inverse of an earlier geometry, for the potential of flowing charge.

In MD the matrix 1 + KL, K = J + A, changes little from step to step. Its inverse, made once for
many steps and roughly, takes the place of most iterations, each of which costs a Coulomb sum over
all atoms: what is left of the residual is minimised over the steps that it proposes (generalised
conjugate residuals, S. C. Eisenstat et al., doi:10.1137/0720023). It need not be symmetric nor
good; what it can't do is left to the conjugate gradients.
"""

import math
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from phicalc import fields
from phicalc.electrostatics.coulomb.ewald import coulomb_matrices
from phicalc.electrostatics.coulomb.operator import Coulomb
from phicalc.electrostatics.laplacian import dense_laplacian, laplace

MOST_STEPS: int = 12
"""Steps after which an inverse is too old to go on with."""

ROUGH_RANGE: float = 2.0
"""Where both of Ewald's sums end, in the units of NEAR_RANGE: erfc(2) = 5e-3. Less accurate or
more, the iterations are the same."""


def flow_inverse(
    weights: Tensor,
    hardness: Tensor,
    widths: Tensor,
    graph: Dict[str, Tensor],
    rough_range: float = ROUGH_RANGE,
) -> Tensor:
    """(1 + (J + A) L)⁻¹ of one structure, roughly.

    Parameters
    ----------
    weights, hardness, widths
        (E,), (N,), (N,) | e/V, eV/e², Å | w, J and σ
    graph
        needs POSITIONS, CELL, PBC, BATCH and EDGE_INDEX
    rough_range
        where both of Ewald's sums end

    Returns
    -------
    (N, N) float32

    Raises
    ------
    UnsupportedError
        The structure is periodic in one or two directions, or too large.
    """
    rough: Dict[str, Tensor] = {
        fields.POSITIONS: graph[fields.POSITIONS].float(),
        fields.CELL: graph[fields.CELL].float(),
        fields.PBC: graph[fields.PBC],
        fields.BATCH: graph[fields.BATCH],
    }
    matrix = coulomb_matrices(rough, widths.float(), near_range=rough_range, wave_range=rough_range)
    kernel = matrix[0] + torch.diag(hardness.float())
    laplacian = dense_laplacian(weights.float(), graph[fields.EDGE_INDEX], hardness.shape[0])
    system = torch.mm(kernel, laplacian)
    system.diagonal().add_(1.0)
    inverse: Tensor = torch.linalg.inv_ex(system)[0]
    return inverse


def descend_by_inverse(
    potential: Tensor,
    residual: Tensor,
    inverse: Tensor,
    adjacency: Tensor,
    degree: Tensor,
    hardness: Tensor,
    coulomb: Coulomb,
    target: float,
    most_steps: int = MOST_STEPS,
) -> Tuple[Tensor, Tensor, int]:
    """φ and s − (1 + K L) φ, both (N,) | V, after so many steps with about (1 + K L)⁻¹ (N, N).

    Parameters
    ----------
    potential, residual
        (N,) | V | where to start, and s − (1 + K L) φ there
    adjacency, degree
        L = diag(degree) − adjacency
    hardness, coulomb
        J (N,) | eV/e², and A
    target
        of the square rᵀLr of the residual
    """
    steps: List[Tensor] = []
    images: List[Tensor] = []
    flow = laplace(adjacency, degree, residual)
    while float(torch.dot(residual, flow)) > target and len(steps) < most_steps:
        step = torch.mv(inverse, residual.to(inverse.dtype)).to(residual.dtype)
        charges = laplace(adjacency, degree, step)
        image = step + (hardness * charges + coulomb.apply(charges))
        for earlier, of_earlier in zip(steps, images):
            share = float(torch.dot(of_earlier, image))
            step = torch.sub(step, earlier, alpha=share)
            image = torch.sub(image, of_earlier, alpha=share)
        size = float(torch.linalg.vector_norm(image))
        if not 0.0 < size < math.inf:  # of a matrix that had no inverse
            break
        step, image = step / size, image / size
        length = float(torch.dot(image, residual))
        potential = torch.add(potential, step, alpha=length)
        residual = torch.sub(residual, image, alpha=length)
        flow = laplace(adjacency, degree, residual)
        steps.append(step)
        images.append(image)
    return potential, residual, len(steps)
