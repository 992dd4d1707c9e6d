"""Errors that the code inside a model file raises reach the caller as what they are."""

import pickle
from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk as build_bulk
from ase.io import read, write
from typer.testing import CliRunner

from phicalc import PhiCalculator, fields, predict
from phicalc.cli import app
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import (
    ConvergenceError,
    PhicalcError,
    SimulationError,
    UnsupportedError,
)
from phicalc.serving import torchscript
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from phicalc.serving.prediction import predict_file
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from tests.reference_models import (
    LennardJones,
    lennard_jones_metadata,
    small_metadata,
    small_potential,
)

CALLS = {
    "forward": lambda model, graph: model(graph),
    "energy": lambda model, graph: model.energy(graph),
    "response": lambda model, graph: model.response(graph),
}


@cache
def equilibrating(tolerance: float = 0.0) -> LoadedModel:
    """A network with the qeq head, whose iterations stop at this residual (0: as they should)."""
    network = small_potential("float64", heads=[{"kind": "qeq"}])
    head = network.potential.heads[0]
    head.dense_limit, head.tolerance = 0, tolerance
    # as old files say of themselves: slabs are left to the code inside
    metadata = small_metadata("float64", heads=["qeq"], supports_partial_pbc=True)
    return load_model(model_bytes(network, metadata))


def crystal() -> Atoms:
    atoms = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def slab() -> Atoms:
    atoms = crystal()
    atoms.pbc = (True, True, False)
    return atoms


def graph_of(*structures: Atoms) -> dict[str, torch.Tensor]:
    return graph_dict(collate([to_graph(atoms, 4.0) for atoms in structures]))


def assert_plain(error: pytest.ExceptionInfo[PhicalcError]) -> None:
    """Nothing of TorchScript: neither in the message nor as the cause shown above it."""
    assert "\n" not in str(error.value)
    assert "phicalc.errors" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__cause__ is not None


@pytest.mark.parametrize("call", CALLS)
def test_a_slab_in_every_way_a_model_is_called(call):
    with pytest.raises(UnsupportedError, match=r"^expected (pbc|a structure)") as raised:
        CALLS[call](equilibrating(), graph_of(slab()))
    assert_plain(raised)


@pytest.mark.parametrize("call", ["forward", "energy"])
def test_charges_that_do_not_converge(call):
    assert torch.isfinite(equilibrating()(graph_of(crystal()))[fields.FORCES]).all()
    with pytest.raises(ConvergenceError, match=r"^expected charges solved to .* on$") as raised:
        CALLS[call](equilibrating(1e-2), graph_of(crystal()))
    assert_plain(raised)


def test_an_unpickled_model_raises_the_same():
    with pytest.raises(UnsupportedError, match="one structure for a response"):
        pickle.loads(pickle.dumps(equilibrating())).response(graph_of(crystal(), crystal()))


class Raising(torch.nn.Module):
    """Raises what a model file of a later phicalc, or of no care, might."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.plain:
            raise KeyError("not of phicalc")
        raise UnsupportedError("expected phicalc.errors.DataError: two lines,\ngot both")


def test_the_message_is_whole_and_no_other_error_is_taken_for_ours():
    ours, foreign = (
        load_model(model_bytes(Raising(plain), lennard_jones_metadata())) for plain in (False, True)
    )
    with pytest.raises(UnsupportedError) as raised:
        ours(graph_of(crystal()))
    assert str(raised.value) == "expected phicalc.errors.DataError: two lines,\ngot both"
    with pytest.raises(torch.jit.Error, match="not of phicalc"):
        foreign(graph_of(crystal()))


def test_an_error_that_only_a_newer_phicalc_has(monkeypatch):
    monkeypatch.delitem(torchscript._ERRORS, "UnsupportedError")
    with pytest.raises(PhicalcError, match=r"^expected pbc") as raised:
        equilibrating()(graph_of(slab()))
    assert type(raised.value) is PhicalcError


# --- through what users call --------------------------------------------------------------------


@pytest.mark.parametrize("structure", [slab, crystal])
def test_the_calculator_and_predict(structure, tmp_path):
    kind, tolerance = (UnsupportedError, 0.0) if structure is slab else (ConvergenceError, 1e-2)
    model, atoms = equilibrating(tolerance), structure()
    atoms.calc = PhiCalculator(model)
    with pytest.raises(kind, match=r"^expected") as raised:
        atoms.get_potential_energy()
    assert_plain(raised)
    assert atoms.calc.results == {}
    write(tmp_path / "in.extxyz", [structure(), structure()])
    if structure is slab:  # a batch of one: a larger one solves densely, and converges
        frames, batch_size, named = [crystal(), slab()], 2, "frames 0 to 1: expected pbc"
    else:
        frames, batch_size, named = [crystal()], 1, "frame 0: expected charges"
    with pytest.raises(kind, match=f"^{named}") as raised:
        predict(model, frames, batch_size=batch_size)
    assert_plain(raised)
    with pytest.raises(kind, match=r"in\.extxyz: frame 0: expected") as raised:
        predict_file(model, tmp_path / "in.extxyz", tmp_path / "out.xyz", batch_size=1)
    assert_plain(raised)
    assert not (tmp_path / "out.xyz").exists()


@pytest.mark.parametrize(
    ("structure", "tolerance", "told", "status"),
    [(slab, 0.0, "got a slab or a wire", 2), (crystal, 1e-2, "expected charges solved", 3)],
)
def test_eval_says_it_in_one_line(structure, tolerance, told, status, tmp_path):
    atoms = structure()
    atoms.info["energy"] = 0.0
    atoms.arrays["forces"] = np.zeros((len(atoms), 3))
    write(tmp_path / "data.extxyz", atoms)
    (tmp_path / "model.pt").write_bytes(equilibrating(tolerance).data)
    arguments = ["eval", tmp_path / "model.pt", tmp_path / "data.extxyz", "-o", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    assert result.stderr.startswith(f"error: {tmp_path / 'data.extxyz'}: frame 0: expected")
    assert told in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


class Fragile(torch.nn.Module):
    """Lennard-Jones argon that gives up where two atoms come within 3.1 Å."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LennardJones()

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vectors = graph[fields.EDGE_VECTORS]
        if bool((vectors.square().sum(1) < 3.1**2).any()):
            raise ConvergenceError("expected atoms 3.1 Å apart")
        return self.inner(graph)


@pytest.fixture
def pair() -> Atoms:
    """Two atoms of argon that fall towards each other."""
    atoms = Atoms("Ar2", [[0.0, 0.0, 0.0], [3.4, 0.0, 0.0]])
    atoms.calc = PhiCalculator(load_model(model_bytes(Fragile(), lennard_jones_metadata())))
    return atoms


def test_a_run_keeps_the_frame_at_which_the_model_gave_up(pair, tmp_path):
    momentum = 2e-3 / units.fs * pair.get_masses()[0]
    pair.set_momenta([[momentum, 0.0, 0.0], [-momentum, 0.0, 0.0]])
    settings = MDSettings(steps=500, ensemble="nve", timestep=2.0, trajectory_every=1)
    with pytest.raises(SimulationError, match=r"stopped at step .*3\.1 Å apart") as raised:
        MolecularDynamics(pair, settings, tmp_path).run()
    assert_plain(raised)
    assert isinstance(raised.value.__cause__, ConvergenceError)
    distances = [atoms.get_distance(0, 1) for atoms in read(tmp_path / "md.traj", ":")]
    assert len(distances) > 5 and min(distances) >= 3.1
    assert read(tmp_path / "md-stopped.extxyz").get_distance(0, 1) < 3.1


def test_a_relaxation_keeps_its_steps(pair, tmp_path):
    settings = RelaxSettings(max_force=1e-4)
    with pytest.raises(SimulationError, match=r"broke off: expected atoms 3\.1 Å apart") as raised:
        Relaxation(pair, settings, tmp_path).run()
    assert_plain(raised)
    distances = [atoms.get_distance(0, 1) for atoms in read(tmp_path / "relax.traj", ":")]
    assert distances[0] == pytest.approx(3.4) and min(distances) >= 3.1
