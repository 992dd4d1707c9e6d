"""Core repulsion against its closed form."""

import math

import numpy as np
import pytest
import torch

from phicalc.model.zbl import CoreRepulsion, screened_repulsion


def published(r: float, zi: int, zj: int) -> float:
    """ZBL in CODATA units, written out: e²/4πε₀ = 14.3996 eV Å, a = 0.8854 a₀/(Zi^.23 + Zj^.23)."""
    a = 0.8854 * 0.529177 / (zi**0.23 + zj**0.23)
    amplitude = (0.1818, 0.5099, 0.2802, 0.02817)
    decay = (3.2, 0.9423, 0.4029, 0.2016)
    return (
        14.39964
        * zi
        * zj
        / r
        * sum(c * math.exp(-d * r / a) for c, d in zip(amplitude, decay, strict=True))
    )


@pytest.mark.parametrize("zi, zj", [(1, 1), (8, 1), (8, 8), (79, 14)])
@pytest.mark.parametrize("r", [0.02, 0.1, 0.5, 1.0])
def test_published_form(zi, zj, r):
    """To three digits: the constants are printed with four or five."""
    z = torch.tensor([zi, zj]).double()
    found = float(screened_repulsion(torch.tensor(r).double(), z[0], z[1]))
    assert found == pytest.approx(published(r, zi, zj), rel=1.5e-3)


def test_bare_coulomb_at_contact():
    r = torch.tensor(1e-6).double()
    z = torch.tensor(8.0).double()
    assert float(screened_repulsion(r, z, z)) == pytest.approx(14.39964 * 64 / 1e-6, rel=1e-4)


def pair_energy(distance: float, cutoff: float = 5.0) -> float:
    edges = torch.tensor([[1, 0], [0, 1]])
    r = torch.full((2,), distance, dtype=torch.float64)
    return float(CoreRepulsion([1, 8], cutoff)(torch.tensor([0, 1]), edges, r).sum())


def test_counts_each_pair_once_and_ends_at_the_covalent_radii():
    z = torch.tensor([1.0, 8.0]).double()
    near = torch.tensor(0.05).double()
    expected = float(screened_repulsion(near, z[0], z[1]))
    assert pair_energy(0.05) == pytest.approx(expected, rel=2e-3)
    assert pair_energy(0.9) > 0
    assert pair_energy(0.97) == 0.0  # 0.31 Å + 0.66 Å
    assert pair_energy(0.6, cutoff=0.5) == 0.0


def test_repulsive_and_smooth():
    r = np.linspace(0.1, 1.0, 200)
    energy = np.array([pair_energy(x) for x in r])
    assert (np.diff(energy) <= 0).all()
    assert np.abs(np.diff(energy, 2))[r[1:-1] > 0.9].max() < 1e-3
