"""A run that ends in any way continues as if it had not, to the last bit."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from phicalc.errors import ConfigError, ModelFileError, OutputError
from phicalc.workflows.frames import ExtxyzFile, TrajFile
from phicalc.workflows.md.checkpoint import Checkpoint
from phicalc.workflows.md.dynamics import MDResult, MolecularDynamics
from phicalc.workflows.md.log import LogFile
from phicalc.workflows.md.settings import MDSettings

ENSEMBLES = ["nve", "langevin", "nose-hoover", "bussi", "npt", "npt-cell"]


def settings(ensemble: str = "langevin", **changes: Any) -> MDSettings:
    values: dict[str, Any] = {
        "steps": 50,
        "ensemble": ensemble,
        "timestep": 4.0,
        "temperature": 600.0,
        "log_every": 3,
        "trajectory_every": 1,
        "checkpoint_every": 10,
        "formats": ("traj", "extxyz"),
    }
    return MDSettings(**values | changes)


class Interrupted(EMT):
    """EMT that does something at its n-th evaluation."""

    def __init__(self, evaluation: int, action: Any) -> None:
        super().__init__()
        self.remaining, self.action = evaluation, action

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.remaining -= 1
        if self.remaining == 0:
            self.action()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def die() -> None:
    raise Killed


def run(atoms: Atoms, wanted: MDSettings, folder: Path, calc: Any, restart: bool) -> MDResult:
    atoms = atoms.copy()
    atoms.calc = calc
    return MolecularDynamics(atoms, wanted, folder).run(restart=restart)


def assert_same_run(folder: Path, other: Path) -> None:
    frames, others = (read(path / "md.traj", ":") for path in (folder, other))
    assert len(frames) == len(others) == 51
    for one, two in zip(frames, others, strict=True):
        assert one.info == two.info
        for name in ("positions", "momenta"):
            np.testing.assert_array_equal(one.arrays[name], two.arrays[name])
        np.testing.assert_array_equal(one.cell, two.cell)
        np.testing.assert_array_equal(one.get_forces(), two.get_forces())
    assert (folder / "md.extxyz").read_bytes() == (other / "md.extxyz").read_bytes()
    rows, other_rows = (np.genfromtxt(path / "md.log", names=True) for path in (folder, other))
    assert rows["step"].tolist() == list(range(0, 51, 3))
    for name in set(rows.dtype.names) - {"ns_per_day"}:
        np.testing.assert_array_equal(rows[name], other_rows[name])


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_restart_continues_the_identical_trajectory(copper, tmp_path, ensemble):
    wanted = settings(ensemble)
    run(copper, wanted, tmp_path / "whole", EMT(), restart=False)
    with pytest.raises(Killed):
        run(copper, wanted, tmp_path / "cut", Interrupted(39, die), restart=False)
    assert Checkpoint.load(tmp_path / "cut" / "md.checkpoint").step == 30
    result = run(copper, wanted, tmp_path / "cut", EMT(), restart=True)
    assert result.steps == 50 and result.stopped_by is None
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("changes", [{"temperature": (300.0, 900.0)}, {"fixed_atoms": (0, 2)}])
@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover", "bussi"])
def test_restart_with_a_ramp_or_fixed_atoms(copper, tmp_path, ensemble, changes):
    wanted = settings(ensemble, **changes)
    run(copper, wanted, tmp_path / "whole", EMT(), restart=False)
    with pytest.raises(Killed):
        run(copper, wanted, tmp_path / "cut", Interrupted(25, die), restart=False)
    run(copper, wanted, tmp_path / "cut", EMT(), restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_longer_run_is_the_shorter_one_continued(copper, tmp_path):
    run(copper, settings(), tmp_path / "whole", EMT(), restart=False)
    run(copper, settings(steps=27), tmp_path / "parts", EMT(), restart=False)
    run(copper, settings(steps=50), tmp_path / "parts", EMT(), restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    again = run(copper, settings(steps=50), tmp_path / "parts", EMT(), restart=True)
    assert again.steps == 50
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_a_restart_loses_nothing(copper, tmp_path, number):
    before = signal.getsignal(number)
    result = run(
        copper,
        settings(),
        tmp_path / "cut",
        Interrupted(39, lambda: os.kill(os.getpid(), number)),
        restart=False,
    )
    assert result.stopped_by == number.name
    assert 30 < result.steps < 50
    assert signal.getsignal(number) is before
    assert len(read(tmp_path / "cut" / "md.traj", ":")) == result.steps + 1
    assert len(read(tmp_path / "cut" / "md.extxyz", ":")) == result.steps + 1
    run(copper, settings(), tmp_path / "whole", EMT(), restart=False)
    run(copper, settings(), tmp_path / "cut", EMT(), restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


SCRIPT = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import Trajectory, read
    from phicalc.workflows.md.checkpoint import Checkpoint
    from phicalc.workflows.md.dynamics import MolecularDynamics
    from phicalc.workflows.md.settings import MDSettings

    folder, kills, interval = Path(sys.argv[1]), 20, 5
    settings = MDSettings(
        steps=250, timestep=4.0, temperature=600.0, log_every=5, trajectory_every=1,
        checkpoint_every=interval, formats=("traj", "extxyz"),
    )

    def simulate(name):
        atoms = bulk("Cu", cubic=True)
        atoms.calc = EMT()
        MolecularDynamics(atoms, settings, folder / name).run(restart=True)

    began = time.perf_counter()
    simulate("whole")
    middle = time.perf_counter()
    simulate("whole")
    finished = time.perf_counter()
    longest = (finished - middle) + 1.5 * (middle - began) / kills

    def check_against_whole(name):
        one, two = (read(folder / run / "md.traj", ":") for run in (name, "whole"))
        assert len(one) == len(two) == 251, (len(one), len(two))
        for a, b in zip(one, two):
            assert np.array_equal(a.positions, b.positions)
            assert np.array_equal(a.get_momenta(), b.get_momenta())
        texts = [(folder / run / "md.extxyz").read_bytes() for run in (name, "whole")]
        assert texts[0] == texts[1]

    # A run that ends before all kills are spent, as on a busy machine, is followed by another.
    rng, done, rounds, moments = random.Random(1), 0, 0, set()
    name, reached = "killed 0", 0
    while done < kills:
        child = os.fork()
        if child == 0:
            simulate(name)
            os._exit(0)
        time.sleep(rng.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            check_against_whole(name)
            rounds += 1
            assert rounds < kills
            name, reached = f"killed {rounds}", 0
            continue
        done += 1
        path = folder / name / "md.checkpoint"
        if path.exists():
            checkpoint = Checkpoint.load(path)
            assert checkpoint.step >= reached, (checkpoint.step, reached)
            reached = checkpoint.step
            moments.add((rounds, reached))
            trajectory = folder / name / "md.traj"
            if trajectory.exists() and trajectory.stat().st_size:
                with Trajectory(trajectory) as frames:
                    last = frames[-1].info["step"] if len(frames) else -1
                assert reached - 1 <= last <= reached + interval, (last, reached)
    assert len(moments) > kills // 4, moments
    simulate(name)
    check_against_whole(name)
    print(done, "kills")
"""


def test_kill_9_at_random_moments_loses_at_most_one_interval(tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split() == ["20", "kills"]


def test_a_real_limit_in_the_middle_of_a_write(copper, tmp_path):
    """A file-size limit fails like a full disk: partway through a frame."""
    run(copper, settings(), tmp_path / "whole", EMT(), restart=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (tmp_path / "whole" / "md.extxyz").stat().st_size * 3 // 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .* restart"):
            run(copper, settings(), tmp_path / "full", EMT(), restart=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    step = Checkpoint.load(tmp_path / "full" / "md.checkpoint").step
    assert step == 30
    assert len(read(tmp_path / "full" / "md.traj", ":")) == step
    assert len(read(tmp_path / "full" / "md.extxyz", ":")) == step
    run(copper, settings(), tmp_path / "full", EMT(), restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


@pytest.mark.parametrize("method", ["traj", "extxyz", "log", "checkpoint"])
def test_a_full_disk_wherever_it_shows(copper, tmp_path, monkeypatch, method):
    owner, name = {
        "traj": (TrajFile, "append_frame"),
        "extxyz": (ExtxyzFile, "append_frame"),
        "log": (LogFile, "append_row"),
        "checkpoint": (np, "savez"),
    }[method]
    genuine, calls = getattr(owner, name), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (3 if method == "checkpoint" else 8):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(OutputError, match="No space left on device"):
            run(copper, settings(), tmp_path / "full", EMT(), restart=False)
    step = Checkpoint.load(tmp_path / "full" / "md.checkpoint").step
    assert sorted(p.name for p in (tmp_path / "full").iterdir())[0] == "md.checkpoint"
    if step:
        assert len(read(tmp_path / "full" / "md.traj", ":")) == step
        assert len(read(tmp_path / "full" / "md.extxyz", ":")) == step
    run(copper, settings(), tmp_path / "full", EMT(), restart=True)
    run(copper, settings(), tmp_path / "whole", EMT(), restart=False)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_rigid_water_restarts_with_the_same_bond_lengths(tmp_path):
    water = molecule("H2O", vacuum=3.0)
    wanted = settings(steps=50, rigid_water=True, timestep=1.0)
    run(water, wanted, tmp_path / "whole", EMT(), restart=False)
    with pytest.raises(Killed):
        run(water, wanted, tmp_path / "cut", Interrupted(28, die), restart=False)
    run(water, wanted, tmp_path / "cut", EMT(), restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_does_not_overwrite_another(copper, tmp_path):
    run(copper, settings(), tmp_path, EMT(), restart=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="exists already; restart"):
        run(copper, settings(), tmp_path, EMT(), restart=False)
    (tmp_path / "md.checkpoint").unlink()
    with pytest.raises(OutputError, match="exists already"):
        run(copper, settings(), tmp_path, EMT(), restart=True)
    del before["md.checkpoint"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_restart_of_another_run_is_refused(copper, tmp_path):
    run(copper, settings(), tmp_path, EMT(), restart=False)
    for changed, message in (
        (settings("bussi"), "ensemble was 'langevin' and is 'bussi'"),
        (settings(timestep=2.0), "timestep was 4.0 and is 2.0"),
        (settings(steps=20), "at least the 50 .* got 20"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(copper, changed, tmp_path, EMT(), restart=True)
    other = copper.copy()
    other.numbers[0] = 47
    with pytest.raises(ConfigError, match="other elements"):
        run(other, settings(), tmp_path, EMT(), restart=True)
    (tmp_path / "md.checkpoint").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelFileError, match="expected a checkpoint"):
        run(copper, settings(), tmp_path, EMT(), restart=True)


def test_the_given_atoms_are_not_modified(copper, tmp_path):
    copper.set_constraint(FixAtoms([1]))
    positions = copper.get_positions()
    MolecularDynamics(copper, settings(fixed_atoms=(0,)), tmp_path).run()
    np.testing.assert_array_equal(copper.positions, positions)
    assert not copper.get_momenta().any()
    assert len(copper.constraints) == 1 and copper.info == {}
