"""The training loss: residuals per property, summed, and normalised over the joint batch."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from phicalc import fields
from phicalc.train.config import LossConfig, Property


def residuals(
    prediction: Mapping[str, Tensor], graph: Mapping[str, Tensor], properties: Iterable[Property]
) -> dict[str, Tensor]:
    """Predicted minus reference values.

    Parameters
    ----------
    prediction, graph
        Model output and labelled input; shapes and units as in :mod:`phicalc.fields`.
    properties
        Which of them to compare.

    Returns
    -------
    dict
        ``energy`` (B,) in eV per atom; ``forces`` (N, 3) in eV/Å; ``stress`` (B, 3, 3) in eV/Å³;
        ``charges`` (N,) in e; ``dipole`` (B, 3) in e·Å. All float64, and zero where the
        reference is NaN: a label that this structure lacks.
    """
    result: dict[str, Tensor] = {}
    for name in properties:
        reference = graph[name].double()
        difference = torch.where(reference.isnan(), 0.0, prediction[name].double() - reference)
        if name == fields.ENERGY:
            difference = difference / atoms_per_structure(graph)
        result[name] = difference
    return result


def atoms_per_structure(graph: Mapping[str, Tensor]) -> Tensor:
    """Number of atoms of each structure, (B,) float64."""
    structures = graph[fields.CELL].shape[0]
    return torch.bincount(graph[fields.BATCH], minlength=structures).double()


def summed_losses(differences: Mapping[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """Unweighted loss of every property, summed over its components.

    Huber: ½ r² where |r| < δ, else δ (|r| − ½ δ) (doi:10.1214/aoms/1177703732). MSE: r².
    """
    result = {}
    for name, difference in differences.items():
        if config.kind == "mse":
            result[name] = difference.square().sum()
        else:
            result[name] = torch.nn.functional.huber_loss(
                difference,
                torch.zeros_like(difference),
                reduction="sum",
                delta=getattr(config.deltas, name),
            )
    return result


def joint_loss(
    sums: Mapping[str, Tensor], config: LossConfig, structures: int, atoms: int
) -> Tensor:
    """Weighted sum of the means, ``Σ_p w_p · sum_p / n_p``.

    ``structures`` and ``atoms`` count the *joint* batch of all processes: then the sum of the
    processes' losses, and of their gradients, is that of one process with the whole batch. They
    count structures without a label too, so that a label pulls alike whatever its batch lacks.
    """
    terms = [
        getattr(config.weights, name) * value / fields.PROPERTY[name].size(structures, atoms)
        for name, value in sums.items()
    ]
    return torch.stack(terms).sum()
