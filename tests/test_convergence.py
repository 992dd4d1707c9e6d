"""A solve that does not converge is an error at every door, and NaN never is a result."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk
from ase.io import write
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from phicalc import PhiCalculator, fields, predict
from phicalc.cli import app
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.solvers.poisson import PoissonSolve
from phicalc.errors import ConvergenceError, ModelFileError, PhicalcError
from phicalc.model.derivatives import Differentiated
from phicalc.serving.eager import EagerModel
from phicalc.serving.export import describe, verify
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import join_processes
from phicalc.train.evaluation import evaluate_structures
from phicalc.train.trainer import Trainer, train
from tests.reference_models import small_metadata, small_potential

ITERATIVE = ["phi", "qeq", "phi-coulomb"]
ALL = [*ITERATIVE, "local", "phi-spectral"]
TOLD = "expected charges solved to a relative residual of 1.0"


def network(head: str, iterations: int | None) -> Differentiated:
    """A model that solves iteratively, in no more steps than these."""
    model = small_potential("float64", heads=[{"kind": head}])
    model.potential.heads[0].dense_limit = 0
    if iterations is not None:
        model.potential.heads[0].max_iterations = iterations
    return model


@cache
def served(head: str, iterations: int | None = 1) -> LoadedModel:
    model = network(head, iterations)
    return load_model(model_bytes(model, describe(model.potential)))


def salt() -> Atoms:
    """With labels, so that it can be compared and trained on."""
    atoms = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.info["energy"] = 0.0
    atoms.arrays["forces"] = np.zeros((len(atoms), 3))
    return atoms


@pytest.mark.parametrize("head", ITERATIVE)
def test_the_calculator(head):
    """It says so, keeps nothing, and goes on with a structure that converges."""
    atoms = salt()
    atoms.calc = PhiCalculator(served(head))
    with pytest.raises(ConvergenceError, match=TOLD):
        atoms.get_forces()
    assert atoms.calc.results == {}
    atoms.calc = PhiCalculator(served(head, None))
    assert np.isfinite(atoms.get_forces()).all()
    assert atoms.calc.cache_info()["solver_last_iterations"] > 1


@pytest.mark.parametrize("head", ITERATIVE)
def test_a_failure_leaves_no_start_for_the_next_solve(head):
    """What it started from may be the reason, so the next one starts cold."""
    atoms = salt()
    atoms.calc = PhiCalculator(served(head, None))
    atoms.get_potential_energy()
    (member,) = atoms.calc._evaluator._members
    solver = member.charges if head == "qeq" else member.cache
    assert solver.guess() is not None
    member.model = served(head)
    atoms.positions[0, 0] += 0.5
    with pytest.raises(ConvergenceError, match=TOLD):
        atoms.get_potential_energy()
    assert solver.guess() is None
    member.model = served(head, None)
    expected = PhiCalculator(served(head, None)).get_potential_energy(atoms)
    assert atoms.get_potential_energy() == expected


@pytest.mark.parametrize("head", ITERATIVE)
def test_predict(head):
    with pytest.raises(ConvergenceError, match=f"^frame 0: {TOLD}"):
        predict(served(head), [salt()])


@pytest.mark.parametrize("head", ITERATIVE)
@pytest.mark.parametrize("form", ["file", "network"])
def test_eval(head, form, tmp_path):
    """Exit status 3 and one line for a model file; the same of the network of a checkpoint."""
    if form == "file":
        write(tmp_path / "data.extxyz", salt())
        (tmp_path / "model.pt").write_bytes(served(head).data)
        arguments = ["eval", str(tmp_path / "model.pt"), str(tmp_path / "data.extxyz")]
        arguments += ["-o", str(tmp_path / "evaluation")]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 3
        assert f"frame 0: {TOLD}" in result.stderr
        assert not (tmp_path / "evaluation").exists()
    else:
        evaluable = EagerModel(network(head, 1), small_metadata(), torch.device("cpu"))
        with pytest.raises(ConvergenceError, match=f"^frame 0: {TOLD}"):
            evaluate_structures(evaluable, [salt()])


@pytest.mark.parametrize("head", ITERATIVE)
def test_bench(head, tmp_path):
    (tmp_path / "model.pt").write_bytes(served(head).data)
    arguments = ["bench", str(tmp_path / "model.pt"), "-n", "81", "--seconds", "0.1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 3, result.output
    assert TOLD in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("head", ["qeq", "phi-coulomb"])
@pytest.mark.parametrize("name", ["born_effective_charges", "polarization"])
def test_the_response_to_a_field(head, name):
    """Of a model that solves densely, whose response is solved iteratively all the same."""
    model = network(head, 1)
    model.potential.heads[0].dense_limit = 64
    atoms = salt()
    if head == "qeq":
        atoms.pbc, name = False, "born_effective_charges"
    atoms.calc = PhiCalculator(load_model(model_bytes(model, describe(model.potential))))
    atoms.get_potential_energy()
    if name == "polarization":  # needs no solve of its own
        assert np.isfinite(atoms.calc.get_property(name, atoms)).all()
    else:
        with pytest.raises(ConvergenceError, match=TOLD):
            atoms.calc.get_property(name, atoms)


@pytest.mark.parametrize("head", ITERATIVE)
def test_export_writes_no_model_that_does_not_converge(head):
    with pytest.raises(ModelFileError, match=f"8 atoms made up for it: {TOLD}.*no file was writ"):
        verify(network(head, 1), served(head), [salt()])


def test_a_file_that_only_reports_its_residual():
    """As files written before heads judged themselves do."""

    class Reporting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("phi", None)

        def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            output = self.inner(graph)
            output[fields.SOLVER_RESIDUAL] = torch.full([1], 1e-3)
            return output

    model = load_model(model_bytes(Reporting(), small_metadata("float64")))
    with pytest.raises(ConvergenceError, match=TOLD):
        model(graph_dict(collate([to_graph(salt(), 4.0)])))


# --- NaN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("head", ALL)
def test_nan_is_no_result(head, dense, tmp_path):
    model = network(head, None)
    part = model.potential.heads[0]
    part.dense_limit = 64 if dense else 0
    for name, parameter in part.named_parameters():
        if name in (
            "log_mu",
            "source.constant",
            "electronegativity.constant",
            "potential.constant",
        ):
            parameter.data.fill_(np.nan)
        if name == "charges.scalar.constant":
            parameter.data.fill_(np.nan)
    loaded = load_model(model_bytes(model, describe(model.potential)))
    with pytest.raises(PhicalcError, match=r"NaN|nan"):
        PhiCalculator(loaded).get_potential_energy(salt())
    with pytest.raises(PhicalcError, match=r"frame 0: .*(NaN|nan)"):
        predict(loaded, [salt()])
    evaluable = EagerModel(model, small_metadata(), torch.device("cpu"))
    with pytest.raises(PhicalcError, match=r"frame 0: .*(NaN|nan)"):
        evaluate_structures(evaluable, [salt()])


# --- training -----------------------------------------------------------------------------------


@pytest.fixture
def trainer(tmp_path):
    """A run that has been saved, ready for its next step."""
    write(tmp_path / "data.extxyz", [salt() for _ in range(4)])
    config = parse_config(
        {
            "output": str(tmp_path / "run"),
            "data": {"train": str(tmp_path / "data.extxyz"), "valid_fraction": 0.5},
            "model": {
                "cutoff": 4.0,
                "backbone": {"kind": "painn", "features": 8, "layers": 1, "radial": 6},
                "heads": [{"kind": "phi"}],
            },
            "epochs": 1,
            "batch_size": 2,
            "threads": 1,
            "tensorboard": False,
        }
    )
    train(config)
    return Trainer(config, load_training_data(config), join_processes("cpu"))


def limit(trainer: Trainer, iterations: int) -> Path:
    head = trainer.potential.heads[0]
    head.dense_limit, head.max_iterations = 0, iterations
    return trainer.config.output / "last.pt"


def test_a_training_step_names_its_structures_and_keeps_the_run(trainer):
    """Iterative as above 256 atoms; the weights stay, and so does what was saved."""
    last = limit(trainer, 1)
    saved, weights = last.read_bytes(), [p.clone() for p in trainer.potential.parameters()]
    with pytest.raises(ConvergenceError) as raised:
        trainer.step()
    told = str(raised.value)
    assert told.startswith(f"step 0: training structures [0, 1] (counted from 0): {TOLD}")
    assert "data.skip_train" in told and "optimizer.learning_rate" in told and str(last) in told
    assert last.read_bytes() == saved
    assert all(map(torch.equal, weights, trainer.potential.parameters()))
    limit(trainer, 1000)
    assert np.isfinite(trainer.step())


def test_validation_names_its_structures_and_keeps_the_run(trainer):
    last = limit(trainer, 1)
    saved = last.read_bytes()
    with pytest.raises(ConvergenceError, match=r"^step 0: validation structures \[0, 1\] .*1\.0"):
        trainer.validate()
    assert last.read_bytes() == saved


def test_the_backward_solve_is_judged_as_well():
    """No source needs no iterations; its gradient does."""
    graph = graph_dict(collate([to_graph(salt(), 4.0)]))
    weights = torch.linalg.vector_norm(graph[fields.EDGE_VECTORS], dim=1).square().neg().exp()
    b = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    mu = torch.tensor(0.1, dtype=torch.float64)
    inputs = (weights, mu, b, graph[fields.EDGE_INDEX], graph[fields.BATCH])
    loss = (PoissonSolve.apply(*inputs, 0, 0) * torch.arange(8.0)).sum()
    with pytest.raises(ConvergenceError, match=TOLD):
        loss.backward()
    (PoissonSolve.apply(*inputs, 0, 100) * torch.arange(8.0)).sum().backward()
    expected = PoissonSolve.apply(weights, mu, torch.arange(8.0).double(), *inputs[3:])
    assert_allclose(b.grad, expected, atol=1e-7)
