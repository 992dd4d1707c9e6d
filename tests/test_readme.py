"""What README.md says is run, or looked up, here."""

import inspect
import re
import shlex
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from typer.main import get_command
from typer.testing import CliRunner

from phicalc import PhiCalculator
from phicalc.cli import app
from phicalc.data.boxes import salt_water, water_box
from phicalc.electrostatics.solvers.poisson import DIRECT_LIMIT
from phicalc.serving.metadata import read_metadata
from phicalc.train.config import load_config, parse_config
from phicalc.units import COULOMB_CONSTANT
from tests.serving.test_response import served

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "models" / "nacl-water.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "nacl-water.pt"
PHI_MODEL = ROOT / "models" / "nacl-water-phi.pt"


def blocks(language, text=TEXT):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def phicalc_commands(text=TEXT):
    """Arguments of each ``phicalc`` command: in shell blocks, and in backticks with arguments."""
    joined = [block.replace("\\\n", " ") for block in blocks("sh", text)]
    lines = [line.split("#")[0].strip() for block in joined for line in block.splitlines()]
    lines += re.findall(r"`(phicalc [^`]+)`", text)
    return [shlex.split(line)[1:] for line in lines if line.startswith("phicalc ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory that has models/ and nothing else of the checkout."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "marker, command",
    [
        ("<!-- command 1 -->", "pip install . && python md_examples/01_langevin_salt_water.py"),
        ("<!-- command 2 -->", "pip install '.[test]' && python -m pytest -q"),
    ],
)
def test_the_two_commands_stand_where_continuous_integration_reads_them(marker, command):
    lines = TEXT.splitlines()
    assert lines.count(marker) == 1
    after = lines[lines.index(marker) + 1 :]
    assert after[:3] == ["```sh", command, "```"]


def test_python_blocks_run(folder):
    namespace = {}
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    forces, charges = namespace["forces"], namespace["charges"]
    assert np.isfinite(namespace["energy"])
    assert forces.shape == (95, 3) and np.abs(forces).max() > 0.1
    assert charges.shape == (95,) and charges.sum() == pytest.approx(0.0, abs=1e-6)


def outputs_table():
    """Shape and unit by name."""
    rows = re.findall(r"^\| (`.*?) \| \((.*?)\) \| (\S+) \|", TEXT, flags=re.MULTILINE)
    return {
        name: (shape, unit) for names, shape, unit in rows for name in re.findall(r"\w+", names)
    }


def test_outputs_table_is_what_the_calculator_gives():
    table = outputs_table()
    assert set(table) == set(PhiCalculator.implemented_properties)
    liquid = salt_water(n_water=6, n_pairs=1, seed=0)
    cluster = Atoms(liquid.symbols[:3], liquid.positions[:3])
    found = {}
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    for atoms in (liquid, cluster, crystal):
        atoms.calc = PhiCalculator(served("phi-coulomb") if atoms is crystal else MODEL)
        atoms.get_potential_energy()
        results = dict(atoms.calc.results)
        if atoms is crystal:  # computed when asked for
            names = ("born_effective_charges", "dielectric_tensor", "polarization")
            results |= {name: atoms.calc.get_property(name, atoms) for name in names}
        for name, value in results.items():
            shape = tuple({"N": len(atoms)}.get(n, n) for n in re.findall(r"\w+", table[name][0]))
            assert np.shape(value) == tuple(int(n) for n in shape), name
            found[name] = table[name][1]
    assert set(found) == set(table)
    assert found["stress"] == "eV/Å³" and found["dipole"] == "e·Å"
    assert sum(liquid.calc.results["energies"]) == pytest.approx(liquid.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        liquid.get_dipole_moment()
    with pytest.raises(PropertyNotImplementedError):
        cluster.get_stress()


def test_sign_of_the_stress():
    """Tension positive: a box that is squeezed has a negative trace, which wants to expand."""
    atoms = water_box(8, seed=0)
    atoms.calc = PhiCalculator(MODEL)
    volume, step = atoms.get_volume(), 1e-4
    trace = np.trace(atoms.get_stress(voigt=False))
    energies = []
    for sign in (1, -1):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * (1 + sign * step), scale_atoms=True)
        scaled.calc = PhiCalculator(MODEL)
        energies.append(scaled.get_potential_energy())
    slope = (energies[0] - energies[1]) / (2 * step)
    assert trace == pytest.approx(slope / volume, rel=0.05, abs=1e-3)


def test_attributes_named_exist_and_are_of_use():
    """Each ``calc.name`` of the text, with arguments as the text has them."""
    atoms = salt_water(n_water=6, n_pairs=1, seed=0)
    calc = atoms.calc = PhiCalculator([MODEL, MODEL])
    atoms.get_potential_energy()
    expressions = set(re.findall(r"\bcalc\.\w+(?:\([^)]*\))?", TEXT))
    named = {re.match(r"calc\.(\w+)", expression)[1] for expression in expressions}
    assert named >= {
        "potential", "spectrum", "energy_terms", "cache_info", "timings", "energy_spread",
        "forces_spread",
    }  # fmt: skip
    values = {text: eval(text, {"calc": calc}) for text in expressions}
    assert values["calc.forces_spread"].shape == (len(atoms),)
    assert values["calc.energy_spread"] == pytest.approx(0.0, abs=1e-9)
    assert len(values["calc.spectrum(modes=16)"].eigenvalues) == 16
    terms = values["calc.energy_terms"]
    listed = re.search(r"the energy by term: (.*)", TEXT)[1].split(", ")
    assert sorted(terms) == sorted(listed)
    assert sum(terms.values()) == pytest.approx(atoms.get_potential_energy())


def test_options_of_the_calculator_and_their_defaults():
    paragraph = re.search(r"^Options: (.*?)\n\n", TEXT, flags=re.DOTALL | re.MULTILINE)[1]
    listed = dict(re.findall(r"`(\w+)=([^`]+)`", paragraph))
    parameters = inspect.signature(PhiCalculator.__init__).parameters.values()
    real = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {name: eval(value) for name, value in listed.items()} == real


def test_configuration_is_valid():
    (block,) = blocks("yaml")
    config = parse_config(yaml.safe_load(block))
    assert [head.kind for head in config.model.heads] == ["phi"]
    assert config.output == Path("run") and config.epochs == 300


def test_commands_and_their_options_exist():
    commands = phicalc_commands()
    assert {arguments[0] for arguments in commands} == set(get_command(app).commands)
    in_card = phicalc_commands(CARD)
    assert {arguments[0] for arguments in in_card} == {"train", "export", "eval", "info"}
    for name, *arguments in [*commands, *in_card]:
        if arguments:
            get_command(app).commands[name].make_context(name, list(arguments))


@pytest.mark.parametrize(("model", "head"), [(MODEL, "phi-coulomb"), (PHI_MODEL, "phi")])
def test_card_is_of_the_model_beside_it(model, head):
    """Size of the network, frames left out, elements and licence, as file and card state them."""
    card = model.with_suffix(".md").read_text(encoding="utf-8")
    metadata = read_metadata(model)
    config = load_config(model.with_suffix(".yaml"))
    network = config.model.backbone
    described = f"PaiNN ({network.features} features, {network.layers} layers, cutoff"
    shown = {"phi": "Φ", "phi-coulomb": "`phi-coulomb`"}[head]
    assert f"{described} {metadata.cutoff} Å) with a {shown} head" in card
    assert (metadata.backbone, metadata.heads) == ("painn", [head])
    assert metadata.cutoff == config.model.cutoff
    assert f"Elements {', '.join(metadata.symbols)}." in card
    assert f"| train | {', '.join(map(str, config.data.skip_train))} |" in card
    assert f"| valid | {', '.join(map(str, config.data.skip_valid))} |" in card
    assert metadata.licence == "CC BY-SA 4.0" and metadata.licence in card
    for part in ("CC BY-SA 4.0", "niamhon/nacl-water", "O'Neill et al.", "arXiv 2311.01527"):
        assert part in metadata.data_licence and part in card
    assert model.stat().st_size < 5e6


@pytest.mark.parametrize("name", ["nacl-water", "nacl-water-phi", "kcl-crystal"])
def test_errors_on_the_card_are_those_in_the_file(name):
    model = MODEL.with_name(f"{name}.pt")
    card = model.with_suffix(".md").read_text(encoding="utf-8")
    errors = read_metadata(model).provenance.valid_errors
    energy, forces = errors["energy_per_atom"], errors["forces"]
    energies = f"| {1e3 * energy.mae:.3f} | {1e3 * energy.rmse:.3f} |"
    assert energies in card
    assert f"| {1e3 * forces.mae:.1f} | {1e3 * forces.rmse:.1f} |" in card


def labelled(path, seeds):
    """Small boxes of water with the shipped model's own energies and forces for labels."""
    frames = []
    for seed in seeds:
        atoms = water_box(4, seed=seed)
        atoms.calc = PhiCalculator(MODEL)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    ase.io.write(path, frames)


def test_training_commands_run_in_their_order(folder):
    """The README's configuration, of one epoch, and its commands; the rest is tested elsewhere."""
    labelled("train.extxyz.gz", range(4))
    labelled("valid.extxyz.gz", range(4, 6))
    (block,) = blocks("yaml")
    config = yaml.safe_load(block) | {"epochs": 1, "threads": 1, "tensorboard": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ran = []
    for arguments in phicalc_commands():
        if arguments[0] not in {"train", "export", "eval", "info"}:
            continue
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 0, (arguments, result.output)
        ran.append(arguments[0])
    assert ran == ["train", "train", "export", "export", "eval", "info"]
    for name in ("run/best.pt", "run/last.pt", "run/metrics.csv", "model.pt"):
        assert (folder / name).is_file(), name
    assert [path.name for path in folder.rglob("errors.json")] == ["errors.json"]
    assert [path.name for path in folder.rglob("parity.png")] == ["parity.png"]
    atoms = water_box(4, seed=9)
    atoms.calc = PhiCalculator("model.pt")
    assert np.isfinite(atoms.get_forces()).all()


def test_files_named_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    paths = re.findall(r"\b(?:phicalc|md_examples|models|tests)/[\w./-]+\.\w+", TEXT)
    assert len(links) >= 3 and len(paths) >= 8
    assert [name for name in {*links, *paths} if not (ROOT / name).is_file()] == []
    assert (ROOT / "md_examples" / "langevin.png").stat().st_size < 150_000


def test_numbers_that_the_text_takes_from_the_code():
    assert f"up to {DIRECT_LIMIT} atoms are solved directly" in TEXT
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "python_requires = >=3.10,<3.14" in setup and "Python 3.10 to 3.13" in TEXT
    assert "torch>=2.6,<2.15" in setup and "torch 2.6 to 2.14" in TEXT
    assert "ase>=3.29,<3.30" in setup and "ASE 3.29" in TEXT


def test_phi_does_not_reach_beyond_the_graph():
    """The limit that the text states first: separate fragments add up, ions included."""
    pair = Atoms("NaCl", [[0, 0, 0], [30.0, 0, 0]])
    single = {}
    for symbol in ("Na", "Cl"):
        atom = Atoms(symbol)
        atom.calc = PhiCalculator(PHI_MODEL)
        single[symbol] = atom.get_potential_energy()
    pair.calc = PhiCalculator(PHI_MODEL)
    assert pair.get_potential_energy() == pytest.approx(sum(single.values()), abs=1e-6)
    np.testing.assert_allclose(pair.get_forces(), 0.0, atol=1e-9)
    np.testing.assert_allclose(pair.get_charges(), 0.0, atol=1e-9)


def test_phi_with_coulomb_does():
    """−k/r between ions that share no edge, of the formal charges."""
    pair = Atoms("NaCl", [[0, 0, 0], [30.0, 0, 0]])
    pair.calc = PhiCalculator(MODEL)
    near = pair.get_potential_energy()
    assert pair.get_forces()[0, 0] == pytest.approx(COULOMB_CONSTANT / 30.0**2, rel=1e-4)
    pair.positions[1, 0] = 60.0
    gained = pair.get_potential_energy() - near
    assert gained == pytest.approx(COULOMB_CONSTANT * (1 / 30 - 1 / 60), rel=1e-4)
