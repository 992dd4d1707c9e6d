import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from rich.console import Console

from phicalc import fields
from phicalc.data.read import read_structures
from phicalc.train.dataset import graphs_of
from phicalc.train.metrics import batches, compare
from phicalc.train.report import (
    describe_errors,
    error_table,
    write_errors,
    write_parity_plot,
    write_training_curve,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def frames(clusters):
    return read_structures(clusters / "train.xyz")


def evaluate(predict, graphs, batch_size=8, **options):
    return compare(((predict(g), g) for g, _ in batches(graphs, batch_size, "cpu")), **options)


def wrong_by(graph):
    """A model whose every error is known: labels plus an error fixed by position and element."""
    atoms = torch.bincount(graph[fields.BATCH])
    return {
        fields.ENERGY: graph[fields.ENERGY] + 0.01 * atoms**2,
        fields.FORCES: graph[fields.FORCES]
        + 0.001 * graph[fields.SPECIES][:, None] * torch.sin(graph[fields.POSITIONS]),
    }


def test_errors_are_those_of_numpy(frames):
    found = evaluate(wrong_by, graphs_of(frames, 4.0, ["energy", "forces"]), batch_size=2)
    sizes = np.array([len(atoms) for atoms in frames])
    per_atom, total = 0.01 * sizes, 0.01 * sizes**2
    assert found.structures == len(frames)
    assert found.atoms == sizes.sum()
    assert found.errors["energy_per_atom"].mae == pytest.approx(per_atom.mean())
    assert found.errors["energy_per_atom"].rmse == pytest.approx(np.sqrt((per_atom**2).mean()))
    assert found.errors["energy"].mae == pytest.approx(total.mean())
    assert found.errors["energy"].rmse == pytest.approx(np.sqrt((total**2).mean()))
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    positions = np.concatenate([atoms.positions for atoms in frames])
    wrong = 0.001 * numbers[:, None] * np.sin(positions)
    assert found.errors["forces"].mae == pytest.approx(np.abs(wrong).mean())
    assert set(found.force_errors) == {chemical_symbols[z] for z in set(numbers)}
    for symbol, error in found.force_errors.items():
        mine = wrong[numbers == chemical_symbols.index(symbol)]
        assert error.count == mine.size
        assert error.mae == pytest.approx(np.abs(mine).mean())
        assert error.rmse == pytest.approx(np.sqrt((mine**2).mean()))


def test_errors_do_not_depend_on_the_batch_size(frames):
    graphs = graphs_of(frames, 4.0, ["energy", "forces"])
    one, many = (evaluate(wrong_by, graphs, batch_size=size) for size in (1, 100))
    for name, error in one.errors.items():
        assert asdict(many.errors[name]) == pytest.approx(asdict(error))


def test_only_what_is_predicted_and_labelled_is_compared(frames):
    def energy_only(graph):
        return {fields.ENERGY: graph[fields.ENERGY], fields.CHARGES: graph[fields.POSITIONS][:, 0]}

    found = evaluate(energy_only, graphs_of(frames, 4.0, ["energy", "forces"]))
    assert set(found.errors) == {"energy", "energy_per_atom"}
    assert found.force_errors == {}


def test_charges_dipole_and_stress_are_compared_by_component(frames):
    graphs = graphs_of(frames[:2], 4.0, [])
    for graph in graphs:
        graph.charges = torch.zeros(graph.num_nodes, dtype=torch.float64)
        graph.dipole = torch.zeros(1, 3, dtype=torch.float64)
        graph.stress = torch.zeros(1, 3, 3, dtype=torch.float64)

    def model(graph):
        return {
            fields.CHARGES: torch.full_like(graph[fields.CHARGES], 0.1),
            fields.DIPOLE: torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -3.0]], dtype=torch.float64),
            fields.STRESS: torch.full_like(graph[fields.STRESS], -0.02),
        }

    errors = evaluate(model, graphs).errors
    assert errors["charges"].rmse == pytest.approx(0.1)
    assert errors["dipole"].mae == pytest.approx(1.0)
    assert errors["dipole"].rmse == pytest.approx(3**0.5)
    assert (errors["stress"].count, errors["stress"].unit) == (18, "eV/Å³")


def test_a_structure_with_a_broken_label_stands_out(frames):
    graphs = graphs_of(frames, 4.0, ["energy", "forces"])
    broken = graphs[5][fields.FORCES]
    broken[0, 0] += 30.0

    def model(graph):
        forces = graph[fields.FORCES].clone()
        forces[graph[fields.FORCES] > 20] -= 30.0
        return {fields.FORCES: forces}

    worst = evaluate(model, graphs, batch_size=3).worst
    assert worst[0] == (5, pytest.approx(30 / len(broken.reshape(-1)) ** 0.5))
    assert worst[1][1] == 0.0
    assert len(worst) == 5


def test_the_table_has_a_line_per_property_and_element(frames):
    found = evaluate(wrong_by, graphs_of(frames, 4.0, ["energy", "forces"]))
    console = Console(record=True, width=100, quiet=False, file=io.StringIO())
    console.print(error_table(found))
    text = console.export_text()
    for name in ("energy per atom", "energy", "forces", "forces on Cu", "forces on Au"):
        assert f" {name} " in text
    assert f"{1e3 * found.errors['forces'].rmse:.4g}" in text
    assert describe_errors(found.errors).startswith("energy RMSE ")


def test_values_are_kept_for_parity(frames):
    graphs = graphs_of(frames, 4.0, ["energy", "forces"])
    values = evaluate(wrong_by, graphs, batch_size=3, keep_values=True).values
    forces = np.concatenate([atoms.get_forces().ravel() for atoms in frames])
    np.testing.assert_array_equal(values["forces"][0], forces)
    assert values["energy"][0][0] == frames[0].get_potential_energy() / len(frames[0])


def test_files_are_written(frames, tmp_path):
    graphs = graphs_of(frames, 4.0, ["energy", "forces"])
    found = evaluate(wrong_by, graphs, keep_values=True)
    write_errors(found, tmp_path / "errors.json", {"model": "wrong"})
    write_parity_plot(found, tmp_path / "parity.png")
    content = json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))
    assert content["model"] == "wrong"
    assert content["errors"]["forces"] == asdict(found.errors["forces"])
    assert content["force_errors_by_element"]["Au"]["unit"] == "eV/Å"
    assert (tmp_path / "parity.png").read_bytes().startswith(PNG)


def test_a_training_curve_is_drawn_from_csv_rows(tmp_path):
    row = {"step": "1", "train_loss": "0.5", "valid_loss": "0.4", "forces_rmse [meV/Å]": "30"}
    rows = [row, {**row, "step": 2, "train_loss": 0.25}]
    write_training_curve(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_energies_are_drawn_without_what_the_composition_explains(frames):
    """Large energies of the elements, added to the labels, come off again for the picture."""
    shifted = []
    for atoms in frames:
        copy = atoms.copy()
        offset = sum({29: -1000.0, 79: -2500.0}[z] for z in atoms.numbers)
        copy.calc = SinglePointCalculator(
            copy, energy=atoms.get_potential_energy() + offset, forces=atoms.get_forces()
        )
        shifted.append(copy)
    rests = []
    for structures in (frames, shifted):
        graphs = graphs_of(structures, 4.0, ["energy", "forces"])
        found = evaluate(wrong_by, graphs, keep_values=True)
        rests.append(found.values["energy"][0] - found.composition_energies)
    np.testing.assert_allclose(rests[0], rests[1], atol=1e-8)
    assert np.ptp(found.values["energy"][0]) > 100 * np.abs(rests[1]).max()
