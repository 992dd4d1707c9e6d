"""Every option of every command with values that mean nothing: one sentence, exit status 2."""

from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import typer
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from phicalc import PhiCalculator
from phicalc.cli import app
from phicalc.data.boxes import salt_water
from tests.workflows.spectra.test_spectra import diatomic

MODEL = str(Path(__file__).resolve().parents[1] / "models" / "nacl-water.pt")

ARGUMENTS = {
    "md": ("MODEL", "CRYSTAL.xyz", "-n", "1", "-T", "300"),
    "relax": ("MODEL", "CRYSTAL.xyz"),
    "eos": ("MODEL", "CRYSTAL.xyz"),
    "elastic": ("MODEL", "CRYSTAL.xyz"),
    "phonons": ("MODEL", "CRYSTAL.xyz"),
    "predict": ("MODEL", "CRYSTAL.xyz"),
    "eval": ("MODEL", "LABELLED.xyz"),
    "spectra": ("md.traj",),
    "export": ("none.pt",),
    "bench": ("MODEL",),
    "train": ("none.yaml",),
    "info": ("none.pt",),
    "ablate": ("none.yaml",),
}
ANY_TEXT = {"description", "licence", "data_licence", "rows"}
"""Options that may say anything, or whose values are checked against a file."""

SETTING = {"every": "_every", "properties": "propert", "born_file": "BORN"}
"""Other words by which a message may name an option."""

WRONG: dict[type, tuple[str, ...]] = {
    float: ("nan", "inf", "-inf", "abc", "", "1,5"),
    int: ("nan", "inf", "1.5", "abc", "", "99999999999999999999999"),
    str: ("?!", "nan"),
}
NOT_NEGATIVE = {
    *("steps", "timestep", "thermostat_time", "barostat_time", "seed", "every", "max_spread"),
    *("checkpoint_every", "threads", "max_force", "max_stress", "correlation_time", "maximum"),
    *("interval", "span", "points", "strain", "supercell_length", "displacement", "mesh"),
    *("batch_size", "skip", "seconds", "size", "trajectory_every", "log_every", "max_speed"),
    *("max_temperature", "max_energy_jump", "symmetry_tolerance"),
}
HUGE_IS_FINE = {
    *("steps", "every", "trajectory_every", "log_every", "checkpoint_every", "seed", "threads"),
    *("batch_size", "size"),
}


def kind_of(hint: Any) -> type:
    """The type of one value of an option."""
    while get_origin(hint) in (Union, UnionType, list):
        hint = next(t for t in get_args(hint) if t is not NoneType)
    return hint


def cases():
    main = typer.main.get_command(app)
    assert set(main.commands) == set(ARGUMENTS)
    for name, command in main.commands.items():
        hints = get_type_hints(command.callback)
        for option in command.params:
            if option.param_type_name != "option" or option.name in ANY_TEXT:
                continue
            kind = kind_of(hints[option.name])
            if kind in (bool, Path) or kind not in (float, int, str):
                continue
            wrong = list(WRONG[kind])
            if option.name in ("temperature", "pressure", "mesh") and kind is str:
                wrong = ["nan", "inf", "abc", "", "300:nan", ":", "300:"]
            field = option.name.removeprefix("relax_")
            if kind is int and field in HUGE_IS_FINE:
                wrong.remove("99999999999999999999999")
            if field in NOT_NEGATIVE:
                wrong.append("-3")
            if option.name == "seconds":
                wrong.remove("-inf")  # "-inf" and "-3" are both below zero
            for value in wrong:
                yield pytest.param(name, option, value, id=f"{name} {option.opts[0]}={value}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    write(folder / "CRYSTAL.xyz", bulk("NaCl", "rocksalt", a=5.7))
    labelled = molecule("H2O")
    labelled.calc = SinglePointCalculator(labelled, energy=-400.0)
    write(folder / "LABELLED.xyz", labelled)
    write(folder / "md.traj", list(islice(diatomic(), 200)))
    return folder


@pytest.mark.parametrize("name, option, value", list(cases()))
def test_a_value_that_means_nothing_is_one_sentence(workplace, monkeypatch, name, option, value):
    monkeypatch.chdir(workplace)
    before = sorted(workplace.rglob("*"))
    given = [MODEL if a == "MODEL" else a for a in ARGUMENTS[name]]
    result = CliRunner().invoke(app, [name, *given, f"{option.opts[0]}={value}"])
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    known = {option.name, option.opts[0], SETTING.get(option.name, option.name)}
    words = lines[0].lower().replace("-", "_")
    assert any(word.lower().replace("-", "_") in words for word in known), lines
    assert ("expected" in words and "got" in words) or "does not give" in words, lines
    for foreign in ("Input", "constrained", "tuple", "parse", "Invalid value", "http"):
        assert foreign not in lines[0], lines
    assert sorted(workplace.rglob("*")) == before


IN_A_FIELD = {
    "md": ["-n", "1", "-T", "300", "-o"],
    "relax": ["--steps", "1", "-o"],
    "predict": ["-o"],
}


@pytest.mark.parametrize("command", IN_A_FIELD)
def test_a_field_reaches_the_model(command, tmp_path):
    """The first frame written is what the calculator says in that field."""
    atoms, field = salt_water(8, 1, seed=0), (0.0, 0.02, -0.05)
    write(tmp_path / "in.xyz", atoms)
    out = tmp_path / ("out.xyz" if command == "predict" else "out")
    arguments = [command, MODEL, str(tmp_path / "in.xyz"), *IN_A_FIELD[command], str(out)]
    arguments += ["--field", *map(str, field), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 3), result.output  # one step relaxes nothing
    written = out if command == "predict" else next(out.glob("*.traj"))
    found = read(written, 0)
    assert found.info["external_field"] == pytest.approx(field)
    expected = PhiCalculator(MODEL, device="cpu", field=field).get_potential_energy(found)
    assert found.get_potential_energy() == pytest.approx(expected, abs=1e-5)
    without = found.copy()
    del without.info["external_field"]
    plain = PhiCalculator(MODEL, device="cpu").get_potential_energy(without)
    assert abs(plain - expected) > 1e-3


def test_a_field_is_three_finite_numbers(tmp_path):
    write(tmp_path / "in.xyz", salt_water(8, 1, seed=0))
    arguments = ["predict", MODEL, str(tmp_path / "in.xyz"), "-o", str(tmp_path / "out.xyz")]
    result = CliRunner().invoke(app, [*arguments, "--field", "nan", "0", "0"])
    assert result.exit_code == 2 and "--field" in result.output and "finite" in result.output
