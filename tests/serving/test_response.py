"""Electric fields, polarisation, Born charges and the dielectric constant, as they are served."""

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.io import read, write
from numpy.testing import assert_allclose

from phicalc import PhiCalculator, fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import StructureError, UnsupportedError
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from phicalc.units import COULOMB_CONSTANT
from tests.heads import HEADS
from tests.reference_models import lennard_jones_model, phi_model, small_potential

FIELD = np.array([0.1, -0.2, 0.05])  # V/Å
STEP = 1e-4
CRYSTAL = ["phi-coulomb", "phi-coulomb constant"]
MOLECULE = ["phi-coulomb", "phi-coulomb constant", "phi-coulomb learned", "qeq", "local"]
CASES = [("bulk", heads) for heads in CRYSTAL] + [("molecule", heads) for heads in MOLECULE]


@cache
def served(heads: str, dense: bool = True, seed: int = 0) -> LoadedModel:
    model = small_potential("float64", seed, heads=HEADS[heads])
    for head in model.potential.heads:
        if not dense:
            head.dense_limit = 0
    return load_model(model_bytes(model, describe(model.potential)))


def moment(atoms: Atoms) -> np.ndarray:
    """The polarisation times the volume, or the dipole of a neutral molecule | e·Å."""
    if atoms.pbc.all():
        return atoms.calc.get_property("polarization", atoms) * atoms.get_volume()
    return atoms.get_dipole_moment()


def slope(atoms: Atoms, change, measure) -> np.ndarray:
    """Central difference of a measure of the structure under ``change(atoms, ±STEP)``."""
    values = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        change(moved, sign * STEP)
        values.append(np.array(measure(moved)))
    return (values[0] - values[1]) / (2 * STEP)


def displace(atom: int, axis: int):
    def change(atoms: Atoms, step: float) -> None:
        atoms.positions[atom, axis] += step

    return change


def add_field(axis: int):
    def change(atoms: Atoms, step: float) -> None:
        atoms.info["external_field"] = FIELD + step * np.eye(3)[axis]

    return change


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("kind", "heads"), CASES)
def test_forces_and_stress_in_a_field(kind, heads, dense, request):
    """They are the slopes of the energy at a fixed field; charges answer to it."""
    atoms = request.getfixturevalue(kind)
    atoms.calc = PhiCalculator(served(heads, dense))
    without = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()
    atoms.info["external_field"] = FIELD
    forces = atoms.get_forces()
    assert abs(atoms.get_potential_energy() - without[0]) > 1e-4
    assert np.abs(forces - without[1]).max() > 1e-3
    if heads != "local":
        assert np.abs(atoms.get_charges() - without[2]).max() > 1e-3
    assert_allclose(atoms.get_charges().sum(), 0.0, atol=1e-9)
    for axis in range(3):
        found = -slope(atoms, displace(1, axis), Atoms.get_potential_energy)
        assert found == pytest.approx(forces[1, axis], abs=1e-6)
    if kind == "bulk":
        stress = atoms.get_stress()
        assert_allclose(calculate_numerical_stress(atoms, eps=1e-4), stress, atol=1e-7)


@pytest.mark.parametrize("heads", MOLECULE)
def test_the_energy_of_a_molecule_falls_by_field_times_dipole(heads, molecule):
    molecule.calc = PhiCalculator(served(heads), field=FIELD)
    for axis in range(3):
        found = -slope(molecule, add_field(axis), Atoms.get_potential_energy)
        assert found == pytest.approx(molecule.get_dipole_moment()[axis], abs=1e-6)


@pytest.mark.parametrize("field", [np.zeros(3), FIELD])
@pytest.mark.parametrize(("kind", "heads"), CASES)
def test_born_charges(kind, heads, field, request):
    """Slopes of the polarisation along displacements, and of the forces along the field."""
    atoms = request.getfixturevalue(kind)
    atoms.info["external_field"] = field
    atoms.calc = PhiCalculator(served(heads))
    born = atoms.calc.get_property("born_effective_charges", atoms)
    assert born.shape == (len(atoms), 3, 3) and np.abs(born).max() > 0.01
    assert_allclose(born.sum(axis=0), 0.0, atol=1e-6)
    for axis in range(3):
        assert_allclose(slope(atoms, displace(1, axis), moment), born[1, :, axis], atol=1e-6)
        if field.any():
            found = slope(atoms, add_field(axis), Atoms.get_forces)
            assert_allclose(found, born[:, axis], atol=1e-6)


@pytest.mark.parametrize("heads", CRYSTAL)
def test_the_polarisation_and_the_dielectric_tensor(heads, bulk):
    """P V = −∂E/∂f, ε = 1 + 4π k_e ∂P/∂f; ε is symmetric and above 1."""
    bulk.calc = PhiCalculator(served(heads), field=FIELD)
    polarization = bulk.calc.get_property("polarization", bulk)
    dielectric = bulk.calc.get_property("dielectric_tensor", bulk)
    assert_allclose(dielectric, dielectric.T, atol=1e-9)
    assert np.linalg.eigvalsh(dielectric).min() > 1.05
    for axis in range(3):
        energy = -slope(bulk, add_field(axis), Atoms.get_potential_energy) / bulk.get_volume()
        assert energy == pytest.approx(polarization[axis], abs=1e-7)
        found = slope(bulk, add_field(axis), moment) / bulk.get_volume()
        expected = np.eye(3)[axis] + 4 * np.pi * COULOMB_CONSTANT * found
        assert_allclose(dielectric[:, axis], expected, atol=1e-6)


def test_another_image_of_an_ion_shifts_the_polarisation_by_its_formal_charge(bulk):
    bulk.calc = PhiCalculator(served("phi-coulomb"))
    before = moment(bulk), bulk.calc.get_property("born_effective_charges", bulk)
    index = list(bulk.symbols).index("Cl")
    bulk.positions[index] += bulk.cell[0]
    assert_allclose(moment(bulk) - before[0], -1.0 * bulk.cell[0], atol=1e-10)
    after = bulk.calc.get_property("born_effective_charges", bulk)
    assert_allclose(after, before[1], atol=1e-10)


def test_a_larger_cell_polarises_alike(bulk):
    cells = [bulk, bulk * (1, 2, 1)]
    calculators = [PhiCalculator(served("phi-coulomb constant"), field=FIELD) for _ in cells]
    names = ("polarization", "dielectric_tensor", "born_effective_charges")
    small, large = (
        [calc.get_property(name, atoms) for name in names]
        for calc, atoms in zip(calculators, cells, strict=True)
    )
    assert_allclose(large[1], small[1], atol=1e-9)
    assert_allclose(large[2], np.tile(small[2], (2, 1, 1)), atol=1e-9)
    energies = [c.get_property("energy", a) for c, a in zip(calculators, cells, strict=True)]
    assert_allclose(large[0], small[0], atol=1e-9)
    assert energies[1] == pytest.approx(2 * energies[0], abs=1e-8)


def test_the_born_charges_of_an_ion_sum_to_its_charge(molecule):
    for heads in MOLECULE:
        calculator = PhiCalculator(served(heads), charge=1)
        born = calculator.get_property("born_effective_charges", molecule)
        assert_allclose(born.sum(axis=0), np.eye(3), atol=1e-9)
        found = calculator.get_property("forces", molecule).sum(axis=0)
        assert_allclose(found, 0.0, atol=1e-9)
        calculator.field = FIELD
        found = calculator.get_property("forces", molecule).sum(axis=0)
        assert_allclose(found, FIELD, atol=1e-9)


def test_a_committee_gives_the_mean(bulk):
    models = [served("phi-coulomb"), served("phi-coulomb", seed=1)]
    for name in ("polarization", "born_effective_charges", "dielectric_tensor"):
        each = [PhiCalculator(model).get_property(name, bulk) for model in models]
        found = PhiCalculator(models).get_property(name, bulk)
        assert np.abs(each[0] - each[1]).max() > 1e-6 or name == "dielectric_tensor"
        assert_allclose(found, np.mean(each, axis=0), atol=1e-12)


# --- when it is computed ------------------------------------------------------------------------


def test_it_is_computed_only_when_asked_for(bulk):
    bulk.calc = PhiCalculator(served("phi-coulomb"))
    bulk.get_forces()
    assert not set(bulk.calc.results) & {"polarization", "born_effective_charges"}
    first = bulk.calc.get_property("born_effective_charges", bulk)
    assert {"polarization", "dielectric_tensor", "forces"} <= set(bulk.calc.results)
    bulk.get_stress()
    assert bulk.calc.timings()["evaluations"] == 1
    bulk.rattle(0.01, seed=4)
    bulk.get_potential_energy()
    assert "born_effective_charges" not in bulk.calc.results
    assert np.abs(bulk.calc.get_property("born_effective_charges", bulk) - first).max() > 1e-5
    assert bulk.calc.timings()["evaluations"] == 2
    moved = bulk.copy()
    moved.rattle(0.01, seed=5)
    bulk.calc.calculate(moved, ["polarization"], [])  # what ASE never does
    expected = PhiCalculator(served("phi-coulomb")).get_property("polarization", moved)
    assert_allclose(bulk.calc.results["polarization"], expected, atol=1e-9)


def test_a_changed_field_is_a_changed_structure(bulk):
    info = {"external_field": [0.0, 0.0, 0.1], "note": "mine"}
    bulk.info = copy.deepcopy(info)
    bulk.calc = PhiCalculator(served("phi-coulomb"), field=(0.3, 0.0, 0.0))
    inside = bulk.get_potential_energy(), bulk.calc.get_property("polarization", bulk)
    assert bulk.info == info
    del bulk.info["external_field"]
    assert bulk.get_potential_energy() != inside[0]  # the calculator's own
    bulk.calc.field = [0.0, 0.0, 0.1]
    assert bulk.get_potential_energy() == pytest.approx(inside[0], abs=1e-10)
    assert_allclose(bulk.calc.get_property("polarization", bulk), inside[1], atol=1e-10)
    assert bulk.calc.timings()["evaluations"] == 3
    bulk.info["external_field"] = np.zeros(3)  # wins, and is no field
    plain = PhiCalculator(served("phi-coulomb")).get_potential_energy(bulk)
    assert bulk.get_potential_energy() == plain


def test_copies_and_pickles_keep_the_field(bulk):
    original = PhiCalculator(served("phi-coulomb"), field=FIELD)
    energy = original.get_potential_energy(bulk)
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other.get_potential_energy(bulk) == energy
        found = other.get_property("polarization", bulk)
        assert_allclose(found, original.get_property("polarization", bulk), atol=1e-10)


def test_results_can_be_written(tmp_path, bulk):
    bulk.calc = PhiCalculator(served("phi-coulomb"))
    born = bulk.calc.get_property("born_effective_charges", bulk)
    write(tmp_path / "frame.traj", bulk)
    again = read(tmp_path / "frame.traj")
    assert again.get_potential_energy() == bulk.get_potential_energy()
    assert_allclose(again.calc.results["born_effective_charges"], born, atol=1e-12)


@pytest.mark.parametrize("name", ["born_effective_charges", "dielectric_tensor", "polarization"])
def test_every_answer_leaves_a_structure_that_ase_can_write(tmp_path, bulk, name):
    """ASE's extxyz has no column of matrices: Born charges are no part of `results`."""
    bulk.calc = PhiCalculator(served("phi-coulomb"))
    found = bulk.calc.get_property(name, bulk)
    write(tmp_path / "frame.extxyz", bulk)
    again = read(tmp_path / "frame.extxyz")
    assert_allclose(again.get_potential_energy(), bulk.get_potential_energy(), atol=1e-8)
    if name != "born_effective_charges":
        assert_allclose(again.calc.results[name], found, atol=1e-7)
    # asked again it is the same array's content, and nobody's to spoil
    found[...] = 0.0
    assert np.abs(bulk.calc.get_property(name, bulk)).max() > 1e-6
    bulk.positions[0] += 0.1
    assert bulk.calc.get_property(name, bulk, allow_calculation=False) is None


# --- what there is no answer to -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "kind", "names", "reason"),
    [
        ("no head", "bulk", "pbd", "got heads: none"),
        ("phi", "molecule", "pbdf", "got heads: phi; .*latent"),
        ("phi + qeq", "molecule", "pbdf", "got heads: phi, qeq"),
        ("phi-coulomb without", "bulk", "pbdf", "Coulomb"),
        ("qeq", "bulk", "pbdf", "screens like a metal"),
        ("local", "bulk", "pbdf", "choice of periodic images"),
        ("phi-coulomb learned", "bulk", "pbdf", "choice of periodic images"),
        ("phi-coulomb", "charged bulk", "pbdf", "formal charges of 0 e .* total charge 1 e"),
        ("phi-coulomb constant", "charged bulk", "p", "depends on the origin"),
        ("phi-coulomb", "molecule", "pd", "ask for the dipole"),
        ("qeq", "molecule", "pd", "ask for the dipole"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(heads, kind, names, reason, request):
    atoms = request.getfixturevalue(kind.removeprefix("charged "))
    if kind.startswith("charged"):
        atoms.info["charge"] = 1
    atoms.calc = PhiCalculator(served(heads))
    known = {"p": "polarization", "b": "born_effective_charges", "d": "dielectric_tensor"}
    forces = atoms.get_forces()
    for letter in names.removesuffix("f"):
        with pytest.raises(PropertyNotImplementedError, match=reason):
            atoms.calc.get_property(known[letter], atoms)
    for letter in set(known) - set(names):
        assert np.isfinite(atoms.calc.get_property(known[letter], atoms)).all()
        assert kind != "molecule" or letter == "b"
    assert np.array_equal(atoms.get_forces(), forces)
    assert atoms.calc.timings()["evaluations"] == 1
    if names.endswith("f"):
        atoms.info["external_field"] = FIELD
        with pytest.raises(UnsupportedError, match=reason):
            atoms.get_forces()
        assert atoms.calc.results == {}


@pytest.mark.parametrize("field", ["x", 1.0, [0.1, 0.2], [0.0, np.nan, 0.0]])
def test_a_field_that_is_no_vector(field, bulk):
    with pytest.raises(StructureError, match=r"expected an electric field as three .* V/Å"):
        PhiCalculator(served("phi-coulomb"), field=field)
    bulk.info["external_field"] = field
    with pytest.raises(StructureError, match="external_field"):
        PhiCalculator(served("phi-coulomb")).get_potential_energy(bulk)


class ForwardAlone(torch.nn.Module):
    """What files were before they answered to fields."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.module(graph)


def test_a_file_from_before_fields(bulk):
    """A module without the method ``response`` keeps working, and says what it cannot do."""
    network = small_potential("float64", heads=HEADS["phi-coulomb"])
    known = describe(network.potential)
    model = load_model(model_bytes(ForwardAlone(network), known))
    calculator = PhiCalculator(model)
    assert np.isfinite(calculator.get_potential_energy(bulk))
    with pytest.raises(PropertyNotImplementedError, match="export its checkpoint again"):
        calculator.get_property("polarization", bulk)
    calculator.field = FIELD
    with pytest.raises(UnsupportedError, match="export its checkpoint again"):
        calculator.get_potential_energy(bulk)


def test_models_that_know_nothing_of_charges(molecule):
    argon = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])
    for model, atoms in ((lennard_jones_model(), argon), (phi_model(), molecule)):
        with pytest.raises(PropertyNotImplementedError, match="takes one head with a Coulomb"):
            PhiCalculator(model).get_property("born_effective_charges", atoms)
        with pytest.raises(UnsupportedError, match="takes one head with a Coulomb"):
            PhiCalculator(model, field=FIELD).get_potential_energy(atoms)


def test_a_response_is_that_of_one_structure(bulk):
    """A batch would mix up the sums over its structures."""
    model = small_potential("float64", heads=HEADS["phi-coulomb"])
    graph = graph_dict(collate([to_graph(atoms, 4.0) for atoms in (bulk, bulk)]))
    with pytest.raises(UnsupportedError, match="expected one structure"):
        model.response(graph)
    single = graph_dict(collate([to_graph(bulk, 4.0)]))
    expected = model.response(single)[fields.MOMENT]
    assert_allclose(model(graph)[fields.MOMENT], expected.expand(2, 3), atol=1e-9)


def test_a_field_for_each_structure_of_a_batch(bulk):
    model = small_potential("float64", heads=HEADS["phi-coulomb"])
    graphs = [graph_dict(collate([to_graph(atoms, 4.0)])) for atoms in (bulk, bulk * (1, 2, 1))]
    joint = graph_dict(collate([to_graph(atoms, 4.0) for atoms in (bulk, bulk * (1, 2, 1))]))
    joint[fields.FIELD] = torch.tensor(np.array([FIELD, -2 * FIELD]))
    together = model(joint)
    for number, graph in enumerate(graphs):
        graph[fields.FIELD] = joint[fields.FIELD][number : number + 1]
        alone = model(graph)
        for name in (fields.ENERGY, fields.STRESS, fields.MOMENT):
            assert_allclose(together[name][number], alone[name][0], atol=1e-9)
        own = joint[fields.BATCH] == number
        assert_allclose(together[fields.FORCES][own], alone[fields.FORCES], atol=1e-9)
