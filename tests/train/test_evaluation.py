import io
import itertools
import json
import re

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console

from phicalc import fields
from phicalc.data.boxes import salt_water
from phicalc.errors import DataError, ModelFileError, StructureError, UnsupportedError
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.serving.eager import EagerModel
from phicalc.serving.export import describe
from phicalc.serving.model_file import save_model
from phicalc.train.config import parse_config
from phicalc.train.dataset import read_labelled
from phicalc.train.evaluation import (
    evaluate_file,
    evaluate_structures,
    open_model,
)
from phicalc.train.report import error_table
from phicalc.train.trainer import train
from tests.reference_models import small_metadata, small_potential


@pytest.fixture(scope="module")
def best(clusters, tmp_path_factory):
    """A checkpoint of a very short run."""
    backbone = {"kind": "painn", "features": 8, "layers": 1}
    content = {
        "output": str(tmp_path_factory.mktemp("best")),
        "data": {"train": str(clusters / "train.xyz"), "valid": str(clusters / "valid.xyz")},
        "model": {"cutoff": 4.0, "backbone": backbone},
        "epochs": 1,
        "tensorboard": False,
    }
    return train(parse_config(content), console=Console(quiet=True)).best


def recorded(best):
    return torch.load(best, weights_only=True)["extra"]["provenance"]["valid_errors"]


def test_a_checkpoint_has_the_errors_that_training_saw(best, clusters, tmp_path):
    seen: list[int] = []
    found = evaluate_file(
        best, clusters / "valid.xyz", tmp_path / "report", batch_size=2, advance=seen.append
    )
    assert found.errors["forces"].rmse == pytest.approx(recorded(best)["forces"]["rmse"], rel=1e-5)
    assert seen == [2, 1]
    content = json.loads((tmp_path / "report" / "errors.json").read_text(encoding="utf-8"))
    assert content["structures"] == 3
    assert content["data"] == "valid.xyz"
    assert set(content["force_errors_by_element"]) == {"Cu", "Au"}
    assert (tmp_path / "report" / "parity.png").stat().st_size > 10_000


def test_an_exported_model_has_the_errors_of_its_checkpoint(best, clusters, tmp_path):
    potential = load_checkpoint(best).potential
    path = save_model(Differentiated(potential), tmp_path / "model.pt", describe(potential))
    found = evaluate_file(path, clusters / "valid.xyz")
    assert found.errors["forces"].rmse == pytest.approx(recorded(best)["forces"]["rmse"], rel=1e-5)


def test_large_structures_are_evaluated_alone_where_coulomb_is_summed(tmp_path, monkeypatch):
    from phicalc.model.derivatives import Differentiated

    path = tmp_path / "best.pt"
    save_checkpoint(path, small_potential("float64", heads=[{"kind": "qeq"}]).potential)
    frames = [salt_water(1, 1), salt_water(24, 1, seed=1), salt_water(24, 1, seed=2)]
    for atoms in frames:  # 5, 68 and 68 atoms
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    sizes: list[int] = []
    call = Differentiated.forward

    def counted(self, graph):
        sizes.append(len(graph[fields.TOTAL_CHARGE]))
        return call(self, graph)

    monkeypatch.setattr(Differentiated, "forward", counted)
    model = open_model(path)
    found = evaluate_structures(model, frames)
    able = model.metadata.capabilities.model_copy(update={"alone_above": None})
    model.metadata = model.metadata.model_copy(update={"capabilities": able})
    jointly = evaluate_structures(model, frames)
    assert sizes == [1, 1, 1, 3]
    for name, error in found.errors.items():
        assert error.rmse == pytest.approx(jointly.errors[name].rmse, rel=1e-6)


def no_interaction(graph):
    """The energies, and forces, of atoms that do not feel each other."""
    forces = torch.zeros_like(graph[fields.POSITIONS])
    energies = forces[:, 0].clone()
    total = torch.zeros_like(graph[fields.TOTAL_CHARGE])
    return {fields.ENERGY: total, fields.ENERGIES: energies, fields.FORCES: forces}


def test_any_function_can_be_evaluated(clusters):
    model = EagerModel(no_interaction, small_metadata(elements=[29, 79]), torch.device("cpu"))
    found = evaluate_file(model, clusters / "valid.xyz")
    forces = [atoms.get_forces() for atoms in ase.io.read(clusters / "valid.xyz", ":")]
    expected = np.sqrt((np.concatenate(forces) ** 2).mean())
    assert found.errors["forces"].rmse == pytest.approx(expected)
    assert set(found.errors) == {"energy", "energy_per_atom", "forces"}


def test_nan_is_no_error_of_a_table(clusters):
    """The frame is named by its batch; a label that is NaN never gets so far."""

    def breaking(graph):
        output = no_interaction(graph)
        if next(batches) == 1:
            output[fields.FORCES][3, 2] = float("nan")
        return output

    batches = itertools.count()
    model = EagerModel(breaking, small_metadata(elements=[29, 79]), torch.device("cpu"))
    frames = ase.io.read(clusters / "valid.xyz", ":")
    with pytest.raises(StructureError, match=r"^frame 1: .* got NaN or infinity in forces"):
        evaluate_structures(model, frames, batch_size=1)


def test_a_list_of_structures_has_the_errors_of_its_file(best, clusters):
    frames = ase.io.read(clusters / "valid.xyz", ":")
    assert (
        evaluate_structures(best, frames).errors
        == evaluate_file(best, clusters / "valid.xyz").errors
    )
    with pytest.raises(DataError, match=r"^expected energy"):
        evaluate_structures(best, [ase.Atoms("Cu")], properties=["energy"])


def test_errors_are_over_the_structures_that_have_a_label(best, clusters, tmp_path):
    frames = ase.io.read(clusters / "valid.xyz", ":")
    del frames[1].calc.results["forces"]
    ase.io.write(tmp_path / "some.xyz", [*frames, ase.Atoms("Cu")], format="extxyz")
    found = evaluate_file(best, tmp_path / "some.xyz", tmp_path)
    energy = evaluate_file(best, clusters / "valid.xyz").errors["energy"]
    forces = evaluate_file(best, clusters / "valid.xyz", skip=[1])
    assert found.structures == 4 and found.labelled == {"energy": 3, "forces": 2}
    for mine, expected in (
        (found.errors["energy"], energy),
        (found.errors["forces"], forces.errors["forces"]),
    ):
        assert (mine.mae, mine.rmse) == pytest.approx((expected.mae, expected.rmse))
        assert mine.count == expected.count
    for symbol, error in found.force_errors.items():
        assert error.count == forces.force_errors[symbol].count
    assert {number for number, _ in found.worst} == {0, 2}
    content = json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))
    assert content["labelled_structures"] == {"energy": 3, "forces": 2}
    table = Console(record=True, width=100, file=io.StringIO())
    table.print(error_table(found))
    assert re.search(r"forces .*meV/Å .*2 of 4", table.export_text())


def test_what_a_model_does_not_predict_is_not_compared(clusters):
    """Unless it is asked for."""
    model = EagerModel(no_interaction, small_metadata(elements=[29, 79]), torch.device("cpu"))
    frames = ase.io.read(clusters / "valid.xyz", ":")
    for atoms in frames:
        charges = np.zeros(len(atoms))
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results, charges=charges)
    assert set(evaluate_structures(model, frames).labelled) == {"energy", "forces"}
    with pytest.raises(UnsupportedError, match="this model does not predict charges"):
        evaluate_structures(model, frames, properties=["charges", "energy"])


def test_a_batch_without_a_label_that_is_not_predicted(clusters, tmp_path):
    """The batch before, which has no such label, makes none of it either."""
    model = EagerModel(no_interaction, small_metadata(elements=[29, 79]), torch.device("cpu"))
    frames = ase.io.read(clusters / "valid.xyz", ":")
    charges = np.zeros(len(frames[-1]))
    results = frames[-1].calc.results
    frames[-1].calc = SinglePointCalculator(frames[-1], **results, charges=charges)
    ase.io.write(tmp_path / "last.xyz", frames)
    found = evaluate_file(model, tmp_path / "last.xyz", tmp_path, batch_size=1)
    assert set(found.labelled) == set(found.values) == {"energy", "forces"}


def test_a_label_that_is_asked_for_must_be_there(best, clusters):
    with pytest.raises(DataError, match=r"(?s)valid\.xyz: .*no stress"):
        evaluate_file(best, clusters / "valid.xyz", properties=["stress"])


def test_structures_without_labels_are_refused(best, tmp_path):
    atoms = ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    ase.io.write(tmp_path / "bare.xyz", [atoms], format="extxyz")
    with pytest.raises(DataError, match="no label is present in any frame"):
        evaluate_file(best, tmp_path / "bare.xyz")


def test_an_unknown_element_is_named_with_its_frame(best, argons):
    with pytest.raises(UnsupportedError, match=r"frame 0: .*Cu, Au.*got Ar"):
        evaluate_file(best, argons)


@pytest.fixture
def neutral(tmp_path):
    """A checkpoint with Coulomb sums that is not told the total charge, and its model file."""
    checkpoint, model = tmp_path / "best.pt", tmp_path / "model.pt"
    network = small_potential(heads=[{"kind": "qeq"}], total_charge=False)
    save_checkpoint(checkpoint, network.potential)
    limits = {"supports_total_charge": False, "supports_partial_pbc": False}
    return checkpoint, save_model(network, model, small_metadata(heads=["qeq"], **limits))


def labelled(atoms):
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    return atoms


def test_a_model_file_is_not_evaluated_on_what_it_refuses(neutral):
    checkpoint, model = neutral
    water, ion, slab = (molecule("H2O", vacuum=2.0) for _ in range(3))
    ion.info["charge"] = 1.0
    slab.pbc = (True, True, False)
    frames = [labelled(atoms) for atoms in (water, ion, slab)]
    with pytest.raises(UnsupportedError, match=r"^frame 1: expected total charge 0 .* got 1;"):
        evaluate_structures(model, frames)
    for source in neutral:
        with pytest.raises(UnsupportedError, match=r"^frame 1: .* three periodic directions"):
            evaluate_structures(source, [water, slab])
    # trained on ions without being told their charge, a network can be compared on them too
    assert evaluate_structures(checkpoint, frames[:2]).structures == 2


def test_a_file_that_is_no_model_is_refused(clusters):
    with pytest.raises(ModelFileError, match="expected a phicalc model"):
        evaluate_file(clusters / "train.xyz", clusters / "valid.xyz")


def test_frames_can_be_left_out(best, clusters, tmp_path):
    frames = ase.io.read(clusters / "valid.xyz", ":")
    ase.io.write(tmp_path / "two.xyz", frames[:1] + frames[2:])
    found = evaluate_file(best, clusters / "valid.xyz", tmp_path, skip=[1])
    expected = evaluate_file(best, tmp_path / "two.xyz")
    assert found.errors == expected.errors and found.structures == 2
    assert json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))["skipped"] == [1]
    with pytest.raises(DataError, match=r"expected frames 0 to 2 to skip, got \[7\]"):
        evaluate_file(best, clusters / "valid.xyz", skip=[7])


def test_bad_frames_are_named_with_their_file(best, clusters, tmp_path):
    """As predict and the calculator do: atoms on one spot, flat cells, no elements."""
    frames = ase.io.read(clusters / "valid.xyz", ":")
    frames[1].positions[1] = frames[1].positions[0] + [0.0, 0.0, 1e-5]
    path = tmp_path / "bad.traj"
    for atoms in frames:
        forces = np.zeros((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    ase.io.write(path, frames)
    with pytest.raises(
        DataError, match=r"(?s)bad\.traj: .*got 1e-05 Å between .* in frame 1; remove"
    ):
        evaluate_file(best, path)
    with pytest.raises(DataError, match=r"(?s)bad\.traj: .*1e-05 Å between .* in frame 1; remove"):
        read_labelled(path, ["energy"])
    assert evaluate_file(best, path, skip=[1]).structures == 2
    ase.io.write(path, ase.Atoms("Ar", calculator=SinglePointCalculator(ase.Atoms("Ar"), energy=0)))
    with pytest.raises(UnsupportedError, match=r"bad\.traj: frame 0: .*got Ar"):
        evaluate_file(best, path)


def test_labels_of_another_shape_are_not_compared(best, clusters):
    frames = ase.io.read(clusters / "valid.xyz", ":")
    for atoms in frames:
        atoms.info |= {"dipole": 1.85, "stress": 0.0}
    found = evaluate_structures(best, frames)
    assert {"energy", "forces"} <= set(found.errors) and "dipole" not in found.errors
