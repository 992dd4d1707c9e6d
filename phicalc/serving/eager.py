"""A network in memory in place of its file."""

from typing import Any

import torch
from torch import Tensor

from phicalc.serving.metadata import ModelMetadata


class EagerModel:
    """What :class:`phicalc.serving.model_file.LoadedModel` is, without TorchScript.

    Parameters
    ----------
    module
        `phicalc.model.derivatives.Differentiated` in evaluation mode, or anything that maps a
        graph to outputs.
    metadata
        What may be asked of it.
    device
        Where it computes.
    """

    def __init__(self, module: Any, metadata: ModelMetadata, device: torch.device) -> None:
        self.module = module
        self.metadata = metadata
        self.device = device

    def __call__(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a graph (names, shapes and units: :mod:`phicalc.fields`)."""
        outputs: dict[str, Tensor] = self.module(graph)
        return outputs

    def response(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        """Polarisation, Born charges and polarisability of one structure."""
        outputs: dict[str, Tensor] = self.module.response(graph)
        return outputs

    def inverse(self, graph: dict[str, Tensor]) -> Tensor:
        """INVERSE (N, N) of a structure, for evaluations of its later geometries."""
        output: Tensor = self.module.inverse(graph)
        return output

    def features(self, graph: dict[str, Tensor]) -> list[Tensor]:
        """Features (N, F) of the atoms after each message step, invariant under rotation."""
        outputs: list[Tensor] = self.module.features(graph)
        return outputs
