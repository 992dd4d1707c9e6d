"""Points of a lattice, and pairs of atoms and images: what sums over a crystal run over."""

from typing import List, NamedTuple

import torch
from torch import Tensor

from phicalc.errors import UnsupportedError

BLOCK: int = 1 << 22
"""Pairs and images that are looked at together."""

LARGEST_SUM: float = 16.0
"""GB that a sum may take, as far as they can be told before."""


class ImagePairs(NamedTuple):
    """Pairs of atoms and images, each once; an atom pairs with its images. P pairs."""

    first: Tensor  # (P,) int64 | i
    second: Tensor  # (P,) int64 | j
    translations: Tensor  # (P, 3) | S, whole cell vectors from j to its image


def lattice_points(reach: Tensor, like: Tensor) -> Tensor:
    """All integer triples from −reach to reach (3,), the origin in the middle: (K, 3)."""
    axes: List[Tensor] = []
    for axis in range(3):
        n = int(reach[axis])
        axes.append(torch.arange(-n, n + 1, device=like.device))
    return torch.cartesian_prod(axes[0], axes[1], axes[2]).to(like.dtype)


def image_pairs(positions: Tensor, cell: Tensor, reach: Tensor, block: int = BLOCK) -> ImagePairs:
    """Every pair of atoms and images with r² < reach_i + reach_j; no gradient.

    Parameters
    ----------
    positions, cell
        (N, 3), (3, 3) | Å
    reach
        (N,) | Å² | half the square of a cutoff that is the same for all, say
    block
        how many to look at together, which bounds the memory of the search

    Raises
    ------
    UnsupportedError
        There are more of them than fit into memory.
    """
    positions, cell = positions.detach(), cell.detach()
    num_atoms = positions.shape[0]
    inverse = torch.linalg.inv(cell)
    fractional = torch.mm(positions, inverse)
    # Planes of the lattice are 1/|b| apart; the nearest image is at most half a cell away.
    heights = 1.0 / torch.linalg.vector_norm(inverse, dim=0)
    cutoff = (2.0 * reach.max()).sqrt()
    images = lattice_points((cutoff / heights + 0.5).floor(), positions)
    steps = torch.mm(images, cell)
    square_steps = (steps * steps).sum(1)[None, :]
    rows = max(1, block // (num_atoms * images.shape[0]))
    first: List[Tensor] = []
    second: List[Tensor] = []
    translations: List[Tensor] = []
    found = 0
    for start in range(0, num_atoms, rows):
        count = min(rows, num_atoms - start)
        indices = torch.triu_indices(count, num_atoms - start, device=positions.device) + start
        i, j = indices[0], indices[1]
        between = fractional[j] - fractional[i]
        nearest = -between.round()
        origin = torch.mm(between + nearest, cell)
        # |origin + step|² < reach_i + reach_j, in few passes over the largest array of the sum
        rest = reach[i] + reach[j] - (origin * origin).sum(1)
        square = torch.addmm(square_steps, origin, steps.t(), alpha=2.0)
        close = torch.nonzero(square < rest[:, None])
        pair, image = close[:, 0], close[:, 1]
        once = (i != j)[pair] | (image > images.shape[0] // 2)
        pair, image = pair[once], image[once]
        first.append(i[pair])
        second.append(j[pair])
        translations.append(nearest[pair] + images[image])
        found += pair.shape[0]
        require_room(25.0 * found, "a list of its pairs", num_atoms)
    return ImagePairs(torch.cat(first), torch.cat(second), torch.cat(translations))


def pair_vectors(pairs: ImagePairs, positions: Tensor, cell: Tensor) -> Tensor:
    """r_j + S·cell − r_i (P, 3) | Å, differentiable in positions and cell."""
    vectors = positions.index_select(0, pairs.second) - positions.index_select(0, pairs.first)
    return vectors + torch.mm(pairs.translations, cell)


def require_room(numbers: float, what: str, num_atoms: int, largest: float = LARGEST_SUM) -> None:
    """Raise UnsupportedError where so many numbers, of all arrays, are more than fit in."""
    size = 8e-9 * numbers
    if size > largest:
        raise UnsupportedError(
            f"expected a structure whose Coulomb sum fits into memory, got one of {num_atoms} "
            f"atoms, for which {what} would take {int(size)} GB; use fewer atoms, pbc=False for "
            "a molecule in vacuum, or pbc=True for a cluster of very many atoms"
        )
