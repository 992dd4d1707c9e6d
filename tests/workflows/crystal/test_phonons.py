"""Frequencies against dynamical matrices that were made in other ways."""

from itertools import product
from pathlib import Path

import numpy as np
import phonopy
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.io import read
from ase.phonons import Phonons as AsePhonons
from matscipy.calculators.pair_potential import LennardJonesQuadratic, PairPotential

from phicalc.errors import ConfigError, OutputError, SimulationError, UnsupportedError
from phicalc.workflows.crystal.phonon_modes import animate, modes_at
from phicalc.workflows.crystal.phonons import Phonons, PhononSettings
from phicalc.workflows.relax import RelaxSettings
from tests.workflows.ions import COULOMB, RigidIons
from tests.workflows.md.test_guards import Failing

THZ = np.sqrt(units._e / units._amu) * 1e10 / (2.0 * np.pi) * 1e-12
"""√(eV/Å²/u) in THz, as a frequency."""

QUICK = {"mesh": (4, 4, 4), "points": 5, "animated": ()}


def frequencies(result, q) -> np.ndarray:
    return modes_at(result.phonopy, q)[0]


@pytest.fixture(scope="module")
def copper():
    """Phonons of EMT copper, from the cubic cell."""
    atoms = bulk("Cu", cubic=True, a=3.6)
    atoms.calc = EMT()
    return Phonons(atoms, PhononSettings(supercell=(3, 3, 3), displacement=1e-3, **QUICK)).run()


def test_emt_against_ases_own_phonons(copper, tmp_path):
    primitive = bulk("Cu", a=copper.atoms.cell[0, 0])
    # whole waves in both supercells, so that the forces' reach does not matter
    reference = AsePhonons(primitive, EMT(), supercell=(6, 6, 6), delta=1e-3, name=tmp_path / "c")
    reference.run()
    reference.read(acoustic=True)
    ours = copper.phonopy.primitive.cell
    for q in [(1 / 3, 0, 0), (1 / 3, 1 / 3, 0), (1 / 3, 2 / 3, 0), (1 / 3, 1 / 3, 1 / 3)]:
        omega = reference.band_structure([q], verbose=False)[0] / units._hplanck * units._e / 1e12
        wave = np.linalg.inv(primitive.cell.array) @ np.array(q)
        np.testing.assert_allclose(frequencies(copper, ours @ wave), omega, atol=1e-3)
    assert copper.acoustic < 1e-3 and copper.lowest > -1e-3
    assert copper.gamma().shape == (3,)
    assert copper.relaxation.space_group == "Fm-3m (225)"
    assert "does not give born_effective_charges" in copper.note


def test_lennard_jones_against_the_analytic_hessian():
    """Every q: the forces end well within half the supercell."""
    sigma = 3.4
    potential = {18: LennardJonesQuadratic(0.0104, sigma, 2.0 * sigma)}
    calculator = PairPotential({(18, 18): potential[18]})
    atoms = bulk("Ar", cubic=True, a=5.25)
    atoms.calc = calculator
    settings = PhononSettings(supercell=(3, 3, 3), displacement=1e-3, relax=None, **QUICK)
    result = Phonons(atoms, settings).run()
    crystal = atoms * (3, 3, 3)
    hessian = calculator.get_property("hessian", crystal).toarray()
    row = hessian[:3].reshape(3, len(crystal), 3)
    vectors = crystal.get_distances(0, range(len(crystal)), mic=True, vector=True)
    mass = atoms.get_masses()[0]
    to_cartesian = 2.0 * np.pi * np.linalg.inv(result.phonopy.primitive.cell)
    for q in [(0.1, 0.0, 0.0), (0.37, 0.21, 0.05), (0.5, 0.5, 0.0), (0.123, -0.4, 0.3)]:
        phases = np.exp(1j * vectors @ (to_cartesian @ np.array(q)))
        dynamical = np.einsum("anb,n->ab", row, phases) / mass
        squares = np.linalg.eigvalsh(0.5 * (dynamical + dynamical.conj().T))
        np.testing.assert_allclose(frequencies(result, q), np.sqrt(squares) * THZ, atol=1e-3)


@pytest.fixture(scope="module")
def salt():
    """Phonons of rigid ions on the lattice of rock salt, Born charges from the calculator."""
    return salt_phonons((2, 2, 2))


def salt_phonons(supercell, born_error=0.0, **changes):
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.calc = RigidIons({"Na": 0.9, "Cl": -0.9}, born_error)
    values = {"supercell": supercell, "relax": None, **QUICK}
    return Phonons(atoms, PhononSettings(**values | changes)).run()


def test_the_splitting_at_gamma_is_the_known_one(salt):
    transverse = salt.gamma()[3:]
    split = salt.gamma((1, 0, 0))[3:]
    np.testing.assert_allclose(transverse, transverse[0], atol=1e-6)
    np.testing.assert_allclose(split[:2], transverse[:2], atol=1e-3)
    masses = salt.phonopy.primitive.masses
    plasma = 4.0 * np.pi * COULOMB * 0.9**2 / salt.phonopy.primitive.volume
    plasma *= 1.0 / masses[0] + 1.0 / masses[1]
    expected = np.sqrt(transverse[0] ** 2 + plasma * THZ**2)
    assert split[2] == pytest.approx(expected, abs=1e-3)
    assert split[2] > transverse[0] + 1.0
    assert salt.born.source == "model" and salt.note is None and salt.born.violation < 1e-12
    assert salt.acoustic < 1e-3


@pytest.mark.filterwarnings("ignore:.*Point group symmetries of supercell")
def test_the_dipoles_are_counted_once(salt):
    """Between the supercell's own waves as in a longer supercell that has them."""
    plain = salt_phonons((2, 2, 2), correction="none")
    assert plain.note == "switched off" and plain.born is None
    np.testing.assert_allclose(plain.gamma((1, 0, 0)), plain.gamma(), atol=1e-9)
    cell = salt.phonopy.primitive.cell
    for cells, steps in ((4, (1,)), (6, (1, 2))):
        longer = salt_phonons((cells, 1, 1), correction="none")
        for step in steps:
            q = cell @ np.array([step / cells / 5.64, 0.0, 0.0])
            exact = frequencies(longer, longer.phonopy.primitive.cell @ np.linalg.inv(cell) @ q)
            np.testing.assert_allclose(frequencies(salt, q), exact, atol=0.005)
            assert abs(frequencies(plain, q)[-1] - exact[-1]) > 1.0


def test_the_sum_of_born_charges_is_enforced_and_its_violation_reported(salt):
    other = salt_phonons((2, 2, 2), born_error=0.03)
    assert other.born.violation == pytest.approx(8 * 0.03)
    np.testing.assert_allclose(other.born.charges, salt.born.charges, atol=1e-12)
    np.testing.assert_allclose(other.gamma((0, 1, 0)), salt.gamma((0, 1, 0)), atol=1e-9)


def test_a_born_file_gives_the_same(salt, tmp_path):
    line = " ".join(f"{x:.8f}" for x in np.eye(3).ravel())
    charge = " ".join(f"{x:.8f}" for x in 0.9 * np.eye(3).ravel())
    path = tmp_path / "BORN"
    path.write_text(f"# BORN\n{line}\n{charge}\n-{charge.replace(' 0.9', ' -0.9')}\n")
    result = salt_phonons((2, 2, 2), born_file=path)
    assert result.born.source == "BORN"
    np.testing.assert_allclose(result.gamma((1, 0, 0)), salt.gamma((1, 0, 0)), atol=1e-6)
    path.write_text(f"# BORN\n{line}\n")
    with pytest.raises(ConfigError, match="expected a BORN file"):
        salt_phonons((1, 1, 1), born_file=path)
    with pytest.raises(ConfigError, match="expected a BORN file"):
        salt_phonons((1, 1, 1), born_file=tmp_path / "none")


class Metallic(RigidIons):
    """A calculator that has the properties by name and refuses them."""

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        for name in ("born_effective_charges", "dielectric_tensor"):
            del self.results[name]
        if "born_effective_charges" in properties:
            raise PropertyNotImplementedError("this head screens like a metal")


def test_a_model_that_screens_like_a_metal_says_so():
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.calc = Metallic({"Na": 0.9, "Cl": -0.9})
    values = {"supercell": (1, 1, 1), "relax": None, **QUICK}
    result = Phonons(atoms, PhononSettings(**values)).run()
    assert result.born is None
    assert "screens like a metal" in result.note and "BORN file" in result.note
    with pytest.raises(UnsupportedError, match=r"screens like a metal.*BORN"):
        Phonons(atoms, PhononSettings(**values, correction="model")).run()


def test_files_open_with_phonopy(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.calc = RigidIons({"Na": 0.9, "Cl": -0.9})
    values = {**QUICK, "animated": ((0, 0, 0), (0.5, 0.5, 0.0))}
    settings = PhononSettings(supercell=(2, 2, 2), relax=None, **values)
    result = Phonons(atoms, settings, tmp_path).run()
    loaded = phonopy.load(tmp_path / "phonons.yaml")
    for q in [(0.2, 0.1, 0.0), (0.5, 0.5, 0.5)]:
        loaded.run_qpoints([q])
        np.testing.assert_allclose(loaded.qpoints.frequencies[0], frequencies(result, q), atol=1e-4)
    for name in ("phonons.png", "phonons-thermal.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in result.files}
    modes = {f"phonons-mode-{n}-{band:02d}.extxyz" for n, band in product((0, 1), range(6))}
    tables = {"phonons-bands.yaml", "phonons-dos.dat", "phonons-thermal.yaml"}
    assert names == {"phonons.yaml", "phonons.png", "phonons-thermal.png"} | modes | tables
    assert {path.name for path in tmp_path.iterdir()} == names
    frames = read(tmp_path / "phonons-mode-1-03.extxyz", ":")
    assert len(frames) == 24 and len(frames[0]) == 8
    assert frames[0].info["frequency_THz"] == pytest.approx(frequencies(result, (0.5, 0.5, 0))[3])
    with pytest.raises(OutputError, match="exists already"):
        Phonons(atoms, settings, tmp_path).run()
    assert Phonons(atoms, settings, tmp_path).run(restart=True).files == result.files


@pytest.mark.parametrize("q", [(0.5, 0.5, 0.0), (1 / 3, 0.0, 0.0)])
def test_animated_atoms_feel_the_force_of_their_mode(copper, q):
    """Along a normal mode the forces are −m ω² u."""
    for band in range(3):
        frames = animate(copper.phonopy, q, band, frames=8, amplitude=1e-3)
        rest = np.mean([frame.positions for frame in frames], axis=0)
        omega = frames[0].info["frequency_THz"] / THZ
        for frame in frames[:3]:
            shift = frame.positions - rest
            assert np.sqrt((shift**2).sum(axis=1)).max() <= 1e-3 + 1e-9
            frame.calc = EMT()
            expected = -frame.get_masses()[:, None] * omega**2 * shift
            scale = np.abs(expected).max() if np.abs(expected).max() > 1e-6 else 1.0
            np.testing.assert_allclose(frame.get_forces() / scale, expected / scale, atol=0.02)
    with pytest.raises(ConfigError, match="band: expected 0 to 2, got 3"):
        animate(copper.phonopy, q, 3)
    with pytest.raises(ConfigError, match="q: expected fractions"):
        animate(copper.phonopy, (0.0717, 0.0, 0.0), 0)


def test_thermal_properties_reach_the_classical_limit(copper):
    thermal = copper.phonopy.thermal_properties
    assert thermal.temperatures[-1] == 1000.0
    # 63 of the 4×4×4 q-points count fully, Γ not at all
    classical = 3.0 * units.kB / (units.kJ / units.mol) * 1e3 * 63 / 64
    assert thermal.heat_capacity[-1] == pytest.approx(classical, rel=0.02)
    dos = copper.phonopy.total_dos
    spacing = dos.frequency_points[1] - dos.frequency_points[0]
    assert dos.dos.sum() * spacing == pytest.approx(3.0, rel=0.03)


def test_supercells_by_length():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    simulation = Phonons(atoms, PhononSettings(supercell_length=10.0))
    assert simulation._repeats(atoms).tolist() == [3, 3, 3]
    skewed = Atoms("Cu", cell=[[5, 0, 0], [4, 3, 0], [0, 0, 20]], pbc=True)
    # heights 5·3/5 = 3 Å, 3 Å and 20 Å
    assert simulation._repeats(skewed).tolist() == [4, 4, 1]


def test_what_has_no_phonons(tmp_path):
    water = molecule("H2O")
    water.calc = EMT()
    with pytest.raises(UnsupportedError, match="expected a crystal periodic in three directions"):
        Phonons(water, PhononSettings())
    atoms = bulk("Cu")
    atoms.calc = Failing(2, force=np.nan)
    atoms.calc.wrong["force"] = 0.0
    values = {"relax": None, "supercell": (2, 2, 2), **QUICK}
    with pytest.raises(ConfigError, match="path: expected special points"):
        Phonons(atoms, PhononSettings(**values, path="GQ")).run()
    crystal = bulk("Cu", cubic=True)
    crystal.calc = Failing(1, force=np.nan)
    with pytest.raises(SimulationError, match="displacement 0 are NaN"):
        Phonons(crystal, PhononSettings(**values), tmp_path).run()
    assert list(Path(tmp_path).iterdir()) == []
    for changes, message in (
        ({"displacement": 0.0}, "displacement: expected greater than 0"),
        ({"supercell": (1, 2)}, "supercell"),
        ({"correction": "some"}, "correction: expected 'auto', 'model' or 'none', got 'some'"),
        ({"relax": RelaxSettings(), "points": 1}, "points: expected greater than or equal to 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            PhononSettings(**changes)
