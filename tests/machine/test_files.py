import json

import pytest

from phicalc.bench.report import BenchResult
from phicalc.errors import OutputError
from phicalc.machine.files import file_sha256, replacing, write_json


def test_json_is_for_people_too(tmp_path):
    path = tmp_path / "water.json"
    write_json(path, {"unit": "eV/Å", "values": [1.5, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"unit": "eV/Å", "values": [1.5, None]}
    assert '  "unit": "eV/Å",\n' in text and text.endswith("}\n")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    with pytest.raises(RuntimeError), replacing(path) as new:  # noqa: PT012
        new.write_text("half of")
        raise RuntimeError
    with pytest.raises(OutputError, match=r"cannot write .*none"):
        write_json(tmp_path / "none" / "a.json", 2)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["1\n"]


def test_a_benchmark_that_cannot_be_drawn_leaves_the_old_picture(tmp_path, monkeypatch):
    result = BenchResult("m.pt", "painn", [], "float32", 5.0, 1, "cpu", 1, "2", [])
    path = tmp_path / "bench.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("phicalc.bench.report._draw_speed", lambda *a: None)
    monkeypatch.setattr("phicalc.bench.report._draw_parts", lambda *a: None)
    monkeypatch.setattr("phicalc.bench.report._draw_memory", lambda *a: None)

    def half_a_picture(figure, new, **options):
        new.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_a_picture)
    with pytest.raises(OutputError, match="No space left"):
        result.write_plot(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_sha256_is_the_standards(tmp_path):
    """Two examples of FIPS 180."""
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == expected
    path.write_bytes(b"a" * 1_000_000)
    expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert file_sha256(path) == expected
