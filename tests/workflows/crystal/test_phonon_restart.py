"""A series of displacements that is stopped anywhere goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from phicalc.cli import app
from phicalc.errors import ConfigError, OutputError, StoppedError
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.records import RecordFile

QUICK = {"relax": None, "supercell": (2, 2, 2), "mesh": (2, 2, 2), "points": 3, "animated": ()}


class Counting(EMT):
    """EMT that counts what it computes and, at one of them, is interrupted."""

    def __init__(self, interrupt_at: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.calls, self.interrupt_at, self.scale = 0, interrupt_at, scale

    def calculate(self, *args, **kwargs) -> None:
        self.calls += 1
        if self.calls == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"] * self.scale


def alloy(calculator) -> Atoms:
    """Copper-gold in a cell of low symmetry: a dozen displacements."""
    atoms = bulk("Cu", cubic=True, a=3.9)
    atoms.symbols[0] = "Au"
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    return atoms


def phonons(calculator, folder, **changes) -> Phonons:
    return Phonons(alloy(calculator), PhononSettings(**QUICK | changes), folder)


@pytest.fixture(scope="module")
def uninterrupted():
    return phonons(Counting(), None).run()


def test_a_signal_ends_the_series_and_a_restart_finishes_it(uninterrupted, tmp_path):
    total = len(uninterrupted.phonopy.supercells_with_displacements)
    assert total == 24
    with pytest.raises(StoppedError, match=f"stopped by SIGINT after 9 of {total}"):
        phonons(Counting(interrupt_at=10), tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["phonons-forces.part"]
    with pytest.raises(OutputError, match=r"forces\.part exists already; restart"):
        phonons(Counting(), tmp_path).run()
    calculator = Counting()
    result = phonons(calculator, tmp_path).run(restart=True)
    assert calculator.calls == total - 9 + 2  # the start, and the first one to compare
    np.testing.assert_array_equal(result.phonopy.forces, uninterrupted.phonopy.forces)
    np.testing.assert_array_equal(result.gamma(), uninterrupted.gamma())
    assert not (tmp_path / "phonons-forces.part").exists()


KILLED = """
import sys, time
from tests.workflows.crystal.test_phonon_restart import Counting, phonons

class Slow(Counting):
    def calculate(self, *args, **kwargs):
        time.sleep(0.02)
        super().calculate(*args, **kwargs)

phonons(Slow(), sys.argv[1]).run(restart=True)
"""


def test_killed_at_any_moment_it_loses_nothing(uninterrupted, tmp_path):
    """Three kills, each some displacements further; then the run ends as one never killed."""
    part = tmp_path / "phonons-forces.part"
    done = 0
    for _ in range(3):
        enough = part.stat().st_size + 3_000 if part.exists() else 22_000  # a record has 1.1 kB
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[3]
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if part.exists() and part.stat().st_size > enough:
                break
            time.sleep(0.005)
        process.kill()
        process.wait()
        now = len(RecordFile(part).read()) - 1
        assert now > done
        done = now
    calculator = Counting()
    result = phonons(calculator, tmp_path).run(restart=True)
    assert calculator.calls == 24 - done + 2
    np.testing.assert_array_equal(result.phonopy.forces, uninterrupted.phonopy.forces)


@pytest.fixture
def stopped(tmp_path):
    with pytest.raises(StoppedError):
        phonons(Counting(interrupt_at=6), tmp_path).run()
    return tmp_path


def test_a_damaged_record_and_what_follows_are_computed_anew(stopped, uninterrupted):
    part = stopped / "phonons-forces.part"
    content = bytearray(part.read_bytes())
    content[-10] ^= 1  # in the last record's forces
    part.write_bytes(content)
    calculator = Counting()
    result = phonons(calculator, stopped).run(restart=True)
    assert calculator.calls == 24 - 4 + 2
    np.testing.assert_array_equal(result.phonopy.forces, uninterrupted.phonopy.forces)


def test_another_series_or_calculator_is_refused(stopped):
    with pytest.raises(ConfigError, match="expected the supercells and displacements"):
        phonons(Counting(), stopped, displacement=0.02).run(restart=True)
    with pytest.raises(ConfigError, match=r"whose forces differ by .* eV/Å"):
        phonons(Counting(scale=1.01), stopped).run(restart=True)
    (stopped / "phonons-forces.part").write_text("something else")
    with pytest.raises(OutputError, match="expected the record of an unfinished run"):
        phonons(Counting(), stopped).run(restart=True)


def test_the_command_tells_a_signal_from_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "phicalc.cli.evaluation.Structure.open", lambda *a: alloy(Counting(interrupt_at=3))
    )
    command = ["phonons", "m.pt", "s.xyz", "--no-relax", "--length", "5", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 128 + signal.SIGINT and "restart it" in result.stderr
