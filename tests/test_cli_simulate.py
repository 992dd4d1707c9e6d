"""The commands that simulate, on a molecule, a crystal, and bad input."""

from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.data.boxes import water_box

MODELS = Path(__file__).resolve().parents[1] / "models"
MODEL = str(MODELS / "nacl-water.pt")
PHI_MODEL = str(MODELS / "nacl-water-phi.pt")


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
    result = call("phonons", PHI_MODEL, path, "--length", 5, "--mesh", 10, "--no-relax", "-o", out)
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


def test_eos_and_elastic(tmp_path):
    path = tmp_path / "nacl.xyz"
    write(path, bulk("NaCl", "rocksalt", a=5.7))
    command = ["--no-relax", "-o", tmp_path / "out"]
    # the model knows the liquid: its crystal has a minimum somewhere, found or not
    result = call("eos", MODEL, path, "--span", 0.3, "--points", 7, *command)
    assert result.exit_code in (0, 3), result.output
    if result.exit_code == 0:
        assert "bulk modulus" in result.output and (tmp_path / "out" / "eos.png").exists()
    else:
        assert "expected the minimum between" in result.stderr
    result = call("elastic", MODEL, path, *command)
    assert result.exit_code == 0, result.output
    assert "space group Fm-3m (225)" in result.output and "Poisson" in result.output
    assert (tmp_path / "out" / "elastic.json").exists()


# what every command needs besides its files, to get as far as opening them
COMMANDS = {
    "md": ("-n", 1, "-T", 300),
    "relax": (),
    "phonons": (),
    "eos": (),
    "elastic": (),
    "predict": (),
    "eval": (),
}
FILES = {
    "missing structure": ("MODEL", "none.xyz", "does not exist"),
    "unknown extension": ("MODEL", "WATER.abc", "expected a format that ASE reads"),
    "damaged structure": ("MODEL", "BROKEN.xyz", "expected a sound file of structures"),
    "missing model": ("none.pt", "CRYSTAL.xyz", "no such file; expected a phicalc model"),
    "no model": ("CRYSTAL.xyz", "CRYSTAL.xyz", "expected a phicalc model"),
    "cut model": ("CUT.pt", "CRYSTAL.xyz", "cut short"),
    "foreign element": ("MODEL", "COPPER.xyz", "got Cu"),
    "no device": ("MODEL", "CRYSTAL.xyz", "CUDA"),
    "unwritable": ("MODEL", "CRYSTAL.xyz", "expected a writable folder"),
}
OWN = [
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 0, "-T", 300), "steps: expected"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", -5), "temperature"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1), "temperature: expected a value in K"),
    (
        ("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", "hot"),
        "--temperature: expected a number, or several",
    ),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--timestep", 0), "timestep: expected"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--every", 0), "_every: expected"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--fix", "a"), "--fix: expected atoms"),
    (
        ("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--frame", 3),
        "--frame: expected one of 1",
    ),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--ensemble", "nph"), "ensemble"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "-P", 1), "pressure: expected npt"),
    (("md", "MODEL", "CRYSTAL.xyz", "-n", 1, "-T", 300, "--property", "magmom"), "magmom"),
    (("relax", "MODEL", "CRYSTAL.xyz", "-n", 0), "steps: expected"),
    (("relax", "MODEL", "CRYSTAL.xyz", "--max-force", -1), "--max-force: expected"),
    (("relax", "MODEL", "MOLECULE.xyz", "--cell", "full"), "periodic in three directions"),
    (("phonons", "MODEL", "CRYSTAL.xyz", "--length", 0), "--length: expected"),
    (("phonons", "MODEL", "MOLECULE.xyz"), "periodic in three directions"),
    (
        ("phonons", "MODEL", "CRYSTAL.xyz", "--no-relax", "--length", 4, "--born", "none"),
        "expected a BORN file",
    ),
    (("eos", "MODEL", "CRYSTAL.xyz", "--points", 0), "points: expected"),
    (("eos", "MODEL", "MOLECULE.xyz"), "periodic in three directions"),
    (("elastic", "MODEL", "CRYSTAL.xyz", "--strain", 0), "strain: expected"),
    (("elastic", "MODEL", "MOLECULE.xyz"), "periodic in three directions"),
    (("predict", "MODEL", "CRYSTAL.xyz", "-o", "out.cif"), "expected an output .xyz or .extxyz"),
    (("predict", "MODEL", "CRYSTAL.xyz", "-o", "CRYSTAL.xyz"), "exists already"),
    (("predict", "MODEL", "CRYSTAL.xyz", "--charge", 1), "frame 0: expected total charge 0"),
    (("eval", "MODEL", "CRYSTAL.xyz"), "no label is present"),
    (("eval", "MODEL", "CRYSTAL.xyz", "--skip", 5), "frames 0 to 0 to skip"),
    (("spectra", "none.traj"), "expected a trajectory, got none.traj"),
    (("spectra", "COPPER.xyz"), "momenta"),
    (("spectra", "WATER.abc"), "expected a trajectory"),
    (("spectra", "COPPER.xyz", "-T", -1), "temperature: expected"),
    (("spectra", "COPPER.xyz", "--correlation-time", 0), "--correlation-time: expected"),
]


def file_cases():
    for command, more in COMMANDS.items():
        for kind, (model, structure, message) in FILES.items():
            arguments = [command, model, structure, *more]
            if kind == "no device":
                arguments += ["--device", "cuda:99"]
            if kind == "unwritable":
                inside = "CRYSTAL.xyz/out" + (".xyz" if command == "predict" else "")
                structure = "LABELLED.xyz" if command == "eval" else structure
                arguments = [command, model, structure, *more, "-o", inside]
            yield pytest.param(tuple(arguments), message, id=f"{command}-{kind}")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder of good and bad files."""
    monkeypatch.chdir(tmp_path)
    write("CRYSTAL.xyz", bulk("NaCl", "rocksalt", a=5.7))
    labelled = molecule("H2O")
    labelled.calc = SinglePointCalculator(labelled, energy=-400.0)
    write("LABELLED.xyz", labelled)
    write("MOLECULE.xyz", molecule("H2O"))
    copper = bulk("Cu")
    copper.calc = SinglePointCalculator(copper, energy=-1.0)
    write("COPPER.xyz", copper)
    (tmp_path / "WATER.abc").write_bytes((tmp_path / "MOLECULE.xyz").read_bytes())
    (tmp_path / "BROKEN.xyz").write_text("3\n\nH 0 0\n")
    (tmp_path / "CUT.pt").write_bytes(Path(MODEL).read_bytes()[:5000])
    return tmp_path


@pytest.mark.parametrize("arguments, message", [*file_cases(), *OWN])
def test_bad_input_is_one_line_and_status_2(workplace, arguments, message):
    def content():
        return {path: path.read_bytes() if path.is_file() else b"" for path in workplace.rglob("*")}

    before = content()
    result = call(*(MODEL if a == "MODEL" else a for a in arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert content() == before
