"""Relaxations end in minima that are known otherwise."""

import errno
import os
import signal

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.io import read

from phicalc.errors import (
    ConfigError,
    ConvergenceError,
    OutputError,
    SimulationError,
    StructureError,
    UnsupportedError,
)
from phicalc.workflows.frames import TrajFile
from phicalc.workflows.relax import Relaxation, RelaxSettings
from phicalc.workflows.symmetry import space_group
from tests.workflows.md.test_guards import Failing


def energy_curve() -> tuple[float, float]:
    """Volume (Å³ per atom) and bulk modulus (eV/Å³) of EMT copper from energies alone."""
    volumes, energies = [], []
    for a in np.linspace(3.55, 3.63, 9):
        atoms = bulk("Cu", a=a)
        atoms.calc = EMT()
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return volume, modulus


@pytest.fixture
def strained() -> Atoms:
    """Four copper atoms off their sites in a sheared, stretched cell."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell @ [[1.03, 0.02, 0], [0, 0.98, 0.01], [0, 0, 1.01]], scale_atoms=True)
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_a_crystal_finds_its_lattice_constant(strained, tmp_path, optimizer):
    settings = RelaxSettings(
        optimizer=optimizer, cell="full", max_force=1e-3, max_stress=1e-3, symmetry_tolerance=0.01
    )
    result = Relaxation(strained, settings, tmp_path).run()
    volume, _ = energy_curve()
    assert result.atoms.get_volume() / 4 == pytest.approx(volume, rel=2e-4)
    assert (result.initial_space_group, result.space_group) == ("P1 (1)", "Fm-3m (225)")
    assert result.max_force <= 1e-3 and result.max_stress <= 1e-3
    assert result.energy < result.initial_energy
    frames = read(result.trajectory, ":")
    assert len(frames) == len(result.history) == result.steps + 1
    energies = [frame.get_potential_energy() for frame in frames]
    np.testing.assert_array_equal(energies, result.history["energy_eV"])
    final = read(result.structure)
    np.testing.assert_allclose(final.positions, result.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(strained.get_volume(), 47.24 * 1.03 * 0.98 * 1.01, rtol=1e-2)


def test_pressure_compresses_as_the_bulk_modulus_says():
    atoms = bulk("Cu")
    atoms.calc = EMT()
    volume, modulus = energy_curve()
    for cell in ("full", "volume"):
        settings = RelaxSettings(cell=cell, pressure=2.0, max_stress=1e-4)
        result = Relaxation(atoms, settings).run()
        pressure = -result.atoms.get_stress()[:3].mean() / units.GPa
        assert pressure == pytest.approx(2.0, abs=1e-3)
        compression = -np.log(result.atoms.get_volume() / volume) * modulus / units.GPa
        assert compression == pytest.approx(2.0, rel=0.05)


def test_what_of_the_cell_may_change(strained):
    angles = strained.cell.angles()
    volume = strained.get_volume()
    result = Relaxation(strained, RelaxSettings(cell="volume", max_stress=1e-3)).run()
    np.testing.assert_allclose(result.atoms.cell.angles(), angles, atol=1e-6)
    assert abs(result.atoms.get_volume() - volume) > 0.1
    result = Relaxation(strained, RelaxSettings(cell="shape", max_stress=1e-2)).run()
    assert result.atoms.get_volume() == pytest.approx(volume, rel=1e-6)
    np.testing.assert_allclose(result.atoms.cell.angles(), 90.0, atol=0.1)
    result = Relaxation(strained, RelaxSettings()).run()
    np.testing.assert_array_equal(result.atoms.cell, strained.cell)
    assert result.max_stress is None and "max_stress_GPa" not in result.history.dtype.names


def test_symmetry_is_kept_where_it_would_be_lost():
    """Body-centred copper is a saddle point between two face-centred crystals (Bain's path)."""
    atoms = bulk("Cu", "bcc", a=2.87, cubic=True)
    atoms.set_cell(atoms.cell @ np.diag([1.0, 1.0, 1.01]), scale_atoms=True)
    atoms.calc = EMT()
    settings = RelaxSettings(cell="full", keep_symmetry=True, symmetry_tolerance=0.05)
    kept = Relaxation(atoms, settings).run()
    assert kept.space_group == kept.initial_space_group == "Im-3m (229)"
    free = settings.model_copy(update={"keep_symmetry": False, "max_stress": 1e-3})
    lost = Relaxation(atoms, free).run()
    assert lost.space_group == "Fm-3m (225)" and lost.energy < kept.energy - 0.01
    with pytest.raises(StructureError, match="keep_symmetry: expected a crystal"):
        Relaxation(_slab(), settings.model_copy(update={"cell": "fixed"}))


def _slab() -> Atoms:
    slab = fcc111("Cu", (2, 2, 2), vacuum=5.0, periodic=False)
    slab.rattle(0.05, seed=2)
    slab.calc = EMT()
    return slab


def test_a_surface_with_its_lower_layer_held(tmp_path):
    slab = _slab()
    held = tuple(int(i) for i in np.flatnonzero(slab.positions[:, 2] < slab.positions[:, 2].mean()))
    result = Relaxation(slab, RelaxSettings(fixed_atoms=held, max_force=1e-3), tmp_path).run()
    np.testing.assert_array_equal(result.atoms.positions[list(held)], slab.positions[list(held)])
    assert result.max_force <= 1e-3 and result.space_group is None
    assert read(result.trajectory, -1).constraints[0].index.tolist() == list(held)


def test_without_convergence_the_way_so_far_is_kept_and_continued(strained, tmp_path):
    settings = RelaxSettings(optimizer="fire", cell="full", max_force=1e-3, steps=7)
    with pytest.raises(ConvergenceError, match=r"not converged after 7 steps: .* eV/Å \(limit 0"):
        Relaxation(strained, settings, tmp_path).run()
    assert len(read(tmp_path / "relax.traj", ":")) == 8
    assert not (tmp_path / "relax-final.extxyz").exists()
    more = settings.model_copy(update={"steps": 300})
    with pytest.raises(OutputError, match="exists already; restart"):
        Relaxation(strained, more, tmp_path).run()
    result = Relaxation(strained, more, tmp_path).run(restart=True)
    assert result.history["step"][0] == 7 and result.steps > 8
    frames = read(tmp_path / "relax.traj", ":")
    assert [frame.info["step"] for frame in frames] == list(range(result.steps + 1))
    assert result.atoms.get_volume() / 4 == pytest.approx(energy_curve()[0], rel=1e-3)
    strained.numbers[0] = 47
    with pytest.raises(ConfigError, match="other elements"):
        Relaxation(strained, more, tmp_path).run(restart=True)
    (tmp_path / "relax.traj").write_text("no trajectory")
    with pytest.raises(OutputError, match="expected the trajectory of a relaxation"):
        Relaxation(strained, more, tmp_path).run(restart=True)


def test_a_signal_stops_after_the_step(strained, tmp_path):
    strained.calc = Failing(10**9)
    genuine, calls = strained.calc.calculate, []

    def calculate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(*args, **kwargs)

    strained.calc.calculate = calculate
    with pytest.raises(ConvergenceError, match=r"stopped by SIGTERM after [345] steps"):
        Relaxation(strained, RelaxSettings(max_force=1e-4), tmp_path).run()
    assert len(read(tmp_path / "relax.traj", ":")) >= 4


def test_a_full_disk_leaves_whole_frames(strained, tmp_path, monkeypatch):
    genuine, calls = TrajFile.append_frame, []

    def append(self, frame):
        calls.append(1)
        genuine(self, frame)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TrajFile, "append_frame", append)
    with pytest.raises(OutputError, match="No space left"):
        Relaxation(strained, RelaxSettings(), tmp_path).run()
    assert len(read(tmp_path / "relax.traj", ":")) == 3


def test_what_cannot_be_relaxed(strained, tmp_path):
    with pytest.raises(UnsupportedError, match="periodic in three directions"):
        Relaxation(_slab(), RelaxSettings(cell="full"))
    with pytest.raises(ConfigError, match="expected atoms with a calculator"):
        Relaxation(molecule("H2O"), RelaxSettings())
    with pytest.raises(ConfigError, match="pressure: expected cell full or volume, got fixed"):
        RelaxSettings(pressure=1.0)
    with pytest.raises(ConfigError, match="steps: expected greater than or equal to 1, got 0"):
        RelaxSettings(steps=0)
    strained.calc = Failing(3, force=np.nan)
    with pytest.raises(SimulationError, match="NaN"):
        Relaxation(strained, RelaxSettings()).run()
    strained.calc = Failing(3, error=StructureError("atoms on one spot"))
    with pytest.raises(SimulationError, match="broke off: atoms on one spot"):
        Relaxation(strained, RelaxSettings()).run()


def test_space_groups():
    assert space_group(bulk("NaCl", "rocksalt", a=5.6)) == "Fm-3m (225)"
    assert space_group(bulk("Si")) == "Fd-3m (227)"
    assert space_group(molecule("H2O")) is None
