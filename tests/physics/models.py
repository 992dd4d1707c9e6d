"""The models that the physics suite runs over: a new backbone joins by one line here."""

import torch
from ase import Atoms

from phicalc import fields
from phicalc.data.graph import Graph, collate, graph_dict, to_graph
from phicalc.model.config import DensityConfig, ModelConfig, PaiNNConfig, SchNetConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from tests.heads import HEADS as TABLE

CUTOFF = 4.0
ELEMENTS = [1, 6, 8, 11, 13, 17]

BACKBONES = {
    "schnet": SchNetConfig(features=12, filters=12, layers=2, radial=12),
    "painn": PaiNNConfig(features=12, layers=2, radial=8),
    "density": DensityConfig(features=16, layers=2, radial=10),
}
FED_BACK = {
    "phi feedback": "phi",
    "qeq feedback": "qeq",
    "phi-coulomb feedback": "phi-coulomb learned",
    "local feedback": "local",
}
HEADS = {name: TABLE[name] for name in TABLE if name != "phi-coulomb without"}
HEADS |= {name: TABLE[head] for name, head in FED_BACK.items()}

# Invariants that a baseline breaks by its nature: test → head → why. They are tested all the
# same, and must fail.
BROKEN = {
    "test_supercell": {
        "phi-spectral": "k modes serve a structure of any size, so the energy is not extensive",
        "pooled": "one scalar serves a structure of any size, so the energy is not extensive",
    },
    "test_supercell_of_ions": {
        "phi-spectral": "k modes serve a structure of any size, so the energy is not extensive",
        "pooled": "one scalar serves a structure of any size, so the energy is not extensive",
    },
    "test_distant_ions_are_as_many_single_ones": {
        "phi-spectral": "ions that do not touch share the k modes between them",
        "pooled": "one scalar serves a structure of any size",
    },
    "test_fragments_without_edges_are_additive": {
        "phi-spectral": "two molecules that do not touch share the k modes between them",
        "pooled": "the mean over all atoms mixes molecules that do not touch",
    },
}


def make_model(backbone: str, head: str, dtype: str) -> Differentiated:
    """A small model with random parameters, none of them at a value that hides a term."""
    torch.manual_seed(7)
    config = ModelConfig(
        backbone=BACKBONES[backbone],
        heads=HEADS[head],
        cutoff=CUTOFF,
        charge_feedback=head in FED_BACK,
        dtype=dtype,
    )
    reference = {z: -0.1 * z for z in ELEMENTS}
    potential = Potential(config, ELEMENTS, reference, average_neighbours=15.0)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        potential.contact.closest.fill_(1.05)  # so that it acts within the molecules of the suite
    return Differentiated(potential).eval()


def evaluate(model: torch.nn.Module, *structures: Atoms) -> Graph:
    """The model's output on one or several structures, as one batch."""
    graphs = [to_graph(atoms, CUTOFF) for atoms in structures]
    output: Graph = model(graph_dict(collate(graphs)))
    return output


def energy(model: torch.nn.Module, atoms: Atoms) -> float:
    """Total energy of one structure | eV."""
    return float(evaluate(model, atoms)[fields.ENERGY])
