import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_stress
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.stress import full_3x3_to_voigt_6_stress

import phicalc.engines.ase
from phicalc import PhiCalculator, fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import (
    ConfigError,
    ConvergenceError,
    ModelFileError,
    PhicalcError,
    StructureError,
    UnsupportedError,
)
from phicalc.serving.model_file import load_model, model_bytes, save_model
from tests.reference_models import (
    LennardJones,
    argon_crystal,
    lennard_jones_metadata,
    small_metadata,
    small_potential,
)

ALL = ["energy", "free_energy", "energies", "forces", "stress", "charges", "dipole"]
RESPONSE = ["polarization", "born_effective_charges", "dielectric_tensor"]


@pytest.fixture
def argon() -> Atoms:
    return argon_crystal()


# --- numbers ------------------------------------------------------------------------------------


def test_energy_forces_and_stress_are_those_of_ases_lennard_jones(lennard_jones, argon):
    reference = argon.copy()
    reference.calc = AseLennardJones(sigma=2.5, epsilon=0.1, rc=6.0, smooth=False)
    argon.calc = PhiCalculator(lennard_jones)
    for _ in range(3):  # from a fresh list and from a reused one
        assert argon.get_potential_energy() == pytest.approx(
            reference.get_potential_energy(), abs=1e-10
        )
        for name in ("get_forces", "get_stress", "get_potential_energies"):
            found, expected = getattr(argon, name)(), getattr(reference, name)()
            assert found == pytest.approx(expected, abs=1e-10), name
        argon.rattle(0.05, seed=5)
        reference.rattle(0.05, seed=5)
    assert argon.calc.cache_info()["neighbour_rebuilds"] == 1


def test_results_are_the_networks(atoms):
    module = small_potential("float64", seed=2)
    atoms.numbers[atoms.numbers == 13] = 11
    expected = module(graph_dict(collate([to_graph(atoms, 4.0)])))
    calculator = PhiCalculator(load_model(model_bytes(module, small_metadata("float64"))))
    calculator.calculate(atoms, ["energy"], all_changes)
    results = calculator.results
    assert results["energy"] == results["free_energy"] == float(expected[fields.ENERGY])
    for name in ("energies", "forces", "charges"):
        assert np.array_equal(results[name], expected[name].numpy()), name
    if atoms.pbc.all():
        stress = full_3x3_to_voigt_6_stress(expected[fields.STRESS][0].numpy())
        assert np.array_equal(results["stress"], stress)
    assert ("stress" in results) == atoms.pbc.all()
    assert ("dipole" in results) == (not atoms.pbc.any())
    assert np.array_equal(calculator.potential, expected[fields.POTENTIAL].numpy())


def test_every_result_has_the_shape_and_type_that_ase_knows(model, bulk):
    bulk.calc = PhiCalculator(model)
    bulk.get_potential_energy()
    assert set(bulk.calc.results) <= set(ALL)
    assert PhiCalculator.implemented_properties == ALL + RESPONSE
    properties = bulk.get_properties(["energy", "forces", "stress", "charges"])
    assert isinstance(properties["energy"], float)
    assert properties["forces"].shape == (len(bulk), 3)
    assert properties["stress"].shape == (6,)
    assert properties["charges"].shape == (len(bulk),)
    assert all(np.asarray(value).dtype == float for value in bulk.calc.results.values())


def test_stress_is_the_slope_of_the_energy_under_strain(model, bulk):
    bulk.calc = PhiCalculator(model)
    expected = calculate_numerical_stress(bulk, eps=1e-4)
    assert bulk.get_stress() == pytest.approx(expected, abs=1e-7)


def test_the_dipole_of_a_neutral_molecule_does_not_depend_on_the_origin(model, molecule):
    molecule.calc = PhiCalculator(model)
    dipole = molecule.get_dipole_moment()
    assert dipole == pytest.approx(molecule.get_charges() @ molecule.positions, abs=1e-10)
    molecule.positions += [30.0, -20.0, 10.0]
    assert molecule.get_dipole_moment() == pytest.approx(dipole, abs=1e-8)


def test_the_dipole_of_an_ion_is_about_its_centre_of_mass(model, molecule):
    molecule.calc = PhiCalculator(model, charge=1)
    arms = molecule.positions - molecule.get_center_of_mass()
    assert molecule.get_dipole_moment() == pytest.approx(molecule.get_charges() @ arms, abs=1e-10)


def test_one_evaluation_serves_all_properties(model, bulk):
    bulk.calc = PhiCalculator(model)
    for name in ("energy", "free_energy", "energies", "forces", "stress", "charges"):
        bulk.calc.get_property(name, bulk)
    bulk.set_initial_charges([1.0, -1.0] * 2)  # not what these models read
    bulk.get_forces()
    assert bulk.calc.timings()["evaluations"] == 1


def test_results_cannot_be_spoilt_from_outside(model, molecule):
    molecule.calc = PhiCalculator(model)
    expected = molecule.get_forces()
    molecule.get_forces()[:] = 7.0
    molecule.calc.potential[:] = 7.0
    molecule.calc.energy_terms.clear()
    assert np.array_equal(molecule.get_forces(), expected)
    assert (molecule.calc.potential != 7.0).all()
    assert molecule.calc.energy_terms


# --- what is not defined ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("molecule", "stress", "periodic in three directions"),
        ("slab", "stress", "periodic in three directions"),
        ("bulk", "dipole", "undefined"),
        ("slab", "dipole", "undefined"),
        ("molecule", "magmoms", "not implemented"),
    ],
)
def test_an_undefined_property_is_refused_with_the_reason(request, model, kind, name, reason):
    atoms = request.getfixturevalue(kind)
    atoms.numbers[atoms.numbers == 13] = 11
    atoms.calc = PhiCalculator(model)
    with pytest.raises(PropertyNotImplementedError, match=reason):
        atoms.calc.get_property(name, atoms)
    assert np.isfinite(atoms.get_potential_energy())


def test_a_property_that_the_model_lacks(lennard_jones):
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]], calculator=PhiCalculator(lennard_jones))
    with pytest.raises(PropertyNotImplementedError, match="does not give dipole"):
        atoms.get_dipole_moment()
    atoms.get_potential_energy()
    for attribute in ("potential", "spectrum"):
        with pytest.raises(UnsupportedError, match="expected a Φ head"):
            getattr(atoms.calc, attribute)()


def test_attributes_before_any_calculation(model):
    calculator = PhiCalculator(model)
    for name in ("potential", "energy_terms", "energy_spread", "forces_spread", "spectrum"):
        with pytest.raises(UnsupportedError, match="nothing was calculated yet"):
            getattr(calculator, name)()
    with pytest.raises(StructureError, match="none"):
        calculator.calculate()


# --- total charge -------------------------------------------------------------------------------


def test_info_wins_over_the_argument_and_both_over_nothing(lennard_jones):
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])
    neutral = PhiCalculator(lennard_jones).get_potential_energy(atoms)
    calculator = PhiCalculator(lennard_jones, charge=2)
    assert calculator.get_potential_energy(atoms) == pytest.approx(neutral + 4)
    atoms.info["charge"] = np.int64(-3)
    assert calculator.get_potential_energy(atoms) == pytest.approx(neutral + 9)
    atoms.info["charge"] = 0
    assert calculator.get_potential_energy(atoms) == pytest.approx(neutral)


def test_a_changed_charge_is_a_changed_structure(lennard_jones):
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]], info={"charge": 1.0, "note": "mine"})
    atoms.calc = PhiCalculator(lennard_jones)
    energies = []
    for charge in (1.0, 1.0, 2.0, 1.0):
        atoms.info["charge"] = charge
        energies.append(atoms.get_potential_energy())
        assert atoms.get_charges() == pytest.approx([charge / 2, charge / 2])
    assert energies[2] - energies[0] == pytest.approx(3.0)
    assert energies[0] == energies[1] == energies[3]
    assert atoms.calc.timings()["evaluations"] == 3
    atoms.info["note"] = "still mine"
    del atoms.info["charge"]
    atoms.calc.charge = 1.0
    assert atoms.get_potential_energy() == energies[0]
    assert atoms.calc.timings()["evaluations"] == 3
    assert atoms.info == {"note": "still mine"}
    atoms.calc.charge = 2.0
    assert atoms.get_potential_energy() == energies[2]


@pytest.mark.parametrize("charge", ["one", np.nan, [1.0, 2.0], np.inf])
def test_a_charge_that_is_no_number(lennard_jones, charge):
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]], info={"charge": charge})
    atoms.calc = PhiCalculator(lennard_jones)
    with pytest.raises(StructureError, match="total charge"):
        atoms.get_potential_energy()
    with pytest.raises(StructureError, match="total charge"):
        PhiCalculator(lennard_jones, charge=charge)


def test_charges_sum_to_the_total_charge(model, molecule):
    molecule.calc = PhiCalculator(model)
    for charge in (0.0, 1.0, -2.0):
        molecule.info["charge"] = charge
        assert molecule.get_charges().sum() == pytest.approx(charge, abs=1e-9)


def test_a_model_without_total_charge_refuses_ions():
    metadata = lennard_jones_metadata(supports_total_charge=False)
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])
    atoms.calc = PhiCalculator(load_model(model_bytes(LennardJones(), metadata)))
    assert np.isfinite(atoms.get_potential_energy())
    atoms.info["charge"] = 1
    with pytest.raises(UnsupportedError, match=r"expected total charge 0.*got 1"):
        atoms.get_potential_energy()


# --- bad structures -----------------------------------------------------------------------------


def spoil(atoms: Atoms, kind: str) -> None:
    if kind == "unknown element":
        atoms.numbers[0] = 79
    elif kind == "nan":
        atoms.positions[1, 2] = np.nan
    elif kind == "infinite":
        atoms.positions[1, 2] = np.inf
    elif kind == "empty":
        del atoms[:]
    elif kind == "one spot":
        atoms.positions[1] = atoms.positions[0]
    elif kind == "one spot across the face":
        atoms.positions[1] = atoms.positions[0] + atoms.cell[0]
    elif kind == "zero volume":
        atoms.cell[2] = atoms.cell[0] + atoms.cell[1]
    elif kind == "no cell":
        atoms.cell[:] = 0.0
    else:
        raise ValueError(kind)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("unknown element", UnsupportedError, "got Au"),
        ("nan", StructureError, "atom 1"),
        ("infinite", StructureError, "atom 1"),
        ("empty", StructureError, "at least one atom"),
        ("one spot", StructureError, "between atom"),
        ("one spot across the face", StructureError, "between atom"),
        ("zero volume", StructureError, "zero volume"),
        ("no cell", StructureError, "zero volume"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_structure_that_cannot_be_evaluated(lennard_jones, argon, kind, error, message, warm):
    argon.calc = PhiCalculator(lennard_jones)
    sound = argon.copy()
    expected = PhiCalculator(lennard_jones).get_forces(sound)
    if warm:
        argon.get_forces()
    spoil(argon, kind)
    for _ in range(2):  # and not just the first time
        with pytest.raises(error, match=message) as raised:
            argon.get_forces()
        assert isinstance(raised.value, ValueError)
        assert argon.calc.results == {}
    sound.calc = argon.calc  # the calculator itself took no harm
    assert np.array_equal(sound.get_forces(), expected)


def test_a_failed_direct_calculation_leaves_no_older_results(model, molecule):
    calculator = PhiCalculator(model)
    calculator.calculate(molecule)
    molecule.positions[0] = np.nan
    with pytest.raises(StructureError):
        calculator.calculate(molecule)
    assert calculator.results == {}
    with pytest.raises(UnsupportedError, match="nothing was calculated"):
        _ = calculator.potential


def test_partial_pbc_where_the_model_does_not_take_it(slab):
    slab.numbers[:] = 18
    metadata = lennard_jones_metadata(supports_partial_pbc=False)
    slab.calc = PhiCalculator(load_model(model_bytes(LennardJones(), metadata)))
    with pytest.raises(UnsupportedError, match=r"no or three periodic directions.*True, True, Fal"):
        slab.get_potential_energy()
    slab.pbc = False
    assert np.isfinite(slab.get_potential_energy())


def test_a_nan_of_the_model_is_an_error(argon):
    broken = model_bytes(LennardJones(epsilon=float("nan")), lennard_jones_metadata())
    argon.calc = PhiCalculator(load_model(broken))
    with pytest.raises(StructureError, match=r"NaN or infinity in energy.*16 atoms, first 0"):
        argon.get_potential_energy()
    assert argon.calc.results == {}


def test_a_solve_that_did_not_converge_is_an_error(molecule):
    class Unsolved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_potential("float64")

        def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            output = self.inner(graph)
            output[fields.SOLVER_RESIDUAL] = output[fields.SOLVER_RESIDUAL] + 1e-3
            return output

    molecule.calc = PhiCalculator(load_model(model_bytes(Unsolved(), small_metadata("float64"))))
    with pytest.raises(ConvergenceError, match=r"got 1\.0+e-03"):
        molecule.get_potential_energy()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": []}, UnsupportedError, "at least one model"),
        ({"model": "missing.pt"}, ModelFileError, "no such file"),
        ({"device": "abacus"}, UnsupportedError, "abacus"),
        ({"threads": 0}, UnsupportedError, "threads"),
        ({"skin": -1.0}, ConfigError, "skin"),
    ],
)
def test_bad_arguments(lennard_jones, arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        PhiCalculator(**{"model": lennard_jones, **arguments})
    assert isinstance(raised.value, PhicalcError)


# --- electrostatics -----------------------------------------------------------------------------


def test_energy_terms_add_up(model, bulk):
    bulk.calc = PhiCalculator(model)
    energy = bulk.get_potential_energy()
    assert {"reference", "network", "zbl", "phi"} <= set(bulk.calc.energy_terms)
    assert sum(bulk.calc.energy_terms.values()) == pytest.approx(energy, abs=1e-10)


def test_the_spectrum_gives_back_charges_and_potential(model, molecule):
    molecule.calc = PhiCalculator(model)
    molecule.get_potential_energy()
    eigenvalues, coefficients = molecule.calc.spectrum()
    assert eigenvalues[0] == pytest.approx(0.0, abs=1e-10)
    assert eigenvalues[1] > 1e-3  # one connected molecule
    # Parseval: ‖φ‖² = Σ α², ‖ρ‖² = Σ (λα)²
    potential, charges = molecule.calc.potential, molecule.get_charges()
    assert (coefficients**2).sum() == pytest.approx((potential**2).sum(), rel=1e-9)
    flow = (eigenvalues * coefficients) ** 2
    assert flow.sum() == pytest.approx((charges**2).sum(), rel=1e-9)
    assert molecule.calc.spectrum(modes=3).eigenvalues == pytest.approx(eigenvalues[:3])


def test_distant_molecules_have_one_zero_eigenvalue_each(model, molecule):
    far = molecule.copy()
    far.positions += 50.0
    pair = molecule + far
    pair.calc = PhiCalculator(model)
    pair.get_potential_energy()
    assert (pair.calc.spectrum().eigenvalues < 1e-10).sum() == 2


# --- files --------------------------------------------------------------------------------------


def test_saved_models_serve_from_their_files(tmp_path, bulk):
    module = small_potential("float32")
    path = save_model(module, tmp_path / "model.pt", small_metadata())
    assert phicalc.load_model(path).metadata.dtype == "float32"
    expected = module(graph_dict(collate([to_graph(bulk, 4.0)])))
    found = PhiCalculator(path).get_forces(bulk)
    assert np.array_equal(found, expected[fields.FORCES].numpy())
