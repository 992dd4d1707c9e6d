"""Checkpoints: what goes in comes out, and nothing else is accepted."""

import pickle

import pytest
import torch

from phicalc.errors import ConfigError, ModelFileError, OutputError
from phicalc.machine import files
from phicalc.model import checkpoint as checkpoints
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.model.config import ModelConfig, PaiNNConfig, PhiConfig
from phicalc.model.potential import Potential


@pytest.fixture
def potential():
    torch.manual_seed(0)
    config = ModelConfig(backbone=PaiNNConfig(features=4, layers=1, radial=3), heads=[PhiConfig()])
    return Potential(config, [8, 1], {1: -13.6, 8: -2041.3}, 0.7)


def test_round_trip(potential, tmp_path):
    save_checkpoint(tmp_path / "a.pt", potential, {"note": "x", "tensor": torch.arange(3)})
    found = load_checkpoint(tmp_path / "a.pt")
    assert found.config == potential.config and found.elements == [1, 8]
    assert found.extra["note"] == "x" and found.extra["tensor"].tolist() == [0, 1, 2]
    expected = potential.state_dict()
    assert found.potential.state_dict().keys() == expected.keys()
    for name, value in found.potential.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert found.potential.reference_energies.tolist() == [-13.6, -2041.3]


def test_other_precision(potential, tmp_path):
    save_checkpoint(tmp_path / "a.pt", potential)
    double = load_checkpoint(tmp_path / "a.pt", dtype="float64").potential
    assert double.readout[0].weight.dtype == torch.float64
    assert torch.equal(double.readout[0].weight, potential.readout[0].weight.double())


def test_a_failed_write_leaves_the_old_file(potential, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", potential)
    before = (tmp_path / "a.pt").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(tmp_path / "a.pt", potential)
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    "how", ["missing", "text", "truncated", "pickle", "torch pickle", "foreign"]
)
def test_refuses(potential, tmp_path, how):
    path = tmp_path / "a.pt"
    save_checkpoint(path, potential)
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "text":
        path.write_text("hello")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "torch pickle":
        torch.save({"kind": "phicalc checkpoint", "bomb": Bomb()}, path)
    else:
        torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ModelFileError, match="expected a") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_refuses_a_newer_format(potential, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 99)
    save_checkpoint(tmp_path / "a.pt", potential)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="newer phicalc"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("elements", [[], [0], [1, 200]])
def test_elements_must_exist(elements):
    with pytest.raises(ConfigError, match="atomic numbers 1 to 118"):
        Potential(ModelConfig(), elements)
