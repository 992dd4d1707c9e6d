"""The polarisation of a crystal, from the calculator through a run's frames to its spectrum."""

from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read

from phicalc import PhiCalculator
from phicalc.errors import SimulationError, UnsupportedError
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import GuardSettings, MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from phicalc.workflows.spectra.spectra import Spectra, SpectraSettings
from tests.reference_models import small_metadata, small_potential
from tests.workflows.ions import RigidIons
from tests.workflows.springs import Springs

CHARGE, STIFFNESS = 0.7, 2.0  # e, eV/Å²


class PolarSprings(Springs):
    """Springs between ions of fixed charges, whose polarisation is computed only when asked for."""

    implemented_properties: ClassVar[list[str]] = [*Springs.implemented_properties, "polarization"]
    asked = 0

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        super().calculate(atoms, properties, system_changes)
        if "polarization" in (properties or ()):
            self.asked += 1
            charges = np.where(self.atoms.symbols == "K", CHARGE, -CHARGE)
            self.results["polarization"] = charges @ self.atoms.positions / self.atoms.get_volume()


def salt() -> Atoms:
    """Rock salt with springs between neighbours: its one infrared mode has ω² = 2k/μ."""
    atoms = bulk("KCl", "rocksalt", a=6.3, cubic=True) * (2, 2, 2)
    atoms.calc = PolarSprings(atoms, cutoff=3.5, length=3.15, k=STIFFNESS, a=0.0)
    return atoms


def settings(**changes: Any) -> MDSettings:
    values: dict[str, Any] = {
        "steps": 4000,
        "ensemble": "nve",
        "temperature": 10.0,
        "timestep": 2.0,
        "trajectory_every": 4,
        "log_every": 1000,
        "properties": ("polarization",),
    }
    return MDSettings(**values | changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["traj", "extxyz"])
def test_infrared_line_of_rock_salt(tmp_path, kind):
    atoms = salt()
    result = MolecularDynamics(atoms, settings(formats=(kind,)), tmp_path).run()
    frames = read(tmp_path / f"md.{kind}", ":")
    # once for each frame and once to find out, at the start, whether it is there
    assert len(frames) == 1001 and atoms.calc.asked <= 1002
    last = result.atoms.calc.get_property("polarization", result.atoms)
    np.testing.assert_allclose(frames[-1].calc.results["polarization"], last, atol=1e-7)
    maximum = SpectraSettings(maximum=400.0, correlation_time=3000.0)
    found = Spectra(result.trajectories[0], maximum).run()
    assert found.note is None and found.infrared.unit == "cm⁻¹"
    potassium, chlorine = (bulk(x, "sc", a=1).get_masses()[0] for x in ("K", "Cl"))
    reduced = potassium * chlorine / (potassium + chlorine)
    omega = np.sqrt(2.0 * STIFFNESS / reduced) * units.fs  # rad/fs
    expected = omega / (2.0 * np.pi * units._c * 1e2 * 1e-15)
    line = found.infrared.wavenumbers[np.argmax(found.infrared.intensity)]
    assert line == pytest.approx(expected, abs=found.infrared.resolution)
    inside = np.abs(found.infrared.wavenumbers - expected) < 3.0 * found.infrared.resolution
    assert found.infrared.intensity[inside].sum() > 0.97 * found.infrared.intensity.sum()


class Reluctant(PolarSprings):
    """Has the property by name and not for this structure, as a model without charges."""

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        super().calculate(atoms, properties, system_changes)
        if "polarization" in (properties or ()):
            raise PropertyNotImplementedError("this model's head has no edge flow")


def test_a_property_that_is_not_there_is_found_before_the_first_step(tmp_path):
    atoms = salt()
    atoms.calc = Reluctant(atoms, cutoff=3.5, length=3.15)
    with pytest.raises(UnsupportedError, match=r"not give 'polarization' here .*no edge flow"):
        MolecularDynamics(atoms, settings(), tmp_path).run()
    water = molecule("H2O")
    water.calc = PhiCalculator(_model(tmp_path / "m.pt"))
    with pytest.raises(UnsupportedError, match="not give 'magmom' here"):
        MolecularDynamics(water, settings(properties=("magmom",)), tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def _model(path):
    from phicalc.serving.model_file import save_model

    return save_model(small_potential(), path, small_metadata())


def test_recorded_polarisation_leaves_the_restart_exact(tmp_path):
    whole = MolecularDynamics(
        salt(), settings(steps=40, checkpoint_every=10), tmp_path / "whole"
    ).run()
    MolecularDynamics(salt(), settings(steps=25, checkpoint_every=10), tmp_path / "parts").run()
    again = MolecularDynamics(
        salt(), settings(steps=40, checkpoint_every=10), tmp_path / "parts"
    ).run(restart=True)
    np.testing.assert_array_equal(whole.atoms.positions, again.atoms.positions)
    frames, others = (read(tmp_path / name / "md.traj", ":") for name in ("whole", "parts"))
    assert len(frames) == len(others) == 11
    for one, two in zip(frames, others, strict=True):
        np.testing.assert_array_equal(
            one.calc.results["polarization"], two.calc.results["polarization"]
        )


def test_a_run_leaves_a_picture_of_what_should_be_conserved(tmp_path):
    result = MolecularDynamics(salt(), settings(steps=40, log_every=4), tmp_path).run()
    assert result.picture == tmp_path / "md.png"
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert MolecularDynamics(salt(), settings(steps=40, log_every=4)).run().picture is None


@pytest.mark.parametrize("name", ["born_effective_charges", "dielectric_tensor"])
def test_born_charges_in_extended_xyz(tmp_path, name):
    """Nine columns, row after row; the binary trajectory keeps matrices."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = RigidIons({"Na": 1.0, "Cl": -1.0}, born_error=0.25)
    wanted = settings(
        steps=2, trajectory_every=1, properties=(name,), formats=("traj", "extxyz"), timestep=0.5
    )
    MolecularDynamics(atoms, wanted, tmp_path).run()
    frames, exact = read(tmp_path / "md.extxyz", ":"), read(tmp_path / "md.traj", ":")
    assert len(frames) == len(exact) == 3
    charges = np.where(atoms.symbols == "Na", 1.25, -0.75)[:, None, None] * np.eye(3)
    for frame, other in zip(frames, exact, strict=True):
        columns = frame.calc.results["born_effective_charges"]
        assert columns.shape == (8, 9)
        np.testing.assert_array_equal(columns.reshape(8, 3, 3), charges)
        np.testing.assert_array_equal(other.calc.results["born_effective_charges"], charges)
        np.testing.assert_array_equal(frame.calc.results["dielectric_tensor"], np.eye(3))
    header = (tmp_path / "md.extxyz").read_text().splitlines()[1]
    assert "born_effective_charges:R:9" in header


def test_stopped_and_relaxed_structures_with_born_charges(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = RigidIons({"Na": 1.0, "Cl": -1.0})
    Relaxation(atoms, RelaxSettings(max_force=0.05), tmp_path).run()
    assert read(tmp_path / "relax-final.extxyz").calc.results["born_effective_charges"].size == 72
    stop = settings(guards=GuardSettings(max_speed=1e-9), properties=())
    with pytest.raises(SimulationError, match=r"md-stopped\.extxyz"):
        MolecularDynamics(atoms, stop, tmp_path).run()
    assert len(read(tmp_path / "md-stopped.extxyz")) == 8
