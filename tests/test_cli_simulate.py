"""The commands that simulate, on a molecule, a crystal, and bad input."""

from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.workflows.structures import water_box

MODEL = str(Path(__file__).resolve().parents[1] / "models" / "nacl-water.pt")


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def water(tmp_path):
    path = tmp_path / "water.xyz"
    write(path, water_box(8, seed=1))
    return path


def test_md_runs_and_restarts(water, tmp_path):
    common = (
        "md",
        MODEL,
        water,
        "-T",
        "300",
        "--timestep",
        0.5,
        "--every",
        2,
        "-o",
        tmp_path / "out",
    )
    result = call(*common, "-n", 4)
    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output
    assert call(*common, "-n", 8).exit_code == 2
    assert call(*common, "-n", 8, "--restart").exit_code == 0
    assert len(read(tmp_path / "out" / "md.traj", ":")) == 5


def test_relax_and_its_exit_code(tmp_path):
    path = tmp_path / "w.xyz"
    write(path, molecule("H2O"))
    result = call("relax", MODEL, path, "-n", 1, "--max-force", 1e-6, "-o", tmp_path / "r")
    assert result.exit_code == 3, result.output
    assert "not converged after 1 steps" in result.stderr
    result = call("relax", MODEL, path, "-o", tmp_path / "r2")
    assert result.exit_code == 0, result.output
    assert "largest force" in result.output


def test_phonons_and_spectra(tmp_path, water):
    path = tmp_path / "nacl.xyz"
    write(path, bulk("NaCl", "rocksalt", a=5.7))
    out = tmp_path / "p"
    result = call("phonons", MODEL, path, "--length", 5, "--mesh", 10, "--no-relax", "-o", out)
    assert result.exit_code == 0, result.output
    assert "no LO-TO splitting" in result.output and (out / "phonons.png").exists()
    call(
        "md",
        MODEL,
        water,
        "-T",
        300,
        "--timestep",
        0.5,
        "--every",
        2,
        "-n",
        60,
        "-o",
        tmp_path / "m",
    )
    result = call("spectra", tmp_path / "m" / "md.traj", "-o", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "no infrared spectrum" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("md", MODEL, "none.xyz", "-n", 1, "-T", 300), "does not exist"),
        (("md", MODEL, "WATER", "-n", 0, "-T", 300), "steps: expected"),
        (("md", MODEL, "WATER", "-n", 1, "-T", -5), "temperature"),
        (("md", MODEL, "WATER", "-n", 1, "-T", "hot"), "temperature: expected a number or a ramp"),
        (("md", MODEL, "WATER", "-n", 1, "-T", 300, "--fix", "a"), "--fix: expected atoms"),
        (("md", MODEL, "WATER", "-n", 1, "-T", 300, "--frame", 3), "--frame: expected one of 1"),
        (("md", "none.pt", "WATER", "-n", 1, "-T", 300), "none.pt"),
        (("relax", MODEL, "COPPER"), "Cu"),
        (("relax", MODEL, "WATER", "-o", "WATER/x"), "expected a writable folder"),
        (("phonons", MODEL, "COPPER"), "Cu"),
        (("spectra", "COPPER"), "momenta"),
    ],
)
def test_bad_input_is_one_line_and_status_2(water, tmp_path, monkeypatch, arguments, message):
    copper = tmp_path / "copper.xyz"
    write(copper, bulk("Cu"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*.*"))
    names = {"WATER": water, "COPPER": copper, "WATER/x": water / "x"}
    result = call(*(names.get(a, a) if isinstance(a, str) else a for a in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*.*")) == before
