"""Relaxations that run away stop, and any of them at once when it is told to."""

import os
import signal
import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.io import read

from phicalc.errors import SimulationError, StoppedError
from phicalc.workflows.relax import Relaxation, RelaxSettings


class Pulled(Calculator):
    """E = pressure · volume + pull · distance of the first two atoms: no minimum."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, pressure: float, pull: float) -> None:
        super().__init__()
        self.pressure, self.pull = pressure, pull

    def calculate(self, atoms: Any = None, properties: Any = None, changes: Any = all_changes):
        super().calculate(atoms, properties, changes)
        along = self.atoms.positions[1] - self.atoms.positions[0]
        distance = np.linalg.norm(along)
        forces = np.zeros((len(self.atoms), 3))
        forces[:2] = self.pull * np.array([along, -along]) / distance
        energy = self.pressure * abs(self.atoms.cell.volume) + self.pull * distance
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if self.atoms.pbc.all():
            self.results["stress"] = self.pressure * np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("pressure, ratio", [(0.5, 1 / 4), (-0.5, 4.0)])
@pytest.mark.parametrize("optimizer", ["bfgs", "fire"])
def test_a_cell_that_collapses_or_explodes(tmp_path, pressure, ratio, optimizer):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = Pulled(pressure, 0.0)
    settings = RelaxSettings(cell="full", steps=10_000, optimizer=optimizer)
    with pytest.raises(SimulationError, match=r"ran away: the volume is .* times that") as caught:
        Relaxation(atoms, settings, tmp_path).run()
    assert caught.value.exit_status == 4
    frames = read(tmp_path / "relax.traj", ":")
    volumes = np.array([frame.get_volume() for frame in frames]) / atoms.get_volume()
    assert (volumes[:-1].min() > 0.25) and (volumes[:-1].max() < 4.0)
    assert volumes[-1] == pytest.approx(ratio, rel=0.5)


def test_atoms_that_fly_apart(tmp_path):
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]])
    atoms.calc = Pulled(0.0, -5.0)
    with pytest.raises(SimulationError, match=r"ran away: the atoms are spread over 1\d\d"):
        Relaxation(atoms, RelaxSettings(steps=5000, optimizer="fire"), tmp_path).run()


class Slow(EMT):
    """EMT whose fourth evaluation takes a minute."""

    calls = 0

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls == 4:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60.0)
        super().calculate(*args, **kwargs)


def test_a_signal_ends_a_long_step(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = Slow()
    started = time.monotonic()
    with pytest.raises(StoppedError, match=r"stopped by SIGTERM after 2 steps: .*restart it"):
        Relaxation(atoms, RelaxSettings(), tmp_path).run()
    assert time.monotonic() - started < 20.0
    assert len(read(tmp_path / "relax.traj", ":")) == 3
    result = Relaxation(atoms, RelaxSettings(), tmp_path).run(restart=True)
    assert result.max_force < 0.01 and result.steps > 2
