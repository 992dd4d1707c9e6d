"""What the iterative solves say of themselves, in Python and in TorchScript alike."""

import math

import pytest
import torch
from ase.build import molecule as build_molecule
from torch import nn

from phicalc import PhiCalculator
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.heads.phi_coulomb import PhiCoulombHead
from phicalc.electrostatics.heads.qeq import QEqHead
from phicalc.electrostatics.solvers.charges import (
    LARGEST_RESIDUAL,
    check_converged,
    relative_square,
    root,
)
from phicalc.errors import ConvergenceError
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from tests.reference_models import small_metadata, small_potential

CUTOFF = 4.0
WAYS = {"eager": lambda module: module, "scripted": torch.jit.script}
# What TorchScript raises names the error that it stands for.
UNCONVERGED = r"ConvergenceError|expected charges solved to a relative residual of 1\.0+e-06"


@pytest.fixture(params=WAYS)
def scripted(request: pytest.FixtureRequest):
    """A function or a module as it is, and as a model file holds it."""
    return WAYS[request.param]


def inputs(x: float = 0.0) -> tuple[list[torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """Features that are nothing, species and graph of a water molecule in the plane at x."""
    water = build_molecule("H2O")
    water.positions[:, 0] = x
    graph = graph_dict(collate([to_graph(water, CUTOFF)]))
    return [torch.zeros(3, 4)], torch.tensor([1, 0, 0]), graph


def qeq_head() -> QEqHead:
    head = QEqHead(4, 0, [1, 8], CUTOFF).eval()
    head.dense_limit = 0
    return head


def phi_coulomb_head() -> PhiCoulombHead:
    head = PhiCoulombHead(4, 0, [1, 8], CUTOFF, 2.0, 10.0, [0.0, 0.0], "formal", True).eval()
    head.dense_limit = 0
    return head


@pytest.mark.parametrize("residual", [math.nan, math.inf, 1.01 * LARGEST_RESIDUAL])
def test_what_is_not_converged_is_an_error(residual, scripted):
    with pytest.raises(Exception, match=UNCONVERGED):
        scripted(check_converged)(residual)


def test_what_is_converged_is_none(scripted):
    assert scripted(check_converged)(LARGEST_RESIDUAL) is None


def test_roots_of_relative_squares(scripted):
    """Rounding below zero is none; NaN stays NaN, infinity stays infinite, 0/0 is nothing left."""
    relative, root_of = scripted(relative_square), scripted(root)
    assert root_of(relative(9.0, 4.0)) == 1.5
    assert root_of(-1e-30) == 0.0
    assert math.isnan(root_of(math.nan)) and math.isnan(root_of(relative(math.nan, 0.0)))
    assert math.isnan(root_of(relative(1.0, math.nan)))
    assert root_of(math.inf) == math.inf
    assert relative(0.0, 0.0) == 0.0


def test_equilibration_of_nan_does_not_converge(scripted):
    head = qeq_head()
    head.electronegativity.constant.data[0] = math.nan
    with pytest.raises(Exception, match=UNCONVERGED):
        scripted(head)(*inputs())


def test_flow_from_nan_does_not_converge(scripted):
    head = phi_coulomb_head()
    head.source.constant.data[0] = math.nan
    with pytest.raises(Exception, match=UNCONVERGED):
        scripted(head)(*inputs())


class Response(nn.Module):
    """The response of a head as a forward, which is what is scripted."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, features: list[torch.Tensor], species: torch.Tensor, graph: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        return self.head.response(features, species, graph).polarisability


@pytest.mark.parametrize("make", [qeq_head, phi_coulomb_head])
def test_a_field_across_a_flat_molecule(make, scripted):
    """At x = 0 it drives no charge at all: nothing divided by nothing is a solve that is done."""
    found = scripted(Response(make()))(*inputs(0.0)).detach()
    elsewhere = Response(make())(*inputs(0.3)).detach()
    torch.testing.assert_close(found, elsewhere, atol=1e-7, rtol=0.0)
    assert float(found[0].abs().max()) < 1e-9 < 0.01 < float(found[1, 1])


def served_with_nan() -> LoadedModel:
    model = small_potential("float64", heads=[{"kind": "phi-coulomb"}])
    model.potential.heads[0].dense_limit = 0
    model.potential.heads[0].source.constant.data.fill_(math.nan)
    return load_model(model_bytes(model, small_metadata("float64", heads=["phi-coulomb"])))


def test_a_served_solve_of_nan_is_refused(molecule):
    molecule.calc = PhiCalculator(served_with_nan())
    with pytest.raises(ConvergenceError, match=r"charges solved to a .* 1\.0+e-06, got nan"):
        molecule.get_potential_energy()
