"""Many structures at once give what the calculator gives for each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from typer.testing import CliRunner

import phicalc
from phicalc import PhiCalculator
from phicalc.cli import app
from phicalc.data.boxes import salt_water, water_box
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import DataError, OutputError, StructureError, UnsupportedError
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes, save_model
from phicalc.serving.prediction import predict, predict_file
from tests.reference_models import small_metadata, small_potential

TOLERANCE = {"float32": 1e-6, "float64": 1e-10}


@pytest.fixture(params=["float32", "float64"])
def model(request, tmp_path):
    """A small network with random weights, and its tolerance."""
    path = tmp_path / "model.pt"
    dtype = request.param
    save_model(small_potential(dtype), path, small_metadata(dtype, supports_total_charge=False))
    return path, TOLERANCE[dtype]


@pytest.fixture
def frames() -> list[Atoms]:
    """A liquid, molecules and a slab of several sizes, none labelled."""
    slab = salt_water(3, 1, seed=2)
    slab.pbc = (True, True, False)
    ethanol = molecule("CH3CH2OH", vacuum=3.0)
    mixed = [salt_water(4, 1, seed=1), molecule("H2O"), ethanol, slab, water_box(2)]
    for number, atoms in enumerate(mixed):
        atoms.rattle(0.03, seed=number)
    return mixed


def results_one_by_one(path, frames):
    calculator = PhiCalculator(path)
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = calculator
        copy.get_potential_energy()
        yield dict(calculator.results)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_gives_the_calculators_numbers(model, frames, batch_size):
    path, tolerance = model
    seen: list[int] = []
    found = phicalc.predict(path, frames, batch_size=batch_size, advance=seen.append)
    assert sum(seen) == len(frames) and max(seen) == min(batch_size, len(frames))
    for atoms, prediction, expected in zip(
        frames, found, results_one_by_one(path, frames), strict=True
    ):
        results = prediction.attached_to(atoms).calc.results
        assert set(results) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(results[name], value, atol=tolerance, err_msg=name)
        assert atoms.calc is None


@pytest.mark.parametrize("head", ["qeq", "phi-coulomb", "local"])
def test_large_structures_are_predicted_alone_where_coulomb_is_summed(head, monkeypatch):
    network = small_potential("float64", heads=[{"kind": head}])
    metadata = small_metadata("float64", heads=[head], supports_total_charge=False)
    model = load_model(model_bytes(network, metadata))
    large = [salt_water(24, 1, seed=seed) for seed in (1, 2)]  # 68 atoms
    frames = [molecule("H2O"), molecule("NaCl"), *large, water_box(2)]
    sizes: list[int] = []
    call = LoadedModel.__call__

    def counted(self, graph):
        sizes.append(len(graph["total_charge"]))
        return call(self, graph)

    monkeypatch.setattr(LoadedModel, "__call__", counted)
    found = predict(model, frames)
    assert sizes == [2, 1, 1, 1]
    jointly = network(graph_dict(collate([to_graph(atoms, 4.0) for atoms in frames])))
    first = 0
    for number, (atoms, prediction) in enumerate(zip(frames, found, strict=True)):
        rows = slice(first, first := first + len(atoms))
        energy = jointly["energy"][number].item()
        assert prediction.energy == pytest.approx(energy, abs=1e-7 * len(atoms))
        np.testing.assert_allclose(prediction.forces, jointly["forces"][rows], atol=1e-5)
        np.testing.assert_allclose(prediction.charges, jointly["charges"][rows], atol=1e-5)


def test_the_file_is_read_back_as_results(model, frames, tmp_path):
    path, _ = model
    frames[0].info["energy"] = -1.0  # a label, which must not pass for a prediction
    frames[0].arrays["forces"] = np.zeros((len(frames[0]), 3))
    frames[1].info["name"] = "water"
    source, output = tmp_path / "in.xyz", tmp_path / "new" / "out.extxyz"
    write(source, frames)
    done: list[tuple[int, int]] = []
    predict_file(path, source, output, batch_size=3, progress=lambda *n: done.append(n))
    assert done == [(3, 5), (5, 5)]
    found = read(output, ":")
    written = read(source, ":")
    for atoms, expected in zip(found, results_one_by_one(path, written), strict=True):
        assert set(atoms.calc.results) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(atoms.calc.results[name], value, atol=2e-6, err_msg=name)
    assert found[1].info["name"] == "water"
    assert [p.name for p in output.parent.iterdir()] == ["out.extxyz"]


def test_total_charges_are_each_structures_own(tmp_path):
    path = tmp_path / "ions.pt"
    changes = {"total_charge": True}
    save_model(
        small_potential("float64", **changes), path, small_metadata(supports_total_charge=True)
    )
    charged = [molecule("H2O"), molecule("OH"), molecule("H2O")]
    charged[1].info["charge"] = -1.0
    charged[2].info["charge"] = None  # the calculator takes its own there, too
    found = predict(path, charged, charge=1.0)
    sums = [prediction.charges.sum() for prediction in found]
    np.testing.assert_allclose(sums, [1.0, -1.0, 1.0], atol=1e-6)
    assert found[0].energy == pytest.approx(found[2].energy, abs=1e-10)


def test_every_structure_is_in_a_field_of_its_own(tmp_path):
    """As for the calculator: `info["external_field"]`, else `field=`; refused where not felt."""
    potential = small_potential("float64", heads=[{"kind": "phi-coulomb", "base": "learned"}])
    model = load_model(model_bytes(potential, describe(potential.potential)))
    frames = [molecule("H2O"), molecule("CH3OH"), molecule("H2O"), molecule("NaCl")]
    frames[1].info["external_field"] = [0.1, 0.0, 0.2]
    frames[2].info["external_field"] = np.array([0.0, 0.3, 0.0])
    found = predict(model, frames)
    for atoms, prediction in zip(frames, found, strict=True):
        calculator = PhiCalculator(model)
        assert prediction.energy == pytest.approx(calculator.get_potential_energy(atoms), abs=1e-10)
        np.testing.assert_allclose(prediction.forces, calculator.get_forces(atoms), atol=1e-10)
    everywhere = predict(model, frames[:1], field=(0.0, 0.3, 0.0))[0]
    assert everywhere.energy == pytest.approx(found[2].energy, abs=1e-10)
    assert abs(everywhere.energy - found[0].energy) > 1e-3
    bulk = salt_water(3, 1, seed=0)  # no polarisation: its base charges come from the features
    assert len(predict(model, [*frames, bulk])) == 5
    bulk.info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(UnsupportedError, match="frame 4: no electric field for this model"):
        predict(model, [*frames, bulk])


def test_the_wrong_frame_is_named_and_nothing_is_computed(model, frames, tmp_path):
    path, _ = model
    loaded = load_model(path)
    copper = Atoms("HCu", [[0, 0, 0], [0, 0, 1.5]])
    together = Atoms("H2", [[0, 0, 0], [0, 0, 1e-4]])
    lost = Atoms("H", [[np.nan, 0, 0]])
    ion = Atoms("H", info={"charge": 1.0})
    for wrong, kind, message in (
        (copper, UnsupportedError, r"frame 2: .*got Cu"),
        (together, StructureError, r"frame 2: .*apart"),
        (lost, StructureError, r"frame 2: .*finite positions"),
        (ion, UnsupportedError, r"frame 2: expected total charge 0"),
    ):
        seen: list[int] = []
        with pytest.raises(kind, match=message):
            predict(loaded, [*frames[:2], wrong], advance=seen.append)
        assert seen == []
    source = tmp_path / "in.xyz"
    write(source, [*frames[:2], copper])
    with pytest.raises(UnsupportedError, match=r"in\.xyz: frame 2: .*Cu"):
        predict_file(path, source, tmp_path / "out.xyz")
    assert not (tmp_path / "out.xyz").exists()
    assert predict(loaded, []) == []


def test_one_structure_is_no_list_of_them(model):
    with pytest.raises(StructureError, match=r"got one Atoms; pass \[atoms\]"):
        predict(model[0], molecule("H2O"))


def test_what_may_not_be_written(model, frames, tmp_path):
    path, _ = model
    source = tmp_path / "in.xyz"
    write(source, frames)
    with pytest.raises(OutputError, match="exists already"):
        predict_file(path, source, source)
    with pytest.raises(OutputError, match=r"expected an output \.xyz or \.extxyz"):
        predict_file(path, source, tmp_path / "out.cif")
    with pytest.raises(OutputError, match="writable folder"):
        predict_file(path, source, source / "out.xyz")
    with pytest.raises(DataError, match="does not exist"):
        predict_file(path, tmp_path / "none.xyz", tmp_path / "out.xyz")
    before = source.read_bytes()
    predict_file(path, source, source, overwrite=True)
    assert source.read_bytes() != before and len(read(source, ":")) == len(frames)


def test_command(model, frames, tmp_path, monkeypatch):
    path, _ = model
    monkeypatch.chdir(tmp_path)
    write("in.xyz", frames)
    result = CliRunner().invoke(app, ["predict", str(path), "in.xyz"])
    assert result.exit_code == 0, result.output
    assert "5 structures" in result.stdout and "predicted.xyz" in result.stdout
    assert len(read("predicted.xyz", ":")) == 5
    again = CliRunner().invoke(app, ["predict", str(path), "in.xyz"])
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_threads_are_those_asked_for_while_it_computes_and_no_longer():
    model = Path(__file__).resolve().parents[2] / "models" / "nacl-water.pt"
    before, seen = torch.get_num_threads(), []
    frames = [salt_water(4, 1, seed=seed) for seed in range(2)]
    predict(
        model,
        frames,
        device="cpu",
        threads=2,
        advance=lambda _: seen.append(torch.get_num_threads()),
    )
    assert seen == [2] and torch.get_num_threads() == before == 1
