"""AdamW or SOAP: weight decay on matrices only, and a pace of its own for physical numbers."""

from typing import Any

import torch
from torch import nn

from phicalc.train.config import AdamWConfig, SOAPConfig


def decayed_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay may touch.

    Those are matrices. Not decayed: biases and scalars (fewer than two dimensions), embeddings,
    and physical parameters, for which zero is no natural value.
    """
    physical = physical_parameters(module)
    names = set()
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}" if prefix else name
            embedding = isinstance(owner, nn.Embedding) or "embedding" in full_name
            if parameter.dim() >= 2 and not embedding and full_name not in physical:
                names.add(full_name)
    return names


def physical_parameters(module: nn.Module) -> set[str]:
    """Names of what modules list in an attribute ``physical``: hardnesses, conductances, …"""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        for name in getattr(owner, "physical", ())
    }


def build_optimizer(module: nn.Module, config: AdamWConfig | SOAPConfig) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters in three groups: decayed, not decayed, physical.

    A group's ``rate_factor`` is its learning rate relative to the configuration's.
    """
    decayed, physical = decayed_parameters(module), physical_parameters(module)
    chosen: list[list[nn.Parameter]] = [[], [], []]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = 0 if name in decayed else 2 if name in physical else 1
            chosen[group].append(parameter)
    factors = (1.0, 1.0, config.physical_rate)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": 0.0, "rate_factor": factor}
        for parameters, factor in zip(chosen, factors, strict=True)
    ]
    groups[0]["weight_decay"] = config.weight_decay
    if isinstance(config, SOAPConfig):
        return _soap(groups, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _soap(groups: list[dict[str, Any]], config: SOAPConfig) -> torch.optim.Optimizer:
    """SOAP of groups of parameters, the last of which is physical."""
    # Half a second that only runs with it should pay.
    from pytorch_optimizer import SOAP

    # A mixture of hardnesses of several elements means nothing.
    groups[-1]["max_precondition_dim"] = 0
    return SOAP(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        precondition_frequency=config.basis_steps,
        max_precondition_dim=config.largest_basis,
    )
