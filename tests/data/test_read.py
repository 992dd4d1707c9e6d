"""Structures and labels through real files of several formats, and complaints about bad ones."""

import gzip
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from phicalc.data.neighbours import closest_overlap
from phicalc.data.read import (
    Labels,
    check_labels,
    labels_in_some,
    labels_of,
    read_structures,
    total_charge_of,
)
from phicalc.errors import DataError

FORCES = np.arange(9.0).reshape(3, 3) / 10


def water(**results: object) -> Atoms:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, **{"energy": -5.0, "forces": FORCES, **results})
    return atoms


def copper() -> Atoms:
    """Compressed copper with a live calculator's results."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell * 0.97, scale_atoms=True)
    atoms.calc = EMT()
    atoms.get_forces()
    atoms.get_stress()
    return atoms


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.xyz", "a.traj", "a.db", "a.json"])
def test_labels_survive_the_file(tmp_path: Path, name: str) -> None:
    written = [copper(), copper()]
    written[1].set_cell(np.eye(3) * 4.1, scale_atoms=True)
    written[1].get_stress()
    ase.io.write(tmp_path / name, written)
    read = read_structures(tmp_path / name)
    assert len(read) == 2
    for atoms, original in zip(read, written, strict=True):
        labels = labels_of(atoms)
        assert labels.energy == pytest.approx(original.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(labels.forces, original.get_forces(), atol=1e-7)
        np.testing.assert_allclose(labels.stress, original.get_stress(voigt=False), atol=1e-7)
        assert labels.total_charge == 0.0
        assert labels.present == {"energy", "forces", "stress"}
        check_labels([atoms], {"energy", "forces", "stress"})


def test_stress_has_the_sign_of_ase() -> None:
    stress = labels_of(copper()).stress
    assert stress is not None
    assert (np.diag(stress) < 0).all(), "compressed: negative, tension is positive"


def test_stress_in_info(tmp_path: Path) -> None:
    matrix = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    text = " ".join(map(str, matrix.ravel()))
    (tmp_path / "a.extxyz").write_text(
        f'1\nLattice="3 0 0 0 3 0 0 0 3" stress="{text}" pbc="T T T"\nAr 0 0 0\n'
    )
    (atoms,) = read_structures(tmp_path / "a.extxyz")
    assert np.array_equal(labels_of(atoms).stress, matrix)
    for stress in (matrix, matrix.ravel(), [1.0, 2, 3, 4, 5, 6]):
        assert np.array_equal(labels_of(Atoms("Ar", info={"stress": stress})).stress, matrix)


@pytest.mark.parametrize("column", ["charge", "charges", "initial_charges"])
def test_charge_column_and_total_charge(tmp_path: Path, column: str) -> None:
    """Both may be called charge: the column is per atom, info["charge"] the total."""
    header = f"Properties=species:S:1:pos:R:3:{column}:R:1 charge=-1 dipole='0.1 0.2 0.3'"
    (tmp_path / "a.extxyz").write_text(f'2\n{header} pbc="F F F"\nO 0 0 0 -1.25\nH 0 0 1 0.25\n')
    labels = labels_of(read_structures(tmp_path / "a.extxyz")[0])
    assert np.array_equal(labels.charges, [-1.25, 0.25])
    assert labels.total_charge == -1.0
    assert np.array_equal(labels.dipole, [0.1, 0.2, 0.3])
    assert labels.energy is None
    assert labels.present == {"charges", "dipole"}


def test_charges_wherever_they_are() -> None:
    stored, as_array, initial = water(charges=[-0.8, 0.4, 0.4]), molecule("H2O"), molecule("H2O")
    as_array.set_array("charges", np.array([-0.8, 0.4, 0.4]))
    initial.set_initial_charges([-0.8, 0.4, 0.4])
    stored.set_initial_charges([1.0, 1.0, -2.0])
    for atoms in (stored, as_array, initial):
        assert np.array_equal(labels_of(atoms).charges, [-0.8, 0.4, 0.4])
    initial.set_initial_charges(np.zeros(3))
    assert labels_of(initial).charges is None, "ASE's zeros are no label"


def test_nothing_is_calculated_to_get_a_label() -> None:
    atoms = bulk("Cu")
    atoms.calc = EMT()
    assert labels_of(atoms).present == frozenset()
    assert not atoms.calc.results


def test_free_energy_where_no_energy_is() -> None:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, free_energy=-3.0)
    assert labels_of(atoms).energy == -3.0
    assert labels_of(water(free_energy=-3.0)).energy == -5.0


def test_results_of_another_geometry_are_refused() -> None:
    atoms = water()
    atoms.positions[0, 0] += 0.1
    with pytest.raises(DataError, match="expected labels of the structure itself, got results of"):
        labels_of(atoms)


def test_labels_do_not_alias_the_structure() -> None:
    atoms = water()
    labels = labels_of(atoms)
    assert labels.forces is not None
    labels.forces[:] = 7.0
    assert np.array_equal(atoms.calc.results["forces"], FORCES)


def test_total_charge() -> None:
    assert total_charge_of(Atoms("H")) == 0.0
    assert total_charge_of(Atoms("H", info={"charge": None})) == 0.0
    assert total_charge_of(Atoms("He", info={"charge": np.int64(-2)})) == -2.0
    with pytest.raises(DataError, match=r"total charge as one finite number .* got 'plus one'"):
        total_charge_of(Atoms("H", info={"charge": "plus one"}))


def test_only() -> None:
    labels = labels_of(water(dipole=[0.0, 0.0, 1.0]))
    assert labels.only({"energy", "dipole"}).present == {"energy", "dipole"}
    assert Labels(energy=1.0, total_charge=2.0).only(()).total_charge == 2.0


def test_wrong_shapes() -> None:
    atoms = Atoms("H2", positions=np.eye(3)[:2], info={"energy": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"expected energy of shape \(\), got \(2,\)"):
        labels_of(atoms)
    atoms = Atoms("H2", positions=np.eye(3)[:2])
    atoms.arrays["forces"] = np.zeros((2, 2))
    with pytest.raises(DataError, match=r"expected forces of shape \(2, 3\), got \(2, 2\)"):
        labels_of(atoms)
    with pytest.raises(DataError, match=r"expected stress of shape \(3, 3\), got \(2,\)"):
        labels_of(Atoms("H", info={"stress": [1.0, 2.0]}))


def test_files_that_are_no_structures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        read_structures(tmp_path / "missing.xyz")
    (tmp_path / "a.foo").write_text("what is this?\n")
    with pytest.raises(DataError, match=r"a format that ASE reads, got .*a.foo"):
        read_structures(tmp_path / "a.foo")
    (tmp_path / "a.extxyz").write_text("3\n\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"a sound file of structures, got .*a.extxyz"):
        read_structures(tmp_path / "a.extxyz")
    ase.io.write(tmp_path / "b.extxyz.gz", [water()] * 50)
    whole = (tmp_path / "b.extxyz.gz").read_bytes()
    (tmp_path / "b.extxyz.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="check that it is complete"):
        read_structures(tmp_path / "b.extxyz.gz")
    with gzip.open(tmp_path / "c.extxyz.gz", "wt"):
        pass
    with pytest.raises(DataError, match=r"got (none in )?.*c.extxyz.gz"):
        read_structures(tmp_path / "c.extxyz.gz")


def test_good_labels_pass() -> None:
    check_labels([water()] * 3, {"energy", "forces"})
    check_labels([molecule("H2O")], ())


def complaint(frames: list[Atoms], needed: set[str], **options: float) -> str:
    with pytest.raises(DataError) as caught:
        check_labels(frames, needed, **options)
    return str(caught.value)


def test_missing_labels() -> None:
    message = complaint([water()] * 3, {"energy", "stress"})
    assert message.startswith("expected energy and stress in each of 3 frames")
    assert "no stress in any frame" in message
    other = molecule("H2O")
    other.info["REF_energy"] = -3.0
    assert "no energy (but REF_energy: rename it to energy) in any frame" in complaint(
        [other], {"energy"}
    )


def test_mixed_labels_by_frame() -> None:
    frames = [water() for _ in range(20)]
    for number in (3, 7):
        del frames[number].calc.results["forces"]
    message = complaint(frames, {"energy", "forces"})
    assert "no forces in frames 3, 7" in message
    assert "no energy" not in message


def test_nan_labels_and_positions_by_frame() -> None:
    frames = [water() for _ in range(5)]
    frames[1].calc.results["energy"] = np.nan
    frames[2].calc.results["forces"] = np.full((3, 3), np.inf)
    frames[3] = molecule("H2O")
    frames[3].positions[0] = np.nan
    frames[4].info["charge"] = np.nan
    message = complaint(frames, {"energy", "forces"})
    assert "NaN or infinite energy in frame 1" in message
    assert "NaN or infinite forces in frame 2" in message
    assert "NaN or infinite positions in frame 3" in message
    assert "expected the total charge as one finite number in e, got nan" in message
    assert message.count("in frame 4") == 1


def test_absurd_forces_by_frame() -> None:
    frames = [water() for _ in range(30)]
    for number in range(5, 20):
        frames[number].calc.results["forces"] = FORCES * 200
    message = complaint(frames, {"forces"})
    listed = "5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 5 more"
    assert f"absurd forces (beyond 100 eV/Å) in frames {listed}" in message
    check_labels(frames, {"forces"}, max_force=1000.0)
    check_labels(frames, {"energy"})
    assert "in all frames" in complaint(frames, {"forces"}, max_force=0.01)


def test_labels_in_other_units_by_frame() -> None:
    """kbar, GPa; kcal/mol of all electrons; populations in place of charges."""
    frames = [copper() for _ in range(3)]
    for atoms, factor in zip(frames[1:], (1602.2, 160.2), strict=True):
        results = atoms.calc.results
        results["stress"] = results["stress"] * factor * 10
        atoms.calc = SinglePointCalculator(atoms, **results)
    message = complaint(frames, {"stress"})
    assert "absurd stress (beyond 1 eV/Å³ = 160 GPa; expected eV/Å³: divide kbar" in message
    assert "GPa by 160.22) in frames 1, 2" in message
    check_labels(frames, {"energy", "forces"})
    total = -76.4 * 27.2114  # eV, of water by any method with all its electrons
    check_labels([water(energy=total), water(energy=1.3 * total)], {"energy"})
    assert "absurd energy" in complaint([water(energy=total * 23.06)], {"energy"})
    assert "absurd charges (beyond 10 e" in complaint([water(charges=[10.2, -5, -5])], {"charges"})


def test_units_that_the_frame_states() -> None:
    stated = [water(), water()]
    stated[1].info |= {"energy_unit": "Hartree", "force_units": "eV/Å", "charge_unit": "e"}
    assert "energy_unit=Hartree (convert to eV" in complaint(stated, {"energy"})
    check_labels(stated, {"forces"})
    stated[1].info["energy_unit"] = "eV per atom"
    assert "energy_unit=eV per atom (convert to eV" in complaint(stated, {"energy"})
    stated[1].info["forces_unit"] = "Ha/Bohr"
    assert "forces_unit=Ha/Bohr" in complaint(stated, {"forces"})


def test_labels_that_nobody_asked_for_are_not_looked_at() -> None:
    atoms = water()
    atoms.info |= {"dipole": 1.85, "stress": "none"}
    atoms.arrays["charges"] = np.zeros((3, 2))
    check_labels([atoms], {"energy", "forces"})
    assert labels_of(atoms, ["energy", "forces"]).present == {"energy", "forces"}
    for name, shape in (("dipole", r"\(3,\), got \(\)"), ("charges", r"\(3,\), got \(3, 2\)")):
        with pytest.raises(DataError, match=f"expected {name} of shape {shape}"):
            labels_of(atoms, [name])
    assert labels_in_some([atoms, water()]) == ["energy", "forces"]
    other = water()
    other.info["dipole"] = [0.0, 0.0, 1.0]
    assert labels_in_some([atoms, other]) == ["energy", "forces", "dipole"], "one is a label"


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("energy", {"REF_energy": -3.0, "TotEnergy": -3.0, "E_tot": -3.0, "dft-energy": -3.0}),
        ("stress", {"virial": np.eye(3), "virials": np.eye(3).ravel(), "REF_stress": np.ones(6)}),
        ("dipole", {"mu": [0, 0, 1.0], "dft_dipole": [0, 0, 1.0], "dipole_moment": [0, 0, 1.0]}),
    ],
)
def test_likely_names_of_a_missing_label(label: str, keys: dict[str, object]) -> None:
    """All of them, of the right size only, and of the first frame that lacks the label."""
    frames = [water(stress=np.zeros(6), dipole=np.zeros(3)), molecule("H2O")]
    frames[1].info |= {
        **keys,
        "dipole_origin": np.zeros(3),
        "energy_method": "PBE",
        "stress_count": [1, 2],
    }
    message = complaint(frames, {label})
    assert f"no {label} (but {', '.join(keys)}: rename it to {label}" in message
    assert "name the column (data.keys, or eval --key)" in message
    assert message.count("frame 1") == 1
    if label == "stress":
        assert "stress is minus the virial over the volume" in message


@pytest.mark.parametrize(
    ("label", "keys", "shape"),
    [
        ("forces", ["force", "dft_forces", "REF_forces", "gradient"], (3, 3)),
        ("charges", ["q", "hirshfeld", "mulliken_charges", "MBIS"], (3,)),
    ],
)
def test_likely_columns_of_a_missing_label(label: str, keys: list[str], shape: tuple) -> None:
    atoms = molecule("H2O")
    for key in keys:
        atoms.arrays[key] = np.zeros(shape)
    atoms.arrays["tags_q"] = np.zeros(3)
    assert f"no {label} (but {', '.join(keys)}: rename" in complaint([atoms], {label})


# --- structures -----------------------------------------------------------------------------------


def labelled_copper(extra: list[float] | None = None) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    if extra is not None:
        atoms += Atoms("Cu", [atoms.positions[0] + extra])
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0)
    return atoms


def test_overlapping_atoms_by_frame() -> None:
    cell = bulk("Cu", cubic=True).cell.array
    shifts = [
        [0.0, 0, 0],
        cell[0] + cell[1] - 2 * cell[2],
        [0, 1e-4, 0],
        3 * cell[2] + [0, 0, 9e-3],
    ]
    for shift in shifts:
        message = complaint([labelled_copper(), labelled_copper(list(shift))], {"energy"})
        assert "expected atoms at least 0.01 Å apart, got " in message
        assert "between atom 0 and atom 4 in frame 1; remove duplicate" in message
    check_labels([labelled_copper([0, 0, 0.02]), labelled_copper(list(cell[0] / 2))], {"energy"})
    frames = [labelled_copper([0.0, 0.0, 1e-4 * n] if n % 2 else None) for n in range(30)]
    listed = "1 (alike in frames 3, 5, 7, 9, 11, 13, 15, 17, 19, 21 and 4 more)"
    assert f"between atom 0 and atom 4 in frame {listed}; remove" in complaint(frames, {"energy"})


@pytest.mark.parametrize("pbc", [True, (True, False, True), False])
def test_overlaps_are_those_of_all_images(pbc) -> None:
    """Against every image within reach, in a skewed cell."""
    random = np.random.default_rng(3)
    cell = np.array([[3.0, 0, 0], [1.4, 2.0, 0], [-1.0, 0.7, 2.5]])
    periodic = np.broadcast_to(np.array(pbc), 3).copy()
    images = [(np.array(n) - 6) * periodic for n in np.ndindex(13, 13, 13)]
    shifts = np.unique(images, axis=0) @ cell
    near = shifts[np.linalg.norm(shifts, axis=1) < 6.0]
    found = 0
    for _ in range(200):
        positions = random.uniform(-3, 3, (4, 3))
        positions[3] = positions[0] + near[random.integers(len(near))]
        positions[3] += random.normal(size=3) * 0.2
        distances = np.linalg.norm(
            positions[None, :, None] + shifts - positions[:, None, None], axis=-1
        ).min(axis=2)
        distances[np.arange(4), np.arange(4)] = np.inf
        expected = distances.min()
        overlap = closest_overlap(positions, cell, periodic, 0.3)
        if expected >= 0.3:
            assert overlap is None
        else:
            found += 1
            assert overlap is not None and overlap[0] == pytest.approx(expected)
            assert distances[overlap[1]] == pytest.approx(expected)
    assert 50 < found < 190


def test_flat_cells_and_atoms_of_no_element_by_frame() -> None:
    frames = [labelled_copper() for _ in range(4)]
    frames[1].set_cell(np.zeros((3, 3)))
    frames[3].symbols[2] = "X"
    for atoms in (frames[1], frames[3]):
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0)
    message = complaint(frames, {"energy"})
    assert "a cell of zero volume" in message and "in frame 1" in message
    assert "expected chemical elements, got X (no element) for atom 2 in frame 3;" in message


def test_labels_in_a_field_are_refused() -> None:
    frames = [water(), water(), water()]
    frames[1].info["external_field"] = [0.0, 0.0, 0.2]
    frames[2].info["external_field"] = np.zeros(3)
    with pytest.raises(DataError, match=r"electric field .* in frame 1;?"):
        check_labels(frames, {"energy"})
    frames[1].info = {"efield": [0.0, 0.0, 0.2]}
    assert 'got info["efield"] = [0.0, 0.0, 0.2]' in complaint(frames, {"energy"})


def test_unreadable_labels_and_empty_frames_by_frame() -> None:
    frames = [water(), Atoms(), water()]
    frames[2].positions += [0.1, 0.0, 0.0]
    message = complaint(frames, {"energy"})
    assert "no atoms in frame 1" in message
    assert "results of another geometry" in message
    assert "in frame 2" in message


def test_unknown_label_and_no_frames() -> None:
    with pytest.raises(DataError, match=r"expected labels out of energy, forces, .* got force"):
        check_labels([water()], {"force"})
    with pytest.raises(DataError, match="expected at least one structure, got none"):
        check_labels([], {"energy"})
