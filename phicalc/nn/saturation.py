"""Features that stop growing: the identity where networks work, bounded where they extrapolate.

Message steps multiply what they are given: features that are a few times too large where atoms are
packed as no data ever packed them are a thousand times too large two steps later, and energies of
heads are quadratic in them. So each step hands on features of a bounded size, and the next starts
from those.
"""

import torch
from torch import Tensor

FEATURE_LIMIT: float = 5.0
"""Root mean square of an atom's features from which on they grow more slowly, towards twice that.
They start at order one and stay near it: below 2.5 on all data that the shipped models know."""


def saturate(features: Tensor, limit: float = FEATURE_LIMIT) -> Tensor:
    """Features of each atom, made shorter where their size x, in units of the limit, is above 1.

    The size becomes 1 + tanh(x − 1), twice continuously differentiable; below the limit features
    pass unchanged, to the bit.

    Parameters
    ----------
    features
        (N, F) scalars, or (N, 3, F) vectors, whose lengths count; they keep their directions
    """
    square = (features * features).flatten(1).sum(1) / features.shape[-1]
    size = torch.clamp(square, min=limit * limit).sqrt() / limit
    share = (1.0 + torch.tanh(size - 1.0)) / size
    return features * (share[:, None] if features.dim() == 2 else share[:, None, None])
