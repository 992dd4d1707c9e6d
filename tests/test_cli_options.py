"""Every option of every command with values that mean nothing: one sentence, exit status 2."""

import re
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
from phicalc.checks.settings import Settings
from phicalc.cli import app
from phicalc.cli.evaluation import Batches, Structure, StructureInCommittee, Structures, Threaded
from phicalc.cli.options import made_of, options_from
from phicalc.data.boxes import salt_water
from phicalc.errors import ConfigError
from phicalc.workflows.crystal.elasticity import ElasticSettings
from phicalc.workflows.crystal.equation_of_state import EquationOfStateSettings
from phicalc.workflows.crystal.phonons import PhononSettings
from phicalc.workflows.crystal.start import RELAXED_CRYSTAL
from phicalc.workflows.md import GuardSettings, MDSettings, read_log
from phicalc.workflows.relax import RelaxSettings
from phicalc.workflows.spectra.spectra import SpectraSettings
from tests.workflows.spectra.test_spectra import diatomic

MODELS = Path(__file__).resolve().parents[1] / "models"
MODEL, PHI_MODEL = (str(MODELS / name) for name in ("nacl-water.pt", "nacl-water-phi.pt"))

ARGUMENTS = {
    "md": ("MODEL", "CRYSTAL.xyz", "-n", "1", "-T", "300"),
    "relax": ("MODEL", "CRYSTAL.xyz"),
    "eos": ("MODEL", "CRYSTAL.xyz"),
    "elastic": ("MODEL", "CRYSTAL.xyz"),
    "phonons": ("MODEL", "CRYSTAL.xyz"),
    "predict": ("MODEL", "CRYSTAL.xyz"),
    "eval": ("MODEL", "LABELLED.xyz"),
    "spectra": ("md.traj",),
    "lammps": ("MODEL", "none.lmp"),
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


EVALUATING = ("md", "relax", "eos", "elastic", "phonons", "predict")


def test_every_command_that_evaluates_takes_charge_and_field():
    taking = {
        name: {option.name for option in command.params} & {"charge", "field"}
        for name, command in typer.main.get_command(app).commands.items()
    }
    for name, found in taking.items():
        expected = {"charge", "field"} if name in (*EVALUATING, "lammps") else set()
        assert found == expected, name


@pytest.mark.parametrize("command", EVALUATING)
def test_a_model_without_a_field_says_so(workplace, tmp_path, command):
    given = [PHI_MODEL if a == "MODEL" else a for a in ARGUMENTS[command]]
    given = [str(workplace / a) if a == "CRYSTAL.xyz" else a for a in given]
    out = tmp_path / "out.xyz"
    options = ["--field", "0", "0", "0.1", "-o", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, [command, *given, *options])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert "error: " in line and "no electric field for this model" in line
    assert not out.exists()


def test_a_field_is_three_finite_numbers(tmp_path):
    write(tmp_path / "in.xyz", salt_water(8, 1, seed=0))
    arguments = ["predict", MODEL, str(tmp_path / "in.xyz"), "-o", str(tmp_path / "out.xyz")]
    result = CliRunner().invoke(app, [*arguments, "--field", "nan", "0", "0"])
    assert result.exit_code == 2 and "--field" in result.output and "finite" in result.output


SETTINGS = {
    "md": (MDSettings, StructureInCommittee),
    "relax": (RelaxSettings, Structure),
    "eos": (EquationOfStateSettings, Structure),
    "elastic": (ElasticSettings, Structure),
    "phonons": (PhononSettings, Structure),
    "spectra": (SpectraSettings,),
    "predict": (Structures,),
    "eval": (Batches,),
    "bench": (Threaded,),
}


def fields_of(kind):
    """Every field by the name of its option, with its words and its default."""
    for name, field in kind.model_fields.items():
        default = field.get_default()
        if name != "guards":
            yield name, (field.description, default)
        if isinstance(default, Settings):
            prefix = "" if name == "guards" else f"{name}_"
            for inner, (words, _) in fields_of(type(default)):
                yield prefix + inner, (words, getattr(default, inner))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_field_is_an_option_with_its_words_and_its_default(name):
    """Settings made of all that the help shows as defaults are those made of nothing."""
    command = typer.main.get_command(app).commands[name]
    options = {option.name: option for option in command.params}
    for kind in SETTINGS[name]:
        fields = dict(fields_of(kind))
        assert all(options[n].help.lower() == f"{fields[n][0]}.".lower() for n in fields)
        needed = {"steps": 1, "temperature": "300"} if kind is MDSettings else {}
        shown = {n: options[n].default for n in fields if options[n].default is not None}
        made = made_of(kind, list(options_from(kind, None)), shown | needed)
        assert made == made_of(kind, list(options_from(kind, None)), needed)


def test_a_number_names_its_unit_or_counts_something():
    """No option leaves a reader to guess: Å or nm, fs or ps, per atom or not."""
    units = re.compile(
        r"(Å|fs|K|GPa|cm⁻¹|eV/Å|V/Å|Å/fs|e|eV per atom|reciprocal lattice vectors)\b|cm⁻¹"
    )
    for kinds in SETTINGS.values():
        for kind in kinds:
            for name, (words, default) in fields_of(kind):
                if isinstance(default, float) and name not in ("span", "strain"):
                    assert units.search(words), (kind.__name__, name, words)


def test_what_is_written_reaches_the_settings():
    """Text, repeated options, settings within settings and what they exclude."""

    def made(kind, **given):
        options = list(options_from(kind, None))
        return made_of(kind, options, given)

    settings = made(MDSettings, steps=3, temperature="300:600", fixed_atoms="0-2,7", max_speed=0.5)
    assert settings.temperature == (300.0, 600.0) and settings.fixed_atoms == (0, 1, 2, 7)
    assert settings.guards == GuardSettings(max_speed=0.5)
    settings = made(PhononSettings, mesh="4:5:6", animated=["0:0:0", "0.5:0:0"], relax_steps=7)
    assert settings.mesh == (4, 5, 6) and settings.animated == ((0, 0, 0), (0.5, 0, 0))
    assert settings.relax == RELAXED_CRYSTAL.model_copy(update={"steps": 7})
    assert made(PhononSettings, relax=False).relax is None
    assert made(PhononSettings, relax=True) == PhononSettings()
    with pytest.raises(ConfigError, match="--relax-steps: expected no --no-relax beside it"):
        made(PhononSettings, relax=False, relax_steps=7)
    with pytest.raises(ConfigError, match=r"^--relax-max-force: expected greater than 0, got -1"):
        made(PhononSettings, relax_max_force=-1.0)


def test_the_short_forms_of_md(tmp_path):
    write(tmp_path / "in.xyz", salt_water(8, 1, seed=0))
    arguments = ["md", MODEL, str(tmp_path / "in.xyz"), "-n", "4", "-T", "300", "--device", "cpu"]
    arguments += ["--every", "1", "--log-every", "2", "--extxyz", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(read(tmp_path / "out" / "md.extxyz", ":")) == 5
    assert len(read_log(tmp_path / "out" / "md.log")) == 3
