"""The benchmark on boxes of a few molecules: every number is there and they add up."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from phicalc.bench.box import BoxRequest, box_of_water, measure, untrained_model
from phicalc.bench.report import run_bench
from phicalc.bench.steps import HEADS
from phicalc.cli.bench_tables import heads_table
from phicalc.data.neighbours import closest_overlap
from phicalc.errors import ConfigError, ModelFileError, UnsupportedError
from phicalc.machine.files import write_bytes
from phicalc.model.config import ModelConfig, PaiNNConfig

SMALL = PaiNNConfig(features=8, layers=1, radial=4)


def model_file(folder, elements=(1, 8), **options):
    config = ModelConfig(backbone=SMALL, cutoff=3.0, zbl=False, **options)
    path = folder / "model.pt"
    write_bytes(path, untrained_model(config, elements).data)
    return path


def check_box(box, atoms, steps):
    assert (box.atoms, box.steps) == (atoms, steps)
    assert box.edges > 2 * atoms
    assert set(box.parts) == {"neighbours", "backbone", "autograd", "electrostatics", "ase"}
    assert box.step_seconds == pytest.approx(sum(box.parts.values()))
    assert 0.0 < box.steps_per_second < 1e5
    assert min(box.parts["neighbours"], box.parts["backbone"], box.parts["ase"]) > 0.0
    assert 0.0 <= box.neighbour_reuse <= 1.0
    assert 50.0 < box.base_memory <= box.peak_memory < 4000.0


def test_run_bench(tmp_path):
    seen = []
    result = run_bench(
        model_file(tmp_path), [26], steps=4, threads=1, device="cpu", progress=seen.append
    )
    assert seen == result.boxes
    check_box(result.boxes[0], atoms=24, steps=4)
    assert (result.backbone, result.heads, result.dtype) == ("painn", ["phi"], "float32")

    result.write_json(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert content["boxes"][0]["steps_per_second"] == result.boxes[0].steps_per_second
    assert content["boxes"][0]["electrostatics_share"] == result.boxes[0].electrostatics_share

    result.write_plot(tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_cache_lowers_the_iterations(tmp_path):
    """300 atoms are beyond the direct solve; the warm start saves iterations at the least."""
    request = BoxRequest(str(model_file(tmp_path)), 100, 4, 60.0, "cpu", None, 0)
    box = measure(request)
    check_box(box, atoms=300, steps=4)
    assert 0 < box.solver_iterations < box.uncached_solver_iterations


def test_a_model_without_heads_has_no_electrostatics(tmp_path):
    request = BoxRequest(str(model_file(tmp_path, heads=[])), 8, 3, 60.0, "cpu", None, 0)
    box = measure(request)
    assert box.parts["electrostatics"] == box.electrostatics_share == box.uncached_share == 0.0


def test_time_limit(tmp_path):
    request = BoxRequest(str(model_file(tmp_path)), 8, 10_000, 0.0, "cpu", None, 0)
    assert measure(request).steps == 3


def test_untrained_model_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    one = untrained_model(ModelConfig(backbone=SMALL), [1, 8], seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = list(one.weights().values())
    for seed, same in ((1, True), (2, False)):
        other = untrained_model(ModelConfig(backbone=SMALL), [1, 8], seed=seed)
        pairs = zip(weights, other.weights().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_errors(tmp_path):
    path = model_file(tmp_path)
    with pytest.raises(ConfigError, match=r"expected sizes of at least 3 atoms, got \[192, 2\]"):
        run_bench(path, [192, 2])
    with pytest.raises(ConfigError, match="expected steps ≥ 1, got 0"):
        run_bench(path, [24], steps=0)
    with pytest.raises(ConfigError, match="expected threads ≥ 1, got 0"):
        run_bench(path, [24], threads=0)
    with pytest.raises(ModelFileError, match="no such file"):
        run_bench(tmp_path / "none.pt", [24])
    with pytest.raises(UnsupportedError, match="expected a model that knows H and O, got"):
        run_bench(model_file(tmp_path, elements=(18,)), [24])


def test_a_box_that_fails_says_why(tmp_path, monkeypatch):
    path = model_file(tmp_path)
    monkeypatch.setattr("phicalc.bench.report.resolve_device", lambda device: "nonsense")
    with pytest.raises(UnsupportedError, match=r"box of 24 atoms could not be run: .*nonsense"):
        run_bench(path, [24])


def test_a_table_of_heads(tmp_path):
    """Each head, with what a step takes of time and memory."""
    seen = []
    result = run_bench(
        model_file(tmp_path),
        [90],
        steps=3,
        threads=1,
        device="cpu",
        heads=True,
        progress=seen.append,
    )
    assert seen == [*result.boxes, *result.heads_table]
    assert [row.heads for row in result.heads_table] == list(HEADS)
    for row in result.heads_table:
        assert (row.atoms, row.steps) == (90, 3) and 0.0 < row.seconds < 10.0
        assert row.microseconds_per_atom == pytest.approx(1e6 * row.seconds / row.atoms)
        assert 0.0 <= row.memory_per_atom < 100.0
        # so few atoms are solved directly, but with Coulomb sums by iterations
        assert (row.solver_iterations > 0.0) == (row.heads == "phi-coulomb")
    result.write_json(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    first = content["heads_table"][0]
    assert (first["heads"], first["atoms"]) == ("no head", 90)
    assert first["microseconds_per_atom"] == result.heads_table[0].microseconds_per_atom
    printed = Console(width=200, file=io.StringIO())
    printed.print(heads_table(result))
    text = printed.file.getvalue()
    assert "cpu, 1 thread" in text and "µs/atom" in text and text.count("phi-coulomb") == 1


def test_large_boxes_are_made_of_small_ones():
    box = box_of_water(64 * 27, seed=0)
    assert len(box) == 5184
    np.testing.assert_allclose(box.cell, 3 * box_of_water(64, seed=0).cell)
    assert closest_overlap(box.positions, box.cell.array, box.pbc, 0.7) is None
