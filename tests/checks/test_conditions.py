"""Total charges, fields and spins under names that nothing reads."""

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from typer.testing import CliRunner

from phicalc import PhiCalculator, predict
from phicalc.checks import conditions
from phicalc.cli import app
from phicalc.data.read import check_labels, total_charge_of
from phicalc.errors import DataError, StructureError, UnusedWarning
from phicalc.serving.model_file import save_model
from tests.reference_models import small_metadata, small_potential

NAMES = [
    "total_charge", "Charge", "CHARGE", "net_charge", "tot_charge", "system_charge", "qtot", "Q",
    "q", "charge_total", "molecular charge", "REF_charge", "DFT_total_charge", "totalCharge",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_total_charge_under_another_name_is_named(name):
    atoms = molecule("H2O")
    atoms.info[name] = 1
    with pytest.raises(StructureError, match=rf'got info\["{name}"\] = 1, .* rename it to charge'):
        conditions.total_charge(atoms)
    atoms.info[name] = 0
    assert conditions.total_charge(atoms) == 0.0
    for settled in (0, 2.0):
        atoms.info |= {name: 1, "charge": settled}
        assert conditions.total_charge(atoms) == settled


@pytest.mark.parametrize(
    "harmless",
    [
        {"charges": "Mulliken"},
        {"q": [0.5, 0.0, 0.5]},  # a wave vector
        {"total_charge": None, "Charge": "None", "net_charge": np.nan},
        {"charge_state_of_the_art": 1, "discharge": 2, "qmax": 3.0},
    ],
)
def test_what_is_no_total_charge(harmless):
    assert conditions.total_charge(Atoms("Ar", info=harmless)) == 0.0


def test_a_default_that_says_the_same_settles_it():
    atoms = Atoms("Ar", info={"total_charge": 1.0})
    assert conditions.total_charge(atoms, default=1.0) == 1.0
    assert conditions.total_charge(Atoms("Ar", info={"q": 0.37})) == 0.0, "no total charge"
    with pytest.raises(StructureError, match="while 2 would be used"):
        conditions.total_charge(atoms, default=2.0)
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 4]], charges=[1.0, 0.0])
    assert conditions.total_charge(atoms, default=-1.0) == -1.0


@pytest.mark.parametrize(("charges", "whole"), [([0.5, 0.3, 0.21], 1), ([-1.0, -1.0, 0.02], -2)])
def test_initial_charges_that_sum_to_a_whole_number(charges, whole):
    atoms = molecule("H2O")
    atoms.set_initial_charges(charges)
    with pytest.raises(StructureError, match=rf'set info\["charge"\] = {whole}, or 0 if'):
        conditions.total_charge(atoms)
    atoms.info["charge"] = 0
    assert conditions.total_charge(atoms) == 0.0
    for neutral in ([-0.8, 0.4, 0.4], [0.0, 0.0, 0.02], [0.2, 0.2, 0.1], [np.nan, 0.0, 1.0]):
        del atoms.info["charge"]
        atoms.set_initial_charges(neutral)
        assert conditions.total_charge(atoms) == 0.0
        atoms.info["charge"] = 0


def test_the_charge_that_another_calculator_was_given():
    atoms = molecule("OH")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    atoms.calc.parameters = {"xc": "PBE", "input_data": {"system": {"tot_charge": -1}}}
    with pytest.raises(StructureError, match=r'\["tot_charge"\] = -1'):
        conditions.total_charge(atoms)
    atoms.info["charge"] = -1
    assert conditions.total_charge(atoms) == -1.0


def test_a_calculator_of_ours_that_is_attached_has_a_default_of_its_own(ion_model):
    """A vertical ionisation energy asks two calculators about the same atoms."""
    atoms = molecule("OH")
    neutral, ion = PhiCalculator(ion_model), PhiCalculator(ion_model, charge=-1)
    atoms.calc = ion
    first = atoms.get_potential_energy(), neutral.get_potential_energy(atoms)
    assert first == (atoms.get_potential_energy(), neutral.get_potential_energy(atoms))
    assert first[0] != first[1]


def test_what_pymatgen_leaves_as_attributes(ion_model):
    """Its adaptor writes neither into info; ASE's copies lose both."""
    atoms = molecule("OH")
    atoms.charge, atoms.spin_multiplicity = -1, 1
    calculator = PhiCalculator(ion_model)
    for _ in range(2):
        with pytest.raises(StructureError, match=r"atoms.charge = -1 of pymatgen, while 0 would"):
            calculator.get_potential_energy(atoms)
    said = PhiCalculator(ion_model, charge=-1).get_potential_energy(atoms)
    atoms.info["charge"] = -1
    assert calculator.get_potential_energy(atoms) == said
    atoms.spin_multiplicity = 3
    with pytest.warns(UnusedWarning, match="atoms.spin_multiplicity = 3"):
        PhiCalculator(ion_model).get_potential_energy(atoms)


def test_no_value_is_no_charge(tmp_path):
    """ASE writes None as a bare key, and reads that as True, which is 1 in arithmetic."""
    with pytest.raises(StructureError, match="got True, which is how a key without a value is"):
        conditions.total_charge(Atoms("H", info={"charge": True}))
    for nothing in (None, "None", "none", "null"):
        assert conditions.total_charge(Atoms("H", info={"charge": nothing})) == 0.0
        assert total_charge_of(Atoms("H", info={"charge": nothing})) == 0.0


@pytest.mark.parametrize("name", ["electric_field", "efield", "E_field", "homogeneous_field"])
def test_a_field_under_another_name_is_named(name):
    atoms = Atoms("Ar", info={name: [0.0, 0.0, 0.5]})
    with pytest.raises(StructureError, match=rf'info\["external_field"\] .* got info\["{name}"\]'):
        conditions.external_field(atoms)
    assert conditions.external_field(atoms, np.array([0.0, 0.0, 0.5]))[2] == 0.5
    atoms.info["external_field"] = np.zeros(3)
    assert not conditions.external_field(atoms).any()
    for harmless in (np.zeros(3), "none", 0.0):
        atoms.info = {name: harmless, "field": "chemistry"}
        assert not conditions.external_field(atoms).any()


@pytest.mark.parametrize(
    ("name", "charge", "info"),
    [
        ("H2O", 0, {"spin": 3}),
        ("H2O", 0, {"multiplicity": 3}),
        ("H2O", 1, {"Multiplicity": 4}),
        ("H2O", 0, {"uhf": 2}),
        ("H2O", 0, {"total_magmom": -2.0}),
    ],
)
def test_a_spin_other_than_the_lowest_is_named(name, charge, info):
    atoms = molecule(name)
    atoms.info |= info
    with pytest.warns(
        UnusedWarning, match=rf'"{next(iter(info))}"\] = .* no model here knows spin'
    ):
        conditions.name_spins([atoms], [charge])


@pytest.mark.parametrize(
    ("charge", "info"),
    [
        (0, {"spin": 1}),  # 2S + 1 of a singlet
        (0, {"spin": 0, "multiplicity": 1}),
        (1, {"spin": 0.5}),
        (1, {"multiplicity": 2, "uhf": 1, "magmom": -1.0}),
        (0, {"spin": "up", "mult": None}),
        (1, {"spin": 0, "total_magnetization": 0.0}),  # of a calculation without spin
    ],
)
def test_the_lowest_spin_is_no_news(charge, info):
    atoms = molecule("H2O")
    atoms.info |= info
    conditions.name_spins([atoms], [charge])  # a warning is an error


def test_a_calculation_without_spin_is_no_news():
    atoms = bulk("Cu")  # 29 electrons; GPAW's results have a moment of 0
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, magmom=0.0)
    check_labels([atoms], {"energy"})


def test_magnetic_moments_of_labelled_frames_are_named():
    frames = [molecule("H2O"), molecule("O2"), molecule("OH")]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    with pytest.warns(UnusedWarning, match="moments that sum to 2 in frame 1: no model"):
        check_labels(frames, {"energy"})
    conditions.name_spins(frames, [0.0] * 3)  # a first guess that ASE makes, where no label is


# --- everywhere ---------------------------------------------------------------------------------


@pytest.fixture
def ion_model(tmp_path):
    return save_model(
        small_potential("float64"), tmp_path / "m.pt", small_metadata(supports_total_charge=True)
    )


def test_the_calculator_names_it_before_and_after_a_result(ion_model):
    atoms = molecule("H2O")
    atoms.info["total_charge"] = 1
    atoms.calc = PhiCalculator(ion_model)
    with pytest.raises(StructureError, match="total_charge"):
        atoms.get_potential_energy()
    atoms.info["charge"] = atoms.info.pop("total_charge")
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-9)
    atoms.info = {"total_charge": 1}
    with pytest.raises(StructureError, match="total_charge"):
        atoms.get_potential_energy()
    assert np.isfinite(PhiCalculator(ion_model, charge=1).get_potential_energy(atoms))
    atoms.info["charge"] = 0
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-9)


def test_the_calculator_names_a_spin_once_a_structure(ion_model):
    atoms = molecule("H2O")
    atoms.info["multiplicity"] = 3
    atoms.calc = PhiCalculator(ion_model)
    with pytest.warns(UnusedWarning, match="multiplicity"):
        atoms.get_potential_energy()
    atoms.rattle(0.01)
    atoms.get_potential_energy()


def test_predict_and_the_data_name_the_frame(ion_model, tmp_path):
    frames = [molecule("H2O") for _ in range(4)]
    for number in (1, 3):
        frames[number].info["net_charge"] = 1
    with pytest.raises(StructureError, match=r'^frame 1: expected the total charge as info\["ch'):
        predict(ion_model, frames)
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    with pytest.raises(DataError, match=r"= 1, .* in frame 1 \(alike in frame 3\); rename it"):
        check_labels(frames, {"energy"})
    write(tmp_path / "ions.xyz", frames)
    for command in ("eval", "predict"):
        result = CliRunner().invoke(
            app,
            [command, str(ion_model), str(tmp_path / "ions.xyz"), "-o", str(tmp_path / "o.xyz")],
        )
        assert result.exit_code == 2
        assert "ions.xyz: " in result.stderr and 'info["net_charge"] = 1' in result.stderr
        assert "frame 1" in result.stderr


def test_commands_show_a_warning_as_one_line(ion_model, tmp_path):
    atoms = molecule("H2O")
    atoms.info["spin"] = 3
    write(tmp_path / "a.xyz", [molecule("H2O"), atoms])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = CliRunner().invoke(
            app, ["predict", str(ion_model), str(tmp_path / "a.xyz"), "-o", str(tmp_path / "b.xyz")]
        )
    assert result.exit_code == 0, result.output
    assert 'warning: info["spin"] = 3 in frame 1: no model' in result.stderr
    assert "Warning:" not in result.stderr and ".py" not in result.stderr
