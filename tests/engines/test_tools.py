"""md_examples/tools.md: each of its blocks is run as it stands there, by the tool it is for."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase.io
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator
from scipy.optimize import minimize_scalar

from phicalc import PhiCalculator
from phicalc.errors import UnsupportedError
from phicalc.serving.model_file import save_model
from phicalc.workflows.crystal import EquationOfState, EquationOfStateSettings
from tests.reference_models import small_metadata, small_potential

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "md_examples" / "tools.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "kcl-crystal.pt"  # of double precision
SINGLE = ROOT / "models" / "nacl-water-phi.pt"
BLOCKS = dict(re.findall(r"^<!-- (.+?) -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

# Of the tool's name in the table: what it takes to run its line. Those of the extra `tools` are in
# the extra `test`, too; the rest is too large for that.
NEEDED = {
    "matcalc": ["matcalc"],
    "quacc": ["quacc", "matcalc"],
    "atomate2": ["atomate2", "jobflow", "pymatgen"],
    "janus-core": ["janus_core", "codecarbon"],
    "mlipx": ["mlipx", "znh5md", "zntrack"],
    "ml-peg": ["ml_peg", "mlipx", "znh5md", "zntrack"],
}
OURS = ["matcalc", "quacc"]


@pytest.fixture
def crystal() -> Atoms:
    """Rock salt of KCl, stretched, its symmetry broken."""
    atoms = bulk("KCl", "rocksalt", a=6.4, cubic=True)
    atoms.rattle(0.03, seed=2)
    return atoms


@pytest.fixture
def folder(tmp_path, crystal) -> Path:
    """What the blocks find where they run."""
    (tmp_path / "model.pt").symlink_to(MODEL)
    ase.io.write(tmp_path / "structure.xyz", crystal)
    return tmp_path


def block(tool: str) -> str:
    """Its text; skips where the tool is not there and our extras do not bring it."""
    for package in NEEDED.get(tool, []):
        if find_spec(package) is None:
            brought = tool in OURS and sys.version_info >= (3, 11)
            pytest.skip(f"could not import {package}" if brought else f"{tool} is in no extra")
    return BLOCKS[tool].replace("/path/to/model.pt", "model.pt")


def python(folder: Path, text: str, last: str) -> Any:
    """What a process of its own that runs these lines says on one more, as JSON."""
    script = folder / "script.py"
    script.write_text(f"{text}\nimport json\nprint(json.dumps({last}))\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def energy_of_rock_salt(lattice_constant: float | None = None) -> float:
    """By symmetry what any relaxation must end in, eV; None: at the best lattice constant."""
    calculator = PhiCalculator(MODEL, device="cpu", default_dtype="float64")

    def energy(a: float) -> float:
        return float(calculator.get_potential_energy(bulk("KCl", "rocksalt", a=a, cubic=True)))

    if lattice_constant is not None:
        return energy(lattice_constant)
    return float(minimize_scalar(energy, bounds=(6.0, 6.8), method="bounded").fun)


# --- the page -----------------------------------------------------------------------------------


def test_each_line_of_the_table_stands_in_a_block():
    rows = re.findall(r"^\| (.+?) \| .+? \| `(.+?)` \|$", PAGE, re.MULTILINE)
    tools = [tool.split()[0] for tool, _ in rows]
    assert tools == ["ASE", "ASE", *NEEDED]
    everything = re.sub(r"\s+", " ", " ".join(BLOCKS.values()))
    names = [name for name in BLOCKS if not name.startswith("ase")]
    assert names == list(NEEDED)
    for tool, line in rows:
        shown = everything if tool.startswith("ASE") else BLOCKS[tool.split()[0]]
        # the table leaves out further arguments
        assert line.removesuffix(")") in re.sub(r"\s+", " ", shown), line


# --- ASE ----------------------------------------------------------------------------------------


def test_ases_plugin(folder, crystal):
    found = python(folder, block("ase plugins"), "calculator.parameters")
    assert found["model"] == "model.pt"


def test_ases_socket_client(folder, crystal):
    script = folder / "client.py"
    name = f"phicalc-{folder.name}-{folder.parent.name}"
    script.write_text(BLOCKS["ase sockets"].replace('"salt"', repr(name)), encoding="utf-8")
    expected = PhiCalculator(MODEL, device="cpu")
    with SocketIOCalculator(unixsocket=name, timeout=120) as server:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        client = subprocess.Popen([sys.executable, script], cwd=folder, env=environment)
        crystal.calc = server
        for _ in range(2):
            assert crystal.get_potential_energy() == pytest.approx(
                expected.get_potential_energy(crystal), abs=1e-4
            )
            assert crystal.get_forces() == pytest.approx(expected.get_forces(crystal), abs=1e-4)
            assert crystal.get_stress() == pytest.approx(expected.get_stress(crystal), abs=1e-5)
            crystal.rattle(0.02, seed=3)
    assert client.wait(timeout=60) == 0


# --- tools --------------------------------------------------------------------------------------


def test_matcalc(folder, crystal):
    """Its bulk modulus is ours: the same points, another program's fit."""
    found = python(folder, block("matcalc"), '{"modulus": bulk_modulus}')
    crystal.calc = PhiCalculator(MODEL, device="cpu")
    ours = EquationOfState(crystal, EquationOfStateSettings()).run()
    assert found["modulus"] == pytest.approx(ours.bulk_modulus, rel=0.03)


def test_quacc(folder, crystal):
    found = python(
        folder,
        block("quacc"),
        '{"energy": energy, "said": done["parameters"], "ok": bool(done["converged"])}',
    )
    assert found["ok"]
    assert found["energy"] == pytest.approx(energy_of_rock_salt(6.4), abs=1e-3)
    kept = PhiCalculator(MODEL, device="cpu").parameters
    assert {key: found["said"][key] for key in kept if key not in ("model", "device")} == {
        key: kept[key] for key in kept if key not in ("model", "device")
    }


def test_atomate2(folder, crystal):
    found = python(
        folder,
        block("atomate2"),
        '{"energy": energy, "name": done.forcefield_name, "version": done.forcefield_version}',
    )
    assert found["name"] == "PhiCalculator"
    assert found["version"] == PhiCalculator(MODEL, device="cpu").parameters["phicalc_version"]
    # its makers relax the cell as well
    assert found["energy"] == pytest.approx(energy_of_rock_salt(), abs=2e-3)


def test_janus_core(folder, crystal):
    python(folder, block("janus-core"), "None")
    written = ase.io.read(next(folder.rglob("*opt*.extxyz")))
    assert written.info["arch"] == "phicalc"
    assert written.info["phicalc_energy"] == pytest.approx(energy_of_rock_salt(6.4), abs=1e-3)


def test_mlipx(folder, crystal):
    found = python(
        folder,
        block("mlipx"),
        'MODELS["phicalc"].get_calculator().parameters | {"ready": MODELS["phicalc"].available}',
    )
    assert found["ready"] and found["default_dtype"] == "float64"


def test_ml_peg(folder):
    text = block("ml-peg")
    (folder / "models.yml").write_text(text, encoding="utf-8")
    (folder / "model.pt").unlink()
    (folder / "model.pt").symlink_to(SINGLE)
    found = python(
        folder,
        """
from ml_peg.models.get_models import load_models

models = load_models(filepath="models.yml", run_mock=False, mock_only=False)
model = models["phicalc-nacl-water"]
calculators = [model.get_calculator(precision=name) for name in ("low", "high")]
assert model.add_d3_calculator(calculators[0]) is calculators[0]
""",
        '[calculator.parameters["default_dtype"] for calculator in calculators]',
    )
    assert found == ["float32", "float64"]


def test_what_ml_peg_and_mlipx_pass(tmp_path):
    """Their calls, where they are not installed: all by keyword, device and precision resolved."""
    (entry,) = yaml.safe_load(BLOCKS["ml-peg"]).values()
    module = import_module(entry["module"])
    make = getattr(module, entry["class_name"])
    for dtype in ("float32", "float64"):
        calculator = make(model=str(SINGLE), default_dtype=dtype, device="cpu")
        assert calculator.parameters["default_dtype"] == dtype
    double = save_model(
        small_potential(dtype="float64"), tmp_path / "double.pt", small_metadata(dtype="float64")
    )
    with pytest.raises(UnsupportedError, match=r"got .float32."):
        make(model=str(double), default_dtype="float32", device="cpu")
    make(model=str(double), default_dtype="float64", device="cpu")
