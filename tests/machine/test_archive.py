"""Damaged files: refused in a sentence, or read with the numbers that were written."""

import io
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ase import Atoms

from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import ConfigError, ModelFileError
from phicalc.machine.archive import sound_parts
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.serving.export import describe, export
from phicalc.serving.model_file import load_model, model_bytes
from phicalc.train.evaluation import open_model
from phicalc.workflows.md.checkpoint import Checkpoint, read_structure
from tests.reference_models import small_potential


def directory_of(content: bytes) -> int:
    """Where a zip archive's directory starts."""
    return int.from_bytes(content[-6:-2], "little")


def damaged(content: bytes, count: int) -> Iterator[bytes]:
    """Cut short, with a bit turned over or with bytes of noise: half of them in the directory."""
    random = np.random.default_rng(0)
    start, end = directory_of(content), len(content)
    for number in range(count):
        first = start if number % 2 else 0
        place = int(random.integers(first, end))
        kind = number // 2 % 3
        if kind == 0:
            yield content[:place]
        elif kind == 1:
            turned = bytes([content[place] ^ 1 << int(random.integers(8))])
            yield content[:place] + turned + content[place + 1 :]
        else:
            noise = random.bytes(min(4, end - place))
            yield content[:place] + noise + content[place + len(noise) :]


def refused_or_right(read, expected, content: bytes, count: int) -> int:
    """How many of the damaged copies were refused; all others gave what was written."""
    refused = 0
    for number, copy in enumerate(damaged(content, count)):
        try:
            found = read(copy)
        except ModelFileError:
            refused += 1
            continue
        assert found.keys() == expected.keys(), number
        for name, value in expected.items():
            assert torch.equal(found[name], value), (number, name)
    return refused


def test_model_files(molecule: Atoms):
    module = small_potential("float32")
    graph = graph_dict(collate([to_graph(molecule, 4.0)]))
    content = model_bytes(module, describe(module.potential))
    read = lambda copy: load_model(copy)(graph)  # noqa: E731
    assert refused_or_right(read, module(graph), content, 300) > 200


def test_checkpoints(tmp_path):
    """Of a run, too, whose optimiser and random state stand beside the weights."""
    potential = small_potential("float32").potential
    path = tmp_path / "last.pt"
    save_checkpoint(path, potential, {"training": {"random": torch.arange(9), "step": 3}})

    def read(copy: bytes) -> dict[str, torch.Tensor]:
        path.write_bytes(copy)
        found = load_checkpoint(path)
        assert found.extra["training"]["step"] == 3
        random = found.extra["training"]["random"]
        return {**found.potential.state_dict(), "random": random}

    expected = {**potential.state_dict(), "random": torch.arange(9)}
    assert refused_or_right(read, expected, path.read_bytes(), 300) > 200


def test_checkpoints_of_md(molecule: Atoms, tmp_path):
    path = tmp_path / "md.checkpoint"
    thermostat = {"eta": np.array([0.1, 0.2])}
    structure, outputs = read_structure(molecule), {"md.traj": {"size": 9}}
    Checkpoint(
        step=7,
        structure=structure,
        integrator=thermostat,
        degrees_of_freedom=27,
        random={},
        outputs=outputs,
        settings={},
    ).save(path)
    arrays = {**structure, **thermostat}
    expected = {name: torch.as_tensor(value) for name, value in arrays.items()}

    def read(copy: bytes) -> dict[str, torch.Tensor]:
        path.write_bytes(copy)
        found = Checkpoint.load(path)
        assert (found.step, found.outputs) == (7, outputs)
        arrays = {**found.structure, **found.integrator}
        return {name: torch.as_tensor(value) for name, value in arrays.items()}

    assert refused_or_right(read, expected, path.read_bytes(), 300) > 200


def test_a_weight_that_changed_on_the_disk(tmp_path):
    """torch reads it as it is; the checksum knows."""
    path = tmp_path / "best.pt"
    save_checkpoint(path, small_potential("float32").potential)
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = max(archive.infolist(), key=lambda e: e.file_size * ("/data/" in e.filename))
    place = entry.header_offset + 200
    path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
    torch.load(path, weights_only=True)
    with pytest.raises(ModelFileError, match=r"damaged, its part '.*/data/.*' fails the checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("door", ["load", "export", "eval"])
@pytest.mark.parametrize("end", [0, 3, 100, -4, -30])
def test_every_door_refuses_a_file_cut_short(tmp_path, door, end):
    path = tmp_path / "model.pt"
    module = small_potential("float32")
    path.write_bytes(model_bytes(module, describe(module.potential))[:end])
    doors = {
        "load": load_model,
        "export": lambda source: export(source, tmp_path / "new.pt"),
        "eval": open_model,
    }
    with pytest.raises(ModelFileError, match=f"^{path}: expected a phicalc .* archive"):
        doors[door](path)
    assert not (tmp_path / "new.pt").exists()


def test_an_empty_archive():
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    with pytest.raises(ModelFileError, match="empty zip"):
        sound_parts(buffer.getvalue(), "model.pt", "a phicalc model")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": "painn"},
        {"config": {"cutoff": -1.0}},
        {"elements": None},
        {"elements": [0, 1]},
        {"state_dict": None},
        {"state_dict": {"weight": 3}},
        {"extra": 5},
    ],
    ids=str,
)
def test_a_checkpoint_with_other_content(tmp_path, changes):
    path = tmp_path / "best.pt"
    save_checkpoint(path, small_potential("float32").potential)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, **changes}, path)
    with pytest.raises((ModelFileError, ConfigError), match="expected") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
