"""Small models to serve: one whose numbers ASE knows too, and one of the real kind."""

from functools import cache

import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor, nn

from phicalc import fields
from phicalc.model.config import ModelConfig, PaiNNConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.metadata import ModelMetadata
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes

ELEMENTS = [1, 6, 8, 11, 17]


class LennardJones(nn.Module):
    """E = ½ Σ_ij 4ε[(σ/r)¹² − (σ/r)⁶ − shift] + Q²: ASE's LennardJones, plus a charge term.

    Charges are Q/N. Forces and stress are written out by hand, without autograd.
    """

    def __init__(self, epsilon: float = 0.1, sigma: float = 2.5, cutoff: float = 6.0) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.tensor(epsilon, dtype=torch.float64))
        self.sigma = sigma
        self.shift = (sigma / cutoff) ** 12 - (sigma / cutoff) ** 6

    def forward(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors, edge_index = graph[fields.EDGE_VECTORS], graph[fields.EDGE_INDEX]
        number = graph[fields.SPECIES].shape[0]
        total_charge = graph[fields.TOTAL_CHARGE]
        square = (vectors * vectors).sum(1)
        sixth = (self.sigma * self.sigma / square) ** 3
        pair = 2.0 * self.epsilon * (sixth * sixth - sixth - self.shift)
        slope = 24.0 * self.epsilon * (2.0 * sixth * sixth - sixth) / square
        zeros = torch.zeros_like(graph[fields.POSITIONS])
        energies = zeros[:, 0].index_add(0, edge_index[1], pair) + total_charge**2 / number
        forces = zeros.index_add(0, edge_index[1], -slope[:, None] * vectors)
        virial = -0.5 * torch.mm((slope[:, None] * vectors).t(), vectors)
        volume = torch.linalg.det(graph[fields.CELL]).abs().clamp(min=1e-9)
        return {
            fields.ENERGY: energies.sum().view(1),
            fields.ENERGIES: energies,
            "energy_pair": pair.sum().view(1),
            "energy_charge": total_charge**2,
            fields.FORCES: forces,
            fields.STRESS: (virial / volume)[None],
            fields.CHARGES: (total_charge / number).expand(number),
        }


def lennard_jones_metadata(**changes: object) -> ModelMetadata:
    values = {
        "elements": [10, 18],
        "cutoff": 6.0,
        "dtype": "float64",
        "supports_total_charge": True,
        "parameters": 1,
    }
    return ModelMetadata.model_validate({**values, **changes})


def small_potential(dtype: str = "float32", seed: int = 0, **changes: object) -> Differentiated:
    """PaiNN with a Φ head, random parameters; fast, and of the kind that is served."""
    torch.manual_seed(seed)
    backbone = PaiNNConfig(features=8, layers=2, radial=6)
    config = ModelConfig(**{"backbone": backbone, "cutoff": 4.0, "dtype": dtype, **changes})
    potential = Potential(config, ELEMENTS, {z: -1.0 * z for z in ELEMENTS})
    return Differentiated(potential).eval()


def small_metadata(dtype: str = "float32", **changes: object) -> ModelMetadata:
    values = {
        "elements": ELEMENTS,
        "cutoff": 4.0,
        "dtype": dtype,
        "heads": ["phi"],
        "supports_total_charge": True,
    }
    return ModelMetadata.model_validate({**values, **changes})


@cache
def lennard_jones_model() -> LoadedModel:
    return load_model(model_bytes(LennardJones(), lennard_jones_metadata()))


@cache
def phi_model() -> LoadedModel:
    """PaiNN with Φ in float64, saved and loaded."""
    return load_model(model_bytes(small_potential("float64"), small_metadata("float64")))


def argon_crystal() -> Atoms:
    """A strained, shaken crystal of argon and neon."""
    atoms = bulk("Ar", "fcc", a=5.0, cubic=True) * (2, 2, 1)
    atoms.numbers[::3] = 10
    atoms.set_cell(atoms.cell @ [[1.02, 0.03, 0.0], [0.0, 0.97, 0.05], [0.01, 0.0, 1.0]], True)
    atoms.rattle(0.2, seed=3)
    return atoms
