"""AdamW with weight decay on weight matrices only."""

import torch
from torch import nn

from phicalc.train.config import OptimizerConfig


def decayed_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay may touch.

    Those are matrices. Not decayed: biases and scalars (fewer than two dimensions), embeddings,
    and whatever a module lists by name in an attribute ``no_weight_decay``, such as physical
    parameters per element, for which zero is no natural value.
    """
    names = set()
    for prefix, owner in module.named_modules():
        exempt = set(getattr(owner, "no_weight_decay", ()))
        for name, parameter in owner.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}" if prefix else name
            embedding = isinstance(owner, nn.Embedding) or "embedding" in full_name
            if parameter.dim() >= 2 and not embedding and name not in exempt:
                names.add(full_name)
    return names


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in two groups: decayed and not."""
    decayed = decayed_parameters(module)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
