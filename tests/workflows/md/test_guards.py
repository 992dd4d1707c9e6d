"""What stops a run, what it says, and what is left on the disk."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from phicalc.errors import (
    ConfigError,
    OutputError,
    PhicalcError,
    SimulationError,
    StructureError,
    UnsupportedError,
)
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.log import read_log
from phicalc.workflows.md.settings import GuardSettings, MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings


class Failing(EMT):
    """EMT whose results turn bad at its n-th evaluation."""

    def __init__(self, evaluation: int, **wrong: Any) -> None:
        super().__init__()
        self.remaining, self.wrong = evaluation, wrong

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.remaining -= 1
        if self.remaining <= 0:
            if "error" in self.wrong:
                raise self.wrong["error"]
            forces = self.results["forces"].copy()
            forces[2] += self.wrong.get("force", 0.0)
            self.results["forces"] = forces
            self.results["energy"] += self.wrong.get("energy", 0.0)


class Committee(EMT):
    """EMT that calls itself unsure, more so with every evaluation."""

    forces_spread = np.zeros(4)

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.forces_spread = self.forces_spread + np.array([0.0, 0.01, 0.0, 0.0])


SETTINGS: dict[str, Any] = {
    "steps": 30,
    "temperature": 300.0,
    "timestep": 2.0,
    "log_every": 1,
    "trajectory_every": 1,
    "checkpoint_every": 5,
}


@pytest.mark.parametrize(
    "calculator, message",
    [
        (Failing(12, force=np.nan), r"the forces on atom 2 \(Cu\) are NaN or infinite"),
        (Failing(12, force=np.inf), "the forces on atom 2"),
        (Failing(12, energy=np.nan), "the potential energy is nan"),
        (Failing(12, force=3000.0), r"atom 2 \(Cu\) moves at .* Å/fs \(limit 0.3\)"),
        (Failing(12, energy=50.0), "the potential energy went from .* to .* eV in one step"),
        (Failing(12, error=StructureError("atoms on one spot")), "atoms on one spot"),
        (Failing(12, error=RuntimeError("out of memory")), "out of memory"),
    ],
)
def test_what_is_wrong_is_said_and_its_frame_kept(copper, tmp_path, calculator, message):
    copper.calc = calculator
    simulation = MolecularDynamics(copper, MDSettings(**SETTINGS), tmp_path)
    with pytest.raises(SimulationError, match=message) as caught:
        simulation.run()
    step = int(re.search(r"stopped at step (\d+) ", str(caught.value))[1])
    assert 6 <= step <= 10
    assert "md-stopped.extxyz" in str(caught.value)
    frame = read(tmp_path / "md-stopped.extxyz")
    assert frame.info["step"] == step and frame.info["time_fs"] == 2.0 * step
    # the trajectory holds all the good frames and can be continued
    frames = read(tmp_path / "md.traj", ":")
    assert [f.info["step"] for f in frames] == list(range(step))
    assert len(read_log(tmp_path / "md.log")) == step
    copper.calc = EMT()
    assert MolecularDynamics(copper, MDSettings(**SETTINGS), tmp_path).run(restart=True).steps == 30


def test_heating_and_disagreement_have_limits_of_their_own(copper, tmp_path):
    hot = GuardSettings(max_temperature=350.0)
    settings = MDSettings(**SETTINGS | {"temperature": 600.0, "steps": 400, "guards": hot})
    with pytest.raises(SimulationError, match=r"the temperature is .* K \(limit 350\)"):
        MolecularDynamics(copper, settings).run()
    copper.calc = Committee()
    settings = MDSettings(**SETTINGS | {"guards": GuardSettings(max_spread=0.1)})
    with pytest.raises(SimulationError, match=r"the committee disagrees by 0\.11 eV/Å"):
        MolecularDynamics(copper, settings, tmp_path).run()
    assert (tmp_path / "md-stopped.extxyz").exists()
    copper.calc = EMT()
    with pytest.raises(ConfigError, match="max_spread: expected a committee"):
        MolecularDynamics(copper, settings).run()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps: expected greater than or equal to 1, got 0"),
        ({"steps": None}, "steps: expected a whole number, got None"),
        ({"temperature": -5.0}, "temperature.*: expected greater than 0, got -5.0"),
        ({"temperature": None}, "temperature: expected a value in K for langevin, got none"),
        ({"temperature": ()}, "temperature: expected at least one value"),
        ({"timestep": 0.0}, "timestep: expected greater than 0"),
        ({"timestep": float("nan")}, "timestep: expected"),
        ({"ensemble": "nvt"}, "ensemble: expected 'nve', 'langevin'.*, got 'nvt'"),
        ({"ensemble": "nve", "temperature": (1.0, 2.0)}, "one value for nve, got a ramp"),
        ({"pressure": 1.0}, "pressure: expected npt or npt-cell, got langevin"),
        ({"stepz": 3}, "stepz: unknown key"),
        ({"formats": ("xyz",)}, "formats.0: expected 'traj' or 'extxyz', got 'xyz'"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected greater than or equal to 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MDSettings(**SETTINGS | changes)
    assert "\n" not in str(caught.value)


def bad_cases() -> dict[str, tuple[type[PhicalcError], str]]:
    return {
        "no calculator": (ConfigError, "expected atoms with a calculator"),
        "nan": (StructureError, "finite positions"),
        "property": (UnsupportedError, "does not give 'polarization'"),
        "fixed": (ConfigError, "fixed_atoms: expected 0 to 3, got 9"),
        "constraint": (UnsupportedError, "npt: expected no constraints, got FixAtoms"),
        "slab": (UnsupportedError, "npt: expected a cell periodic in three directions"),
        "all fixed": (UnsupportedError, "bussi: expected at least one degree of freedom"),
    }


@pytest.mark.parametrize("case", bad_cases())
def test_bad_structures(copper, tmp_path, case):
    atoms, changes = copper, {}
    if case == "no calculator":
        atoms.calc = None
    elif case == "nan":
        atoms.positions[0] = np.nan
    elif case == "property":
        changes = {"properties": ("polarization",)}
    elif case == "fixed":
        changes = {"fixed_atoms": (9,)}
    elif case == "constraint":
        atoms.set_constraint(FixAtoms([0]))
        changes = {"ensemble": "npt"}
    elif case == "slab":
        atoms = fcc111("Cu", (2, 2, 2), vacuum=5.0, periodic=False)
        atoms.calc = EMT()
        changes = {"ensemble": "npt"}
    elif case == "all fixed":
        changes = {"ensemble": "bussi", "fixed_atoms": (0, 1, 2, 3)}
    error, message = bad_cases()[case]
    with pytest.raises(error, match=message):
        MolecularDynamics(atoms, MDSettings(**SETTINGS | changes), tmp_path / "run").run()
    folder = tmp_path / "run"
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["md", "relax", "phonons"])
def test_a_structure_that_the_calculator_refuses_leaves_nothing(copper, tmp_path, kind):
    copper.calc = Failing(1, error=UnsupportedError("expected other elements"))
    simulation = {
        "md": lambda: MolecularDynamics(copper, MDSettings(**SETTINGS), tmp_path / "run"),
        "relax": lambda: Relaxation(copper, RelaxSettings(), tmp_path / "run"),
        "phonons": lambda: Phonons(copper, PhononSettings(), tmp_path / "run"),
    }[kind]()
    with pytest.raises(UnsupportedError, match="expected other elements"):
        simulation.run()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(copper, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"expected a writable folder, got .*file"):
        MolecularDynamics(copper, MDSettings(**SETTINGS), tmp_path / "file" / "run").run()


class Counters(NamedTuple):
    hits: int
    iterations: float
    reason: str


class Cached(EMT):
    """EMT that claims to have a cache."""

    calls = 0

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.calls += 1

    def cache_info(self) -> Counters:
        return Counters(self.calls, 1.5, "no reason")


def test_the_log_and_the_frames_say_what_the_calculator_says(copper, tmp_path):
    copper.calc = Cached()
    copper.info["charge"] = 0
    settings = MDSettings(**SETTINGS | {"formats": ("traj", "extxyz")})
    result = MolecularDynamics(copper, settings, tmp_path, name="hot").run()
    names = "step time_fs temperature_K potential_eV kinetic_eV conserved_eV pressure_GPa"
    assert " ".join(result.log.dtype.names) == (names + " density_g_cm3 ns_per_day hits iterations")
    assert (result.log["iterations"] == 1.5).all() and result.log["hits"][-1] > 30
    assert result.log["density_g_cm3"] == pytest.approx(8.97, abs=0.01)
    assert result.trajectories == (tmp_path / "hot.traj", tmp_path / "hot.extxyz")
    for path in result.trajectories:
        frames = read(path, ":")
        assert len(frames) == 31
        for frame, row in zip(frames, result.log, strict=True):
            assert frame.info["time_fs"] == row["time_fs"] and frame.info["charge"] == 0
            assert frame.get_potential_energy() == pytest.approx(row["potential_eV"])
            assert frame.get_kinetic_energy() == pytest.approx(row["kinetic_eV"], rel=1e-5)
            pressure = -frame.get_stress(include_ideal_gas=True)[:3].mean() * 160.21766
            assert pressure == pytest.approx(row["pressure_GPa"], rel=1e-4)
            assert frame.get_forces().shape == (4, 3)
    with pytest.raises(OutputError, match="expected the log of a simulation"):
        read_log(tmp_path / "hot.traj")


def test_without_a_folder_nothing_is_written(copper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = MolecularDynamics(copper, MDSettings(**SETTINGS)).run(progress=False)
    assert len(result.log) == 31 and result.trajectories == ()
    assert list(tmp_path.iterdir()) == []
    assert result.ns_per_day > 0


def test_progress_shows_on_standard_error(copper, capsys):
    MolecularDynamics(copper, MDSettings(**SETTINGS), name="hello").run(progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err and "ns/day" in captured.err
