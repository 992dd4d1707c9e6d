import csv
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from rich.console import Console

from phicalc import fields
from phicalc.errors import ConfigError, ConvergenceError, DataError
from phicalc.model.checkpoint import load_checkpoint
from phicalc.train.__main__ import main
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import join_processes
from phicalc.train.initial import closest_distances
from phicalc.train.trainer import Trainer, train


def differences(first, second, path=""):
    """Dotted paths at which two checkpoints differ by as much as a bit."""
    if isinstance(first, dict):
        keys = [*first, *(k for k in second if k not in first)]
        return [d for k in keys for d in differences(first.get(k), second.get(k), f"{path}.{k}")]
    if isinstance(first, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}.{i}")]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [path]


def rows_of(result):
    with (result.last.parent / "metrics.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_it_learns_a_tiny_set_by_heart(content, quiet):
    content |= {"epochs": 150, "batch_size": 7, "validate_epochs": 50, "ema_decay": 0.9}
    content["data"]["valid"] = content["data"]["train"]
    content["optimizer"] = {"learning_rate": 5e-3}
    content["schedule"]["warmup_steps"] = 10
    content["model"]["backbone"]["features"] = 16
    config = parse_config(content)
    data = load_training_data(config)
    result = train(config, console=quiet)
    last = rows_of(result)[-1]
    assert float(last["forces_rmse [meV/Å]"]) < 0.2 * 1e3 * data.energy_scale
    assert float(last["energy_per_atom_rmse [meV/atom]"]) < 30
    assert result.stopped_by is None
    assert result.step == 150


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("cosine", "adamw"), ("plateau", "adamw"), ("cosine", {"kind": "soap", "basis_steps": 2})],
    ids=["cosine", "plateau", "SOAP"],
)
def test_a_run_resumes_bit_for_bit(content, quiet, tmp_path, monkeypatch, schedule, optimizer):
    content["schedule"] = {"kind": schedule, "warmup_steps": 2}
    content["optimizer"] = optimizer
    whole = train(parse_config(content), console=quiet)
    original = Trainer.step

    def step_then_signal(self):
        loss = original(self)
        if self.position.step in (2, 6):  # within the first epoch; between step and validation
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(Trainer, "step", step_then_signal)
    config = parse_config(content | {"output": str(tmp_path / "pieces")})
    first = train(config, console=quiet)
    second = train(config, resume=True, console=quiet)
    assert (first.step, second.step) == (2, 6)
    assert first.stopped_by == second.stopped_by == "SIGTERM"
    pieces = train(config, resume=True, console=quiet)
    assert pieces.stopped_by is None
    for name in ("last", "best"):
        a, b = (torch.load(getattr(r, name), weights_only=True) for r in (whole, pieces))
        apart = {".extra.provenance.config.output", ".extra.training.position.seconds"}
        assert set(differences(a, b)) <= apart
    assert [row | {"minutes": 0} for row in rows_of(whole)] == [
        row | {"minutes": 0} for row in rows_of(pieces)
    ]


def test_a_run_goes_on_with_the_optimizer_that_it_began_with(content, quiet):
    train(parse_config(content), console=quiet)
    other = parse_config(content | {"optimizer": "soap", "epochs": 4})
    with pytest.raises(ConfigError, match=r"optimizer\.kind: expected .* adamw, got soap; resume"):
        train(other, resume=True, console=quiet)
    changed = parse_config(content | {"optimizer": {"weight_decay": 0.5}, "epochs": 4})
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay: expected .* 0\.001, got 0\.5"):
        train(changed, resume=True, console=quiet)
    slower = parse_config(content | {"optimizer": {"learning_rate": 1e-5}, "epochs": 4})
    assert train(slower, resume=True, console=quiet).stopped_by is None


def test_the_callers_random_state_is_left_alone(config, quiet):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(config, console=quiet)
    assert torch.equal(torch.get_rng_state(), before)


def test_best_holds_the_averaged_weights_of_the_lowest_loss(content, quiet):
    content |= {"epochs": 4, "ema_decay": 0.8}
    config = parse_config(content)
    result = train(config, console=quiet)
    rows = rows_of(result)
    lowest = min(float(row["valid_loss"]) for row in rows)
    assert result.best_loss == lowest
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    best = load_checkpoint(result.best)
    trainer.potential.load_state_dict(best.potential.state_dict())
    loss, _ = trainer.objective.evaluate(trainer.data.valid, 2)
    assert loss == pytest.approx(lowest, rel=1e-5)
    assert best.extra["provenance"]["data"]["train"]["structures"] == 7


def test_the_order_of_structures_changes_by_epoch_and_repeats_by_seed(config, quiet):
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    epochs = [[i for n in range(3) for i in trainer.batch(epoch, n)] for epoch in (0, 1, 0)]
    assert sorted(epochs[0]) == list(range(7))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


def test_untrained_energies_have_no_offset(content, quiet):
    config = parse_config(content)
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    _, found = trainer.objective.evaluate(trainer.data.train, 4)
    assert found.errors["energy_per_atom"].rmse < 0.3  # cohesion is 2 to 3 eV/atom


def test_the_contact_wall_begins_well_below_the_closest_distances(config, quiet):
    data = load_training_data(config)
    trainer = Trainer(config, data, join_processes("cpu"), quiet)
    contact, index = trainer.potential.contact, trainer.potential.species_index
    expected = 0.85 * closest_distances(data.train, index)
    assert expected.min() > 0
    assert torch.equal(contact.closest, expected)


def test_stress_is_learnt_too(content, argons, quiet):
    content["data"] = {"train": str(argons), "valid_fraction": 0.34, "seed": 1}
    content["loss"]["weights"] = {"energy": 1, "forces": 1, "stress": 100}
    result = train(parse_config(content), console=quiet)
    rows = rows_of(result)
    assert float(rows[-1]["stress_rmse [eV/Å³]"]) > 0
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_a_loss_that_is_not_a_number_names_its_structures(config, quiet, monkeypatch):
    result = train(config, console=quiet)
    saved = result.last.read_bytes()
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    monkeypatch.setattr(Trainer, "batch", lambda self, epoch, number: [4, 2])
    weights = [p.detach().clone() for p in trainer.potential.parameters()]
    trainer.data.train[4][fields.FORCES][0, 0] = float("inf")  # NaN is a label that is absent
    with pytest.raises(ConvergenceError, match=r"loss (inf|nan).*training structures \[2, 4\]"):
        trainer.step()
    assert all(
        torch.equal(a, b) for a, b in zip(weights, trainer.potential.parameters(), strict=True)
    )
    assert result.last.read_bytes() == saved


def test_a_validation_loss_that_is_not_a_number_ends_the_run(config, quiet):
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    trainer.data.valid[0][fields.FORCES][0, 0] = float("inf")
    with pytest.raises(ConvergenceError, match=r"the validation loss is inf; look for atoms"):
        trainer.validate()


def test_rows_of_other_columns_stay_in_the_table(content, quiet, tmp_path):
    """A run that goes on with another validation set keeps what was measured before."""
    import ase.io

    train(parse_config(content | {"epochs": 1}), console=quiet)
    frames = ase.io.read(content["data"]["valid"], ":")
    for atoms in frames:
        del atoms.calc.results["forces"]
    ase.io.write(tmp_path / "energies.xyz", frames, format="extxyz")
    content["data"]["valid"] = str(tmp_path / "energies.xyz")
    rows = rows_of(train(parse_config(content | {"epochs": 2}), resume=True, console=quiet))
    assert [bool(row["forces_rmse [meV/Å]"]) for row in rows] == [True, False]


def test_time_can_run_out(content, quiet):
    config = parse_config(content | {"epochs": 1000, "max_minutes": 1e-9})
    result = train(config, console=quiet)
    assert (result.step, result.stopped_by) == (0, None)
    assert len(rows_of(result)) == 1


def test_steps_may_end_within_an_epoch(content, quiet):
    del content["epochs"]
    result = train(parse_config(content | {"max_steps": 4}), console=quiet)
    assert [row["step"] for row in rows_of(result)] == ["3", "4"]


@pytest.mark.cuda
def test_a_gpu_learns_the_same_and_resumes(content, quiet, tmp_path):
    content["model"]["dtype"] = "float64"
    cpu = train(parse_config(content | {"device": "cpu"}), console=quiet)
    content |= {"output": str(tmp_path / "gpu"), "device": "cuda"}
    gpu = train(parse_config(content), console=quiet)
    assert gpu.best_loss == pytest.approx(cpu.best_loss, rel=1e-6)
    assert train(parse_config(content | {"epochs": 4}), resume=True, console=quiet).step == 12


def test_a_run_is_not_overwritten_unasked(config, quiet):
    train(config, console=quiet)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(config, console=quiet)
    assert train(config, overwrite=True, console=quiet).step == 9


def test_there_must_be_something_to_resume(config, quiet):
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, resume=True, console=quiet)


def test_training_starts_from_another_models_weights(content, quiet, tmp_path):
    best = train(parse_config(content), console=quiet).best
    given = load_checkpoint(best).potential.state_dict()
    heads = [{"kind": "qeq"}]
    tuned = content | {"initial": str(best), "output": str(tmp_path / "tuned")}
    config = parse_config(tuned | {"model": content["model"] | {"heads": heads}})
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    for name, value in trainer.potential.state_dict().items():
        if name.startswith(("backbone.", "readout.")):
            assert torch.equal(value, given[name]), name

    other = tuned | {"model": content["model"] | {"backbone": {"kind": "painn", "features": 5}}}
    with pytest.raises(ConfigError, match=r"^initial: .* another network"):
        train(parse_config(other), console=quiet)


def test_another_model_or_other_data_are_not_resumed(content, quiet, argons):
    train(parse_config(content), console=quiet)
    other = content | {"model": content["model"] | {"cutoff": 4.5}}
    with pytest.raises(ConfigError, match=r"^model: is not the model of"):
        train(parse_config(other), resume=True, console=quiet)
    other = content | {"data": content["data"] | {"skip_train": [0]}}
    with pytest.raises(ConfigError, match=r"^data: is not that of"):
        train(parse_config(other), resume=True, console=quiet)


@pytest.mark.parametrize("change", [{"seed": 1}, {"valid_fraction": 0.33}, {"skip_train": [0]}])
def test_another_split_of_the_same_file_is_not_resumed(content, quiet, change):
    content["data"] = {"train": content["data"]["train"], "valid_fraction": 0.3}
    last = train(parse_config(content), console=quiet).last
    other = parse_config(content | {"data": content["data"] | change})
    assert len(load_training_data(other).valid) == 2  # as before: their number tells nothing
    with pytest.raises(ConfigError, match=r"^data: is not that of .*seed of the split"):
        train(other, resume=True, console=quiet)
    saved = torch.load(last, weights_only=True)
    for origin in saved["extra"]["provenance"]["data"].values():
        del origin["split"]  # as it was before splits were on record
    torch.save(saved, last)
    trainer = Trainer(
        parse_config(content),
        load_training_data(parse_config(content)),
        join_processes("cpu"),
        quiet,
    )
    trainer.resume()
    assert trainer.position.step == 6 and math.isfinite(trainer.position.best_loss)


@pytest.mark.parametrize(
    "change", [{"loss": {"kind": "mse"}}, {"data": {"skip_valid": [0]}}, {"batch_size": 7}]
)
def test_another_measure_starts_a_new_search_for_the_best(content, quiet, change):
    content["schedule"] = {"kind": "plateau", "patience": 0, "warmup_steps": 0}
    first = train(parse_config(content | {"epochs": 1}), console=quiet)
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    config = parse_config(content)
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    trainer.resume()
    best = first.best_loss if "batch_size" in change else math.inf
    assert (trainer.position.best_loss, trainer.state.schedule.best) == (best, best)
    if best == math.inf:
        trainer.state.schedule.validated(1e3 * first.best_loss)  # of the new measure: no plateau
        assert trainer.state.schedule.cut == 1.0


def test_skipped_frames_are_left_out_and_on_record(content, quiet):
    content["data"] |= {"skip_train": [1, 3, 3], "skip_valid": [2]}
    data = load_training_data(parse_config(content))
    assert (len(data.train), len(data.valid)) == (5, 2)
    assert data.provenance["train"]["skipped"] == [1, 3]
    content["data"]["skip_valid"] = [3]
    with pytest.raises(DataError, match=r"valid\.xyz: expected frames 0 to 2 to skip, got \[3\]"):
        load_training_data(parse_config(content))


def test_a_label_that_is_missing_is_named_with_its_file(content, quiet):
    content["loss"]["weights"] = {"charges": 1.0}
    with pytest.raises(DataError, match=r"(?s)train\.xyz: .*no charges"):
        train(parse_config(content), console=quiet)


def test_a_property_that_the_model_lacks_is_named(content, quiet, clusters, tmp_path):
    import ase.io

    frames = ase.io.read(clusters / "train.xyz", ":")
    for atoms in frames:
        atoms.arrays["charges"] = atoms.positions[:, 0] * 0
    ase.io.write(tmp_path / "charged.xyz", frames, format="extxyz")
    content["data"] = {"train": str(tmp_path / "charged.xyz"), "valid_fraction": 0.3}
    content["model"]["heads"] = []
    content["loss"]["weights"] = {"charges": 1.0}
    with pytest.raises(ConfigError, match=r"loss\.weights\.charges: this model does not predict"):
        train(parse_config(content), console=quiet)


def test_stress_of_molecules_is_refused(content, quiet, clusters, tmp_path):
    import ase.io
    import numpy as np

    frames = ase.io.read(clusters / "train.xyz", ":")
    for atoms in frames:
        atoms.info["stress"] = np.zeros(6)
    ase.io.write(tmp_path / "stress.xyz", frames, format="extxyz")
    content["data"] = {"train": str(tmp_path / "stress.xyz"), "valid_fraction": 0.3}
    content["loss"]["weights"] = {"stress": 1.0}
    with pytest.raises(DataError, match="no stress is defined for the periodicity of frames 0, 1"):
        train(parse_config(content), console=quiet)


def test_an_element_seen_only_in_validation_is_named(content, quiet, argons):
    content["data"]["valid"] = str(argons)
    with pytest.raises(DataError, match="validation set holds Ar"):
        train(parse_config(content), console=quiet)


def test_lines_tell_errors_in_milli_electronvolts(config):
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        train(config, console=console)
    text = console.export_text()
    assert "7 training and 3 validation structures, 9 steps of 3" in text
    assert "meV/atom, forces RMSE" in text
    assert "finished at step 9" in text


def test_a_network_that_is_not_told_the_charge_of_ions_says_so(content, tmp_path):
    import ase.io

    frames = ase.io.read(content["data"]["train"], ":")
    for atoms in frames[:3]:
        atoms.info["charge"] = 1
    ase.io.write(tmp_path / "ions.xyz", frames, format="extxyz")
    content["data"]["train"] = str(tmp_path / "ions.xyz")
    for told in (True, False):
        content["model"]["total_charge"] = told
        with open(os.devnull, "w") as sink:
            console = Console(record=True, width=200, file=sink)
            train(parse_config(content | {"epochs": 1}), overwrite=True, console=console)
        line = "3 training structures are charged, but the network is not told"
        assert (line in console.export_text()) is not told


def test_a_terminal_gets_a_progress_bar_with_the_time_left(config):
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink, force_terminal=True)
        train(config, console=console)
    text = console.export_text()
    assert "9/9" in text
    assert "0:00:00 left, loss" in text


def test_tensorboard_is_written(content, quiet):
    result = train(parse_config(content | {"tensorboard": True}), console=quiet)
    assert list((result.last.parent / "tensorboard").glob("events.*"))


def test_a_missing_tensorboard_is_one_line(content, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        train(parse_config(content | {"tensorboard": True}), console=console)
    assert console.export_text().count("tensorboard is not installed") == 1


def test_sigterm_saves_and_exits_with_its_status(content, quiet, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content | {"epochs": 100_000, "validate_epochs": 10}))
    command = [sys.executable, "-m", "phicalc.train", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 9 "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 143
    assert "stopped by SIGTERM at step" in rest
    step = load_checkpoint(tmp_path / "run" / "last.pt").extra["training"]["position"]["step"]
    assert step >= 30
    resumed = train(parse_config(content | {"epochs": step // 3 + 2}), resume=True, console=quiet)
    assert resumed.step == 3 * (step // 3 + 2)
    assert resumed.stopped_by is None


def test_wrong_input_exits_with_status_2_and_one_line(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content | {"bach_size": 2}))
    monkeypatch.setattr(sys, "argv", ["phicalc.train", str(path), "--resume"])
    assert main() == 2
    assert capsys.readouterr().err == f"error: {path}: bach_size: unknown key\n"
