"""Structures that lack a label, among others that have it."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from pydantic import ValidationError

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.errors import DataError
from phicalc.model.derivatives import Differentiated
from phicalc.train.config import DataConfig, LossConfig, TrainConfig
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import Processes
from phicalc.train.initial import new_potential
from phicalc.train.objective import Objective


def labelled(seed: int, with_forces: bool = True) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    forces = {"forces": np.full((3, 3), 0.1 * seed)} if with_forces else {}
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - 0.1 * seed, **forces)
    return atoms


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "train.extxyz", [labelled(1), labelled(2, with_forces=False), labelled(3)])
    write(tmp_path / "valid.extxyz", [labelled(4)])
    return TrainConfig.model_validate(
        {
            "output": tmp_path / "run",
            "data": {
                "train": tmp_path / "train.extxyz",
                "valid": tmp_path / "valid.extxyz",
                "partial": ["forces"],
            },
            "model": {"heads": [], "backbone": {"kind": "painn", "features": 8, "layers": 1}},
            "epochs": 1,
        }
    )


def loss_gradients(config, data, graphs):
    """Gradient of the loss of these structures in one batch, by parameter name."""
    torch.manual_seed(0)
    potential = new_potential(config.model, data)
    objective = Objective(
        Differentiated(potential), LossConfig(), Processes(0, 1, torch.device("cpu"))
    )
    objective.gradients(graphs, list(range(len(graphs))))
    return {name: p.grad for name, p in potential.named_parameters() if p.grad is not None}


def test_an_absent_label_pulls_at_nothing(config):
    """The gradient is that of the label being what the model predicts anyway."""
    data = load_training_data(config)
    assert [bool(graph[fields.FORCES].isnan().all()) for graph in data.train] == [
        False,
        True,
        False,
    ]
    absent = loss_gradients(config, data, data.train)
    torch.manual_seed(0)
    model = Differentiated(new_potential(config.model, data)).eval()
    predicted = model(graph_dict(collate([data.train[1]])))[fields.FORCES].detach()
    met = data.train[1].clone()
    met[fields.FORCES] = predicted
    present = loss_gradients(config, data, [data.train[0], met, data.train[2]])
    for name, gradient in present.items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(absent[name], gradient)


def test_the_scale_of_energies_knows_only_forces_that_are_there(config):
    assert load_training_data(config).energy_scale == pytest.approx(np.sqrt((0.1**2 + 0.3**2) / 2))


def test_without_leave_a_missing_label_is_an_error(config):
    config.data.partial = []
    with pytest.raises(DataError, match=r"no forces in frame.* 1"):
        load_training_data(config)


def test_a_label_that_no_structure_has_is_an_error(config):
    write(config.data.train, [labelled(1, with_forces=False), labelled(2, with_forces=False)])
    with pytest.raises(DataError, match="no forces in any frame"):
        load_training_data(config)


def test_validation_has_all_labels(config):
    write(config.data.valid, [labelled(1), labelled(2, with_forces=False)])
    with pytest.raises(DataError, match=r"(?s)valid.*no forces in frame 1"):
        load_training_data(config)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"valid_fraction": 0.1, "partial": ["forces"]}, "validation file with all labels"),
        ({"valid": "v.xyz", "partial": ["energy"]}, "besides energy"),
        ({"valid": "v.xyz", "partial": ["mass"]}, "'energy', 'forces'"),
    ],
)
def test_partial_is_checked(section, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"train": "t.xyz", **section})
