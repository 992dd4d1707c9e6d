"""Frames say in which total charge and field they were computed: what is read back is the same."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from typer.testing import CliRunner

from phicalc import PhiCalculator
from phicalc.cli import app
from phicalc.errors import SimulationError
from phicalc.serving.model_file import load_model, model_bytes
from phicalc.serving.prediction import predict, predict_file
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import GuardSettings, MDSettings
from phicalc.workflows.relax import Relaxation, RelaxSettings
from tests.reference_models import small_metadata, small_potential

FIELD = (0.0, 0.1, 0.2)
QUICK = {"relax": None, "supercell": (2, 2, 2), "mesh": (2, 2, 2), "points": 3, "animated": ()}


@pytest.fixture(scope="module")
def ions():
    """A model of molecules and ions that a field acts on."""
    heads = [{"kind": "qeq"}]
    network = small_potential("float64", heads=heads)
    metadata = small_metadata("float64", heads=["qeq"], config={"heads": heads})
    return load_model(model_bytes(network, metadata))


WAYS = {
    "charge=": ({"charge": 1.0}, {}),
    "info charge": ({}, {"charge": 1}),
    "info wins": ({"charge": -1.0}, {"charge": 1.0}),
    "field=": ({"field": FIELD}, {}),
    "info field": ({}, {"external_field": list(FIELD)}),
    "both": ({"charge": 1.0, "field": FIELD}, {}),
    "given zero": ({"charge": 0}, {}),
    "neither": ({}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_predicted_again(ions, tmp_path, way):
    """md.traj, md.extxyz and relaxed structures give the run's energies in any later command."""
    options, info = WAYS[way]
    atoms = molecule("H2O")
    atoms.info |= info
    atoms.calc = PhiCalculator(ions, **options)
    settings = MDSettings(
        steps=4,
        temperature=100.0,
        timestep=0.2,
        trajectory_every=2,
        log_every=2,
        formats=("traj", "extxyz"),
        guards=GuardSettings(max_energy_jump=1e6, max_speed=1e6, max_temperature=1e9),
    )
    log = MolecularDynamics(atoms, settings, tmp_path).run().log
    assert atoms.info == info
    for name, places in (("md.traj", 12), ("md.extxyz", 5)):
        frames = read(tmp_path / name, ":")
        found = predict(ions, frames)
        np.testing.assert_allclose([p.energy for p in found], log["potential_eV"], atol=10**-places)
        for frame, prediction in zip(frames, found, strict=True):
            charge = 1.0 if "charge" in way or way in ("info wins", "both") else 0.0
            assert prediction.charges.sum() == pytest.approx(charge, abs=1e-6)
            assert ("charge" in frame.info) == ("charge" in {**options, **info})
            assert ("external_field" in frame.info) == ("field" in way or way == "both")


def test_what_the_charge_and_the_field_change_is_not_nothing(ions):
    atoms = molecule("H2O")
    energies = [predict(ions, [atoms], **options)[0].energy for options, _ in WAYS.values()]
    assert len({round(energy, 6) for energy in energies}) >= 4


def test_a_relaxed_ion_stays_an_ion(ions, tmp_path):
    atoms = molecule("H2O")
    atoms.calc = PhiCalculator(ions, charge=1, field=FIELD)
    result = Relaxation(atoms, RelaxSettings(max_force=50.0), tmp_path).run()
    for name in ("relax-final.extxyz", "relax.traj"):
        again = read(tmp_path / name)
        assert again.info["charge"] == 1.0
        np.testing.assert_array_equal(again.info["external_field"], FIELD)
        again.calc = PhiCalculator(ions)
        assert again.get_potential_energy() == pytest.approx(result.energy, abs=1e-6)


def test_a_stopped_frame_and_predictions_say_it_too(ions, tmp_path):
    atoms = molecule("H2O")
    atoms.calc = PhiCalculator(ions, charge=1)
    settings = MDSettings(steps=50, temperature=300.0, guards=GuardSettings(max_speed=1e-6))
    with pytest.raises(SimulationError):
        MolecularDynamics(atoms, settings, tmp_path).run()
    assert read(tmp_path / "md-stopped.extxyz").info["charge"] == 1.0
    write(tmp_path / "w.xyz", molecule("H2O"))
    output = tmp_path / "p.xyz"
    (first,) = predict_file(ions, tmp_path / "w.xyz", output, charge=1, field=FIELD)
    again = read(output)
    assert again.info["charge"] == 1.0 and again.get_charges().sum() == pytest.approx(1.0)
    assert predict(ions, [again])[0].energy == pytest.approx(first.energy, abs=1e-6)


class Told(EMT):
    """EMT that writes down what its structures say of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, object, object]] = []

    def calculate(self, atoms: Atoms | None = None, *args, **kwargs) -> None:
        super().calculate(atoms, *args, **kwargs)
        info = atoms.info
        self.told.append((len(atoms), info.get("charge"), info.get("external_field")))


def test_phonons_of_a_charged_cell_in_a_field():
    """Each unit cell of the supercell has the charge of the unit cell; the field is one."""
    atoms = bulk("Cu", cubic=True)
    atoms.info |= {"charge": 0.5, "external_field": [0.0, 0.0, 0.1]}
    atoms.calc = Told()
    Phonons(atoms, PhononSettings(**QUICK)).run()
    small, *large = atoms.calc.told
    assert small[:2] == (4, 0.5)
    assert large and all(told[:2] == (32, 4.0) for told in large)
    assert all(np.array_equal(told[2], [0.0, 0.0, 0.1]) for told in large)


def test_other_calculators_magnetic_moments_stay_with_the_frames(copper, tmp_path):
    copper.set_initial_magnetic_moments([1.0, -1.0, 1.0, -1.0])
    copper.info |= {"spin": 2, "name": "not a condition"}
    settings = MDSettings(steps=1, temperature=10.0, trajectory_every=1)
    MolecularDynamics(copper, settings, tmp_path).run()
    frame = read(tmp_path / "md.traj")
    np.testing.assert_array_equal(frame.get_initial_magnetic_moments(), [1.0, -1.0, 1.0, -1.0])
    assert frame.info["spin"] == 2 and "name" not in frame.info


def test_the_commands(ions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pt").write_bytes(ions.data)
    write("w.xyz", molecule("H2O"))
    for command in (
        "md m.pt w.xyz --charge 1 -n 4 -T 50 --timestep 0.1 --every 2 -o md",
        "predict m.pt md/md.traj -o again.xyz",
        "relax m.pt w.xyz --charge 1 --max-force 50 -o relax",
        "md m.pt relax/relax-final.extxyz -n 1 -T 50 --timestep 0.1 --every 1 -o on",
    ):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    for one, two in zip(read("md/md.traj", ":"), read("again.xyz", ":"), strict=True):
        assert one.get_potential_energy() == pytest.approx(two.get_potential_energy(), abs=1e-6)
        assert two.get_charges().sum() == pytest.approx(1.0, abs=1e-6)
    assert read("on/md.traj").get_charges().sum() == pytest.approx(1.0, abs=1e-6)
