"""Dipoles as the only training target: they teach the heads charges, of ions too."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.errors import DataError
from phicalc.model.config import ModelConfig, PaiNNConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.train.config import LossConfig
from phicalc.train.dataset import graphs_of, read_labelled
from phicalc.train.distributed import Processes
from phicalc.train.objective import Objective

CUTOFF = 3.0
CHARGES = {"H2O": {"O": -0.7, "H": 0.35}, "OH": {"O": -1.2, "H": 0.2}}  # e, of water, hydroxide


def labelled(name: str, seed: int) -> Atoms:
    """Water or hydroxide, shaken and turned, with the dipole of point charges."""
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)
    atoms.rattle(0.1, seed=seed)
    atoms.rotate(37.0 * seed, np.random.default_rng(seed).normal(size=3))
    atoms.translate([5.0 + seed, 0.0, 0.0])
    charges = np.array([CHARGES[name][symbol] for symbol in atoms.symbols])
    atoms.info["charge"] = round(charges.sum())
    atoms.info["dipole"] = charges @ (atoms.positions - atoms.get_center_of_mass())
    return atoms


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """24 to learn from, 8 to be tested on, the way every data set comes."""
    path = tmp_path_factory.mktemp("dipoles") / "all.xyz"
    ase.io.write(path, [labelled(("H2O", "OH")[seed % 2], seed) for seed in range(32)])
    frames = [atoms for atoms, _ in read_labelled(path, ["dipole"])]
    found = graphs_of(frames, CUTOFF, ["dipole"])
    return found[:24], found[24:]


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "qeq"},
        {"kind": "local"},
        {"kind": "phi-coulomb", "base": "learned"},
        {"kind": "phi-coulomb", "base": "constant"},
    ],
    ids=["qeq", "local", "learned", "constant"],
)
def test_dipoles_teach_charges(head, graphs):
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=PaiNNConfig(features=8, layers=1, radial=6),
        heads=[head],
        cutoff=CUTOFF,
        dtype="float64",
    )
    model = Differentiated(Potential(config, [1, 8]))
    loss = LossConfig.model_validate(
        {"kind": "mse", "weights": {"energy": 0, "forces": 0, "dipole": 1}}
    )
    objective = Objective(model, loss, Processes(0, 1, torch.device("cpu")))
    train, valid = graphs
    before = objective.evaluate(valid, 8)[1].errors["dipole"].rmse
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80):
        objective.gradients(train, list(range(len(train))))
        optimizer.step()
    after = objective.evaluate(valid, 8)[1].errors["dipole"].rmse
    assert after < 0.15 * before
    output = model(graph_dict(collate(valid)))
    oxygen = output[fields.CHARGES][graph_dict(collate(valid))[fields.SPECIES] == 8].numpy()
    expected = [CHARGES[("H2O", "OH")[seed % 2]]["O"] for seed in range(24, 32)]
    assert np.abs(oxygen - expected).max() < 0.2


def test_charges_that_contradict_the_total_charge_are_refused(tmp_path):
    """No head can reach them: somebody forgot `info["charge"]`."""
    frames = [labelled("H2O", 0), labelled("OH", 1)]
    for atoms, name in zip(frames, ("H2O", "OH"), strict=True):
        atoms.arrays["charges"] = np.array([CHARGES[name][symbol] for symbol in atoms.symbols])
    path = tmp_path / "charges.xyz"
    ase.io.write(path, frames)
    assert len(read_labelled(path, ["charges"])) == 2
    del frames[1].info["charge"]
    ase.io.write(path, frames)
    with pytest.raises(DataError, match=r"charges\.xyz: .* got -1 e for 0 e in frame 1"):
        read_labelled(path, ["charges"])
    assert len(read_labelled(path, ["dipole"])) == 2  # a dipole alone says nothing of it
