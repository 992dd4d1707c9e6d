import pytest
import torch

from phicalc import fields
from phicalc.train.config import LossConfig
from phicalc.train.losses import joint_loss, residuals, summed_losses


def graph(atoms_of, **labels):
    batch = torch.repeat_interleave(torch.arange(len(atoms_of)), torch.tensor(atoms_of))
    return {fields.BATCH: batch, fields.CELL: torch.zeros(len(atoms_of), 3, 3), **labels}


def test_huber_is_quadratic_then_linear():
    config = LossConfig(deltas={"forces": 0.5})
    r = torch.tensor([[0.2, -0.5, 3.0]])
    by_hand = 0.5 * 0.2**2 + 0.5 * 0.5**2 + 0.5 * (3.0 - 0.25)
    assert summed_losses({"forces": r}, config)["forces"].item() == pytest.approx(by_hand)


def test_mse_is_the_plain_square():
    r = torch.tensor([1.0, -2.0])
    assert summed_losses({"charges": r}, LossConfig(kind="mse"))["charges"].item() == 5.0


def test_energies_are_compared_per_atom():
    labelled = graph([2, 4], energy=torch.tensor([1.0, 2.0]))
    r = residuals({"energy": torch.tensor([3.0, 0.0])}, labelled, ["energy"])
    assert r["energy"].tolist() == [1.0, -0.5]
    assert r["energy"].dtype == torch.float64


def test_each_property_is_a_mean_over_its_own_components():
    weights = {"energy": 2, "forces": 3, "stress": 5, "charges": 7, "dipole": 11}
    config = LossConfig(kind="mse", weights=weights)
    shapes = {"energy": (2,), "forces": (6, 3), "stress": (2, 3, 3), "charges": (6,)}
    shapes["dipole"] = (2, 3)
    torch.manual_seed(0)
    r = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    expected = sum(weights[name] * value.square().mean() for name, value in r.items())
    loss = joint_loss(summed_losses(r, config), config, structures=2, atoms=6)
    torch.testing.assert_close(loss, expected)


def test_shares_of_a_batch_add_up_to_the_whole():
    config = LossConfig(weights={"energy": 1, "forces": 1})
    torch.manual_seed(0)
    energy, forces = torch.randn(3).double(), torch.randn(7, 3).double()
    whole = joint_loss(summed_losses({"energy": energy, "forces": forces}, config), config, 3, 7)
    parts = [
        joint_loss(summed_losses({"energy": e, "forces": f}, config), config, 3, 7)
        for e, f in ((energy[:1], forces[:2]), (energy[1:], forces[2:]))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
