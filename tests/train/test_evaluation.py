import json

import ase.io
import numpy as np
import pytest
import torch

from phicalc import fields
from phicalc.artifact import save_model
from phicalc.errors import DataError, ModelFileError, UnsupportedError
from phicalc.export import describe
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.train.config import parse_config
from phicalc.train.evaluation import Evaluable, evaluate_file, evaluate_structures
from phicalc.train.trainer import train


@pytest.fixture(scope="module")
def best(clusters, tmp_path_factory):
    """A checkpoint of a very short run."""
    from rich.console import Console

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


def test_any_function_can_be_evaluated(clusters):
    def nothing(graph):
        return {fields.FORCES: torch.zeros_like(graph[fields.POSITIONS])}

    model = Evaluable(nothing, 4.0, [29, 79], torch.device("cpu"), "nothing")
    found = evaluate_file(model, clusters / "valid.xyz")
    forces = [atoms.get_forces() for atoms in ase.io.read(clusters / "valid.xyz", ":")]
    expected = np.sqrt((np.concatenate(forces) ** 2).mean())
    assert found.errors["forces"].rmse == pytest.approx(expected)
    assert set(found.errors) == {"forces"}


def test_a_list_of_structures_has_the_errors_of_its_file(best, clusters):
    frames = ase.io.read(clusters / "valid.xyz", ":")
    assert (
        evaluate_structures(best, frames).errors
        == evaluate_file(best, clusters / "valid.xyz").errors
    )
    with pytest.raises(DataError, match=r"^expected energy"):
        evaluate_structures(best, [*frames, ase.Atoms("Cu")], properties=["energy"])


def test_a_label_that_is_asked_for_must_be_there(best, clusters):
    with pytest.raises(DataError, match=r"(?s)valid\.xyz: .*no stress"):
        evaluate_file(best, clusters / "valid.xyz", properties=["stress"])


def test_structures_without_labels_are_refused(best, tmp_path):
    atoms = ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    ase.io.write(tmp_path / "bare.xyz", [atoms], format="extxyz")
    with pytest.raises(DataError, match="no label is present in every frame"):
        evaluate_file(best, tmp_path / "bare.xyz")


def test_an_unknown_element_is_named_with_its_frame(best, argons):
    with pytest.raises(UnsupportedError, match=r"frame 0: .*Cu, Au.*got Ar"):
        evaluate_file(best, argons)


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
