import json
import math
import os
import re
import signal
import subprocess
import sys

import ase.io
import pytest
import yaml
from ase.build import bulk as build_bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

import phicalc
import phicalc.cli
from phicalc.cli import app
from phicalc.engines.ase import PhiCalculator
from phicalc.errors import ConvergenceError
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.serving.metadata import read_metadata
from phicalc.serving.model_file import save_model
from phicalc.train.trainer import Trainer
from tests.reference_models import small_metadata, small_potential

COMMANDS = ["train", "eval", "export", "info", "bench"]


def run(*arguments, status=0):
    """Standard output of the command; one line of standard error if it is to fail."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, small_potential().potential)
    return path


def write_data(path, symbol="Ar"):
    """Six labelled structures of one element."""
    frames = []
    for seed in range(6):
        atoms = build_bulk(symbol, "fcc", a=5.3, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0, smooth=True)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "argon.extxyz")


def write_config(tmp_path, data, **changes):
    config = {
        "output": str(tmp_path / "run"),
        "data": {"train": str(data), "valid_fraction": 0.34},
        "model": {"backbone": {"kind": "painn", "features": 8, "layers": 1}, "cutoff": 4.0},
        "epochs": 2,
        "threads": 1,
        "device": "cpu",
        "tensorboard": False,
        **changes,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_from_data_to_a_calculator(tmp_path, data):
    run("train", write_config(tmp_path, data))
    run("train", write_config(tmp_path, data, epochs=3), "--resume")
    model = tmp_path / "model.pt"
    told = run("export", tmp_path / "run" / "best.pt", "-o", model, "--licence", "MIT")
    assert "painn + phi for Ar, float32" in told
    facts = run("info", model)
    for fact in ("Ar", "painn + phi", "4.0 Å", "argon.extxyz, 4 structures", "MIT", "meV/atom"):
        assert fact in facts, fact
    table = run("eval", model, data, "-o", tmp_path / "errors", "--device", "cpu")
    for line in ("6 structures, 24 atoms", "energy per atom", "meV/Å", "forces on Ar"):
        assert line in table, line
    errors = json.loads((tmp_path / "errors" / "errors.json").read_text(encoding="utf-8"))
    assert set(errors["errors"]) >= {"energy_per_atom", "forces"}
    assert (tmp_path / "errors" / "parity.png").read_bytes().startswith(b"\x89PNG")
    atoms = ase.io.read(data)
    atoms.calc = PhiCalculator(model)
    assert abs(atoms.get_potential_energy()) > 0


def step_in(path):
    """Optimiser steps of a training checkpoint."""
    return load_checkpoint(path).extra["training"]["position"]["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_is_saved_and_no_success(tmp_path, data, monkeypatch, number):
    """What `phicalc train … && phicalc export …` would export is half a run."""
    original = Trainer.step

    def step_then_signal(self):
        loss = original(self)
        if self.position.step == 2:
            os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(Trainer, "step", step_then_signal)
    config = write_config(tmp_path, data, epochs=3, batch_size=2)
    stopped = CliRunner().invoke(app, ["train", str(config)])
    assert stopped.exit_code == 128 + number
    assert f"stopped by {number.name} at step 2" in stopped.output
    assert step_in(tmp_path / "run" / "last.pt") == 2
    assert "already holds a run" in run("train", config, status=2)
    assert "finished at step 6" in run("train", config, "--resume")


def test_ctrl_c_at_the_terminal(tmp_path, data):
    config = write_config(tmp_path, data, epochs=100_000, batch_size=2, validate_epochs=10)
    command = [sys.executable, "-m", "phicalc.cli", "train", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 9 "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "stopped by SIGINT at step" in rest
    assert step_in(tmp_path / "run" / "last.pt") >= 20


def test_a_training_without_a_loss_did_not_converge(tmp_path, data, monkeypatch):
    monkeypatch.setattr("phicalc.train.objective.Objective.gradients", lambda *a: math.nan)
    told = run("train", write_config(tmp_path, data), status=3)
    assert "error: step 0: loss nan" in told


def test_eval_takes_a_checkpoint_and_agrees_with_the_model(tmp_path, checkpoint):
    data = write_data(tmp_path / "chlorine.extxyz", "Cl")
    model = tmp_path / "model.pt"
    run("export", checkpoint, "-o", model)
    for number, source in enumerate((checkpoint, model)):
        run("eval", source, data, "-o", tmp_path / str(number))
    first, second = (
        json.loads((tmp_path / str(n) / "errors.json").read_text(encoding="utf-8"))["errors"]
        for n in (0, 1)
    )
    assert first["forces"]["rmse"] == pytest.approx(second["forces"]["rmse"], rel=1e-4)


def test_export_in_another_precision(checkpoint, tmp_path):
    run("export", checkpoint, "-o", tmp_path / "model.pt", "--dtype", "float64")
    assert read_metadata(tmp_path / "model.pt").dtype == "float64"
    assert "float16" in run(
        "export", checkpoint, "-o", tmp_path / "no.pt", "--dtype", "float16", status=2
    )
    assert not (tmp_path / "no.pt").exists()


def test_info_names_the_very_file(tmp_path):
    path = save_model(small_potential(), tmp_path / "model.pt", small_metadata())
    assert phicalc.load_model(path).sha256 in run("info", path)


def test_info_as_json_is_the_whole_metadata(tmp_path):
    metadata = small_metadata(description="für Salzwasser")
    path = save_model(small_potential(), tmp_path / "model.pt", metadata)
    told = run("info", path, "--json")
    assert type(metadata).model_validate_json(told) == metadata
    assert "für Salzwasser" in told


def test_bench_tells_what_was_measured(tmp_path, checkpoint, monkeypatch):
    def measured(_, request):  # in a process of its own, which takes seconds to start
        return {
            "atoms": 3 * request.molecules,
            "edges": 900,
            "steps": request.steps,
            "parts": {
                "neighbours": 0.001,
                "backbone": 0.006,
                "autograd": 0.002,
                "electrostatics": 0.0,
                "ase": 0.001,
            },
            "uncached_electrostatics": 0.004,
            "solver_iterations": 5,
            "uncached_solver_iterations": 9,
            "neighbour_reuse": 0.9,
            "peak_memory": 512,
            "base_memory": 300,
        }

    monkeypatch.setattr("phicalc.bench.report.in_own_process", measured)
    model, directory = tmp_path / "model.pt", tmp_path / "speed"
    run("export", checkpoint, "-o", model)
    told = run("bench", model, "-n", 24, "-n", 49, "--steps", 3, "--threads", 1, "-o", directory)
    for text in ("24 atoms: 100.0 steps/s, 512 MB", "48 atoms", "model.pt on cpu, 1 thread"):
        assert text in told
    boxes = json.loads((directory / "bench.json").read_text(encoding="utf-8"))["boxes"]
    assert [(box["atoms"], box["steps"]) for box in boxes] == [(24, 3), (48, 3)]
    assert (directory / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_version():
    assert run("--version") == f"phicalc {phicalc.__version__}\n"


# --- help ---------------------------------------------------------------------------------------


def test_help_names_every_command():
    told = run("--help")
    assert all(re.search(rf"\b{command}\b", told) for command in COMMANDS)
    assert 'PhiCalculator("model.pt")' in told


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches_by_example(command):
    told = run(command, "--help")
    assert "Example" in told
    assert f"phicalc {command} " in told


def test_help_answers_without_torch():
    code = (
        "import sys\n"
        "sys.argv = ['phicalc', 'train', '--help']\n"
        "from phicalc.cli import app\n"
        "try:\n    app()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'ase', 'matplotlib', 'torch_geometric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- mistakes -----------------------------------------------------------------------------------


def assert_one_line(told: str, *parts: str) -> None:
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told
    for part in parts:
        assert part in told


def test_mistakes_are_told_in_one_line(tmp_path, checkpoint, data):
    missing = tmp_path / "missing.pt"
    assert_one_line(run("info", missing, status=2), str(missing), "no such file")
    assert_one_line(run("info", checkpoint, status=2), "torch.save file", "phicalc export")
    assert_one_line(run("export", data, "-o", tmp_path / "m.pt", status=2), "checkpoint")
    assert_one_line(run("eval", checkpoint, missing, status=2), "missing.pt")
    assert_one_line(run("eval", checkpoint, data, status=2), "got Ar")
    ions, neutral = ase.io.read(data, ":"), tmp_path / "neutral.pt"
    ions[2].info["charge"] = 1
    ase.io.write(tmp_path / "ions.extxyz", ions)
    changes = {"elements": [18], "supports_total_charge": False}
    save_model(small_potential(), neutral, small_metadata(**changes))
    told = run("eval", neutral, tmp_path / "ions.extxyz", status=2)
    assert_one_line(told, "frame 2: expected total charge 0")
    assert_one_line(run("train", missing, status=2), "missing.pt")
    config = write_config(tmp_path, data, epoch=3)
    assert_one_line(run("train", config, status=2), "epoch: unknown key")


def test_a_file_that_cannot_be_written_is_one_line_too(tmp_path, checkpoint):
    (tmp_path / "taken").write_text("a file, no directory", encoding="utf-8")
    data = write_data(tmp_path / "chlorine.extxyz", "Cl")
    told = run("eval", checkpoint, data, "-o", tmp_path / "taken", status=2)
    assert_one_line(told, "taken")


def test_brackets_in_a_message_are_not_markup(monkeypatch, tmp_path):
    def fail(path):
        raise ConvergenceError("stopped at [1, 2] of [bold]")

    monkeypatch.setattr("phicalc.serving.metadata.read_metadata", fail)
    assert_one_line(run("info", tmp_path, status=3), "stopped at [1, 2] of [bold]")


def test_debug_shows_where_it_happened(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "info", str(tmp_path / "missing.pt")])
    assert isinstance(result.exception, phicalc.PhicalcError)


@pytest.mark.parametrize("arguments", [["fly"], ["info"], ["train", "a.yaml", "--quickly"]])
def test_a_wrong_command_line_is_a_usage_error(arguments):
    assert "Usage" in run(*arguments, status=2)


def test_a_bug_is_not_hidden_as_a_mistake(monkeypatch, tmp_path):
    def fail(path):
        raise ZeroDivisionError

    monkeypatch.setattr("phicalc.serving.metadata.read_metadata", fail)
    result = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert isinstance(result.exception, ZeroDivisionError)


# --- the package --------------------------------------------------------------------------------


def test_public_names_are_few_and_all_there():
    assert len(phicalc.__all__) <= 8
    for name in phicalc.__all__:
        assert getattr(phicalc, name) is not None
    assert phicalc.PhiCalculator is PhiCalculator
    assert sorted(dir(phicalc)) == sorted(phicalc.__all__)
    with pytest.raises(AttributeError, match="Phi_Calculator"):
        phicalc.Phi_Calculator  # noqa: B018 - the access is the test
