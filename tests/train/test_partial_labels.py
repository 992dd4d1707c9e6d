"""Structures that lack a label, among others that have it."""

import io

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from pydantic import ValidationError
from rich.console import Console

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.data.splits import split
from phicalc.errors import DataError
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.config import QEqConfig
from phicalc.model.derivatives import Differentiated
from phicalc.serving.export import export
from phicalc.train.config import DataConfig, LossConfig, TrainConfig
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import Processes
from phicalc.train.initial import new_potential
from phicalc.train.objective import Objective
from phicalc.train.trainer import train


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


def test_a_label_that_no_structure_has_is_an_error(config):
    write(config.data.train, [labelled(1, with_forces=False), labelled(2, with_forces=False)])
    with pytest.raises(DataError, match="no forces in any frame"):
        load_training_data(config)


def test_a_split_may_not_leave_training_without_a_label(config):
    frames = [labelled(seed, with_forces=seed == 3) for seed in range(4)]
    write(config.data.train, frames)
    chosen = next(s for s in range(20) if 3 in split(4, [2, 2], s)[0])
    data = {"train": config.data.train, "valid_fraction": 0.5, "seed": chosen}
    whole = config.model_copy(update={"data": DataConfig.model_validate(data)})
    with pytest.raises(DataError, match="no forces among the 2 structures that the split leaves"):
        load_training_data(whole)


def test_labels_of_either_set_are_counted(config, tmp_path):
    """In the log, in the checkpoint, and in what the model file says of itself."""
    write(config.data.valid, [labelled(1), labelled(2, with_forces=False)])
    text, result = logged(config)
    assert "training labels: energy 3 of 3, forces 2 of 3" in text
    assert "validation labels: energy 2 of 2, forces 1 of 2" in text
    data = export(result.best, tmp_path / "model.pt").provenance.data
    assert data["train"].labels == {"energy": 3, "forces": 2}
    assert data["valid"].labels == {"energy": 2, "forces": 1}
    assert data["train"].periodicity == {"0": 3}
    errors = load_checkpoint(result.best).extra["provenance"]["valid_errors"]
    assert errors["forces"]["count"] == 9  # of one water


def test_a_validation_set_without_a_label_measures_the_others(config):
    write(config.data.valid, [labelled(4, with_forces=False)])
    text, _ = logged(config)
    assert "validation labels: energy 1 of 1, forces 0 of 1" in text
    header = (config.output / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "energy_per_atom_rmse" in header and "forces" not in header


def test_a_batch_without_any_label_of_a_kind_is_no_nan(config):
    """And what it lacks does not stop what it has."""
    config = config.model_copy(update={"batch_size": 1, "epochs": 3})
    _, result = logged(config)
    assert result.step == 9 and np.isfinite(result.best_loss)


def test_energies_may_be_missing_too(config):
    """The fit of reference energies knows only those that are there."""
    bare = labelled(2)
    del bare.calc.results["energy"]
    write(config.data.train, [labelled(1), bare, labelled(3)])
    data = load_training_data(config)
    assert data.provenance["train"]["labels"] == {"energy": 2, "forces": 3}
    energies = data.reference.fit.energies
    assert 2 * energies[1] + energies[8] == pytest.approx(-14.2)
    assert np.isfinite(logged(config)[1].best_loss)


class Alone(Processes):
    """One of several processes, before the sums over all."""

    def sum_gradients(self, module, loss):
        return float(loss.detach())


def test_shares_of_processes_add_up_with_labels_missing(config):
    """Two processes, one of which has no forces at all, give the gradient of one."""
    data = load_training_data(config)
    torch.manual_seed(0)
    potential = new_potential(config.model, data)
    parts = []
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        processes = Alone(rank, size, torch.device("cpu"))
        objective = Objective(Differentiated(potential), LossConfig(), processes)
        loss = objective.gradients(data.train, [0, 1])
        weight = potential.readout[0].weight
        parts.append((loss, weight.grad.clone()))
    whole, first, second = parts
    assert whole[0] == pytest.approx(first[0] + second[0])
    torch.testing.assert_close(whole[1], first[1] + second[1])


def test_the_old_key_is_taken_and_said_to_be_needless(config):
    data = config.data.model_copy(update={"partial": ["forces"]})
    assert "data.partial is no longer needed" in logged(config.model_copy(update={"data": data}))[0]
    with pytest.raises(ValidationError, match="expected one of energy, forces"):
        DataConfig.model_validate({"train": "t.xyz", "valid": "v.xyz", "partial": ["mass"]})


def crystal(seed: int, stress: float) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.rattle(0.05, seed=seed)
    atoms.calc = SinglePointCalculator(
        atoms, energy=-0.3, forces=np.zeros((4, 3)), stress=np.full(6, stress)
    )
    return atoms


def dimer(stress: float) -> Atoms:
    """With a stress that means nothing, as some programs write one."""
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]], cell=[9, 9, 9])
    atoms.calc = SinglePointCalculator(
        atoms, energy=-0.01, forces=np.zeros((2, 3)), stress=np.full(6, stress)
    )
    return atoms


@pytest.mark.parametrize("nonsense", [0.4, np.nan])
def test_molecules_train_among_crystals_on_stress(config, nonsense):
    """Stress is trained where it is defined; what stands on a molecule is ignored, and said so."""
    frames = [crystal(1, 0.001), dimer(nonsense), crystal(2, 0.002)]
    write(config.data.train, frames)
    write(config.data.valid, frames)
    weights = {"loss": LossConfig.model_validate({"weights": {"stress": 10.0}})}
    config = config.model_copy(update=weights)
    text, result = logged(config)
    assert "stress 2 of 3 (1 ignored on structures that are not periodic in three" in text
    errors = load_checkpoint(result.best).extra["provenance"]["valid_errors"]
    assert errors["stress"]["count"] == 18
    graphs = load_training_data(config).train
    assert [bool(graph[fields.STRESS].isnan().any()) for graph in graphs] == [False, True, False]


def test_dipoles_of_crystals_are_ignored_among_molecules(config):
    """The other way round: a dipole means something only without periodic directions."""
    frames = [labelled(1), labelled(2), labelled(3)]
    frames[0].info["dipole"] = [0.0, 0.0, 0.4]
    frames[1].info["dipole"] = [0.0, 0.0, 9.0]
    frames[1].set_cell([9, 9, 9])
    frames[1].pbc = True
    frames[1].calc.atoms = frames[1].copy()
    write(config.data.train, frames)
    write(config.data.valid, frames)
    model = config.model.model_copy(update={"heads": [QEqConfig()]})
    loss = LossConfig.model_validate({"weights": {"dipole": 1.0}})
    text, result = logged(config.model_copy(update={"model": model, "loss": loss}))
    assert "dipole 1 of 3 (1 ignored on structures that are periodic)" in text
    errors = load_checkpoint(result.best).extra["provenance"]["valid_errors"]
    assert errors["dipole"]["count"] == 3 and errors["dipole"]["mae"] < 1.0


def test_stress_on_molecules_alone_is_an_error(config):
    write(config.data.train, [dimer(0.1)])
    weights = {"loss": LossConfig.model_validate({"weights": {"stress": 10.0}})}
    with pytest.raises(DataError, match=r"no stress is defined for the periodicity of frames 0,"):
        load_training_data(config.model_copy(update=weights))


def logged(config):
    """What a run says, and its result."""
    console = Console(record=True, width=400, file=io.StringIO())
    result = train(config, overwrite=True, console=console)
    return console.export_text(), result
