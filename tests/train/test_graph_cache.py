import os
import re
import threading
from pathlib import Path

import ase.io
import pytest
import torch
from rich.console import Console

from phicalc.data import read
from phicalc.errors import DataError, OutputError
from phicalc.machine import cores
from phicalc.train import dataset, graph_cache
from phicalc.train.config import parse_config
from phicalc.train.dataset import graphs_of, load_training_data, read_frames
from phicalc.train.describe import describe_data
from phicalc.train.trainer import train
from tests.data.test_graph_file import same
from tests.train.test_trainer import differences

MADE, TAKEN = "structures read in", "structures taken from"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of graphs of one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phicalc" / "graphs"


def kept(cache):
    return sorted(cache.glob("*.graphs"))


@pytest.fixture(params=["two files", "split"])
def either(request, content):
    """Data with a file for validation, or with a part held out."""
    if request.param == "split":
        content["data"] = {"train": content["data"]["train"], "valid_fraction": 0.3}
    return content


def test_kept_graphs_are_the_ones_made_to_the_bit(either, cache):
    config = parse_config(either)
    made, taken = load_training_data(config), load_training_data(config)
    assert all(MADE in line and f"kept in {cache}" in line for line in made.sources)
    assert all(TAKEN in line for line in taken.sources)
    assert list(describe_data(taken, config))[: len(taken.sources)] == list(taken.sources)
    for name in ("elements", "reference", "energy_scale", "average_neighbours", "charge_scale"):
        assert getattr(made, name) == getattr(taken, name)
    for name in ("charges", "ignored", "provenance"):
        assert getattr(made, name) == getattr(taken, name)
    for frames, first, second in zip(
        read_frames(config), (made.train, made.valid), (taken.train, taken.valid), strict=True
    ):
        plain = graphs_of(frames, 4.0, config.loss.properties)
        for three in zip(plain, first, second, strict=True):
            same(three[0], three[1])
            same(three[0], three[2])


def test_graphs_made_by_several_processes_are_the_same_to_the_bit(content, monkeypatch):
    config = parse_config(content | {"data": {**content["data"], "cache": False}})
    here = load_training_data(config)
    monkeypatch.setattr(dataset, "ATOMS_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    elsewhere = load_training_data(config)
    for first, second in zip(here.train, elsewhere.train, strict=True):
        same(first, second)
    assert here.train.notes == elsewhere.train.notes


def test_a_run_is_the_same_with_and_without_the_cache(content, quiet, tmp_path, cache):
    def run(name, keep):
        data = {**content["data"], "cache": keep}
        where = {"output": str(tmp_path / name), "data": data}
        return train(parse_config(content | where), console=quiet)

    plain = run("plain", False)
    assert not cache.exists()
    making, taking = run("making", True), run("taking", True)
    assert len(kept(cache)) == 2
    for name in ("last", "best"):
        a, b, c = (torch.load(getattr(r, name), weights_only=True) for r in (plain, making, taking))
        place = ".extra.provenance.config"
        apart = {f"{place}.output", f"{place}.data.cache", ".extra.training.position.seconds"}
        assert set(differences(a, b)) | set(differences(a, c)) <= apart


def test_the_log_says_where_graphs_come_from(config, tmp_path):
    for word in (MADE, TAKEN):
        with (tmp_path / "log").open("w") as log:
            train(config, overwrite=True, console=Console(file=log, width=500))
        said = (tmp_path / "log").read_text()
        assert re.search(rf"train.xyz: .*7 {word} .* in \d+\.\d s", said)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"cutoff": 4.5}},
        {"loss": {"weights": {"energy": 1.0, "forces": 0.0}}},
        {"data": {"skip_train": [2]}},
        {"data": {"keys": {"energy": "REF_energy"}}},
    ],
    ids=["cutoff", "labels", "skipped", "keys"],
)
def test_another_question_is_another_entry(content, cache, tmp_path, change):
    frames = ase.io.read(content["data"]["train"], ":")
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy() + 1.0
    ase.io.write(tmp_path / "two.xyz", frames, format="extxyz")
    content["data"] = {"train": str(tmp_path / "two.xyz"), "valid_fraction": 0.2}
    load_training_data(parse_config(content))
    for section, values in change.items():
        content[section] = {**content[section], **values}
    assert MADE in load_training_data(parse_config(content)).sources[0]
    assert len(kept(cache)) == 2


def test_changed_content_is_read_anew(content, cache):
    path = cache.parent.parent.parent / "own.xyz"
    path.write_bytes(Path(content["data"]["train"]).read_bytes())
    content["data"]["train"] = str(path)
    first = load_training_data(parse_config(content))
    frames = ase.io.read(path, ":")
    frames[3].positions[0, 0] += 0.01
    for atoms in frames:
        atoms.calc.atoms = atoms.copy()
    ase.io.write(path, frames, format="extxyz")
    second = load_training_data(parse_config(content))
    assert MADE in second.sources[0]
    assert TAKEN in second.sources[1]
    moved = second.train[3]["positions"] - first.train[3]["positions"]
    assert float(moved[0, 0]) == pytest.approx(0.01, abs=1e-7)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_graphs_are_made_anew(config, cache, damage):
    first = load_training_data(config)
    for path in kept(cache):
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.unlink()  # the graphs read first stay as they are
        path.write_bytes({"cut": content[:-50], "changed": content, "empty": b""}[damage])
    second = load_training_data(config)
    assert all(MADE in line and "were damaged" in line for line in second.sources)
    assert TAKEN in load_training_data(config).sources[0]
    for one, other in zip(first.train, second.train, strict=True):
        same(one, other)


def test_nothing_is_kept_of_data_that_is_refused(content, cache, tmp_path):
    frames = ase.io.read(content["data"]["train"], ":")
    frames[1].calc.results["forces"][0] = float("nan")
    ase.io.write(tmp_path / "bad.xyz", frames, format="extxyz")
    content["data"]["train"] = str(tmp_path / "bad.xyz")
    for _ in range(2):
        with pytest.raises(DataError, match="NaN or infinite forces"):
            load_training_data(parse_config(content))
    assert kept(cache) == []
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_writer_that_fails_leaves_nothing(config, cache, monkeypatch):
    def fail(stream, graphs, notes):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graph_cache, "write_graphs", fail)
    with pytest.raises(OutputError, match="No space left on device; make room, or set TMPDIR"):
        load_training_data(config)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_without_a_place_for_the_cache_training_goes_on(config, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("no folder")
    data = load_training_data(config)
    assert len(data.train) == 7
    assert "(not kept: " in data.sources[0]


def test_the_oldest_go_first(content, cache, monkeypatch):
    def load(cutoff):
        content["model"]["cutoff"] = cutoff
        before = set(kept(cache))
        data = load_training_data(parse_config(content))
        return data, set(kept(cache)) - before

    (_, first), (_, second) = load(3.0), load(3.5)
    for age, paths in ((200, first), (300, second)):
        for path in paths:
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    load(3.0)  # the younger one now in any case
    size = sum(path.stat().st_size for path in first | second)
    monkeypatch.setattr(graph_cache, "KEPT_BYTES", 1.4 * size)
    data, third = load(4.0)
    assert third <= set(kept(cache))
    assert not second <= set(kept(cache))
    assert first <= set(kept(cache))
    monkeypatch.setattr(graph_cache, "KEPT_BYTES", 0)
    data, _ = load(4.5)
    assert len(kept(cache)) == 1  # the newest stays, whatever its size
    assert len(list(data.train)) == 7  # and what is mapped stays readable


def test_processes_that_start_together_make_graphs_once(config):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_training_data(config).sources))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(MADE in said[n] for said in found) for n in (0, 1)] == [1, 1]


def test_where_graphs_are_kept(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert graph_cache.cache_folder() == Path.home() / ".cache" / "phicalc" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert graph_cache.cache_folder() == Path.home() / ".cache" / "phicalc" / "graphs"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert graph_cache.cache_folder() == Path("/somewhere/phicalc/graphs")


def test_labels_are_looked_up_once_per_structure(config, cache, monkeypatch):
    """Checks and graphs share them; a validation file is asked of one structure what it has."""
    looked: list[int] = []
    stored = read._stored_results
    monkeypatch.setattr(read, "_stored_results", lambda a: (looked.append(id(a)), stored(a))[1])
    data = load_training_data(config)
    assert len(looked) == len(data.train) + len(data.valid) + 1
