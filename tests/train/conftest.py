"""Tiny data sets with exact labels, and configurations that train on them in a second."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console

from phicalc.train.config import TrainConfig, parse_config


def cluster(seed: int) -> Atoms:
    """Four to six atoms of copper and gold with EMT energy and forces."""
    random = np.random.default_rng(seed)
    number = 4 + seed % 3
    corners = 2.6 * np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    atoms = Atoms(random.choice(["Cu", "Au"], number), corners[:number])
    atoms.positions += random.normal(0, 0.1, (number, 3))
    return with_labels(atoms, EMT(), ("energy", "forces"))


def argon(seed: int) -> Atoms:
    """Four argon atoms in a strained periodic cell with Lennard-Jones stress."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.set_cell(atoms.cell * (1 + 0.01 * (seed % 3)), scale_atoms=True)
    calculator = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0, smooth=True)
    return with_labels(atoms, calculator, ("energy", "forces", "stress"))


def with_labels(atoms: Atoms, calculator, names) -> Atoms:
    atoms.calc = calculator
    results = {name: atoms.calc.get_property(name, atoms) for name in names}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="session")
def clusters(tmp_path_factory) -> Path:
    """A folder with train.xyz (7 structures) and valid.xyz (3)."""
    folder = tmp_path_factory.mktemp("clusters")
    frames = [cluster(seed) for seed in range(10)]
    ase.io.write(folder / "train.xyz", frames[:7], format="extxyz")
    ase.io.write(folder / "valid.xyz", frames[7:], format="extxyz")
    return folder


@pytest.fixture(scope="session")
def argons(tmp_path_factory) -> Path:
    """A file of six periodic structures with stress."""
    path = tmp_path_factory.mktemp("argons") / "all.xyz"
    ase.io.write(path, [argon(seed) for seed in range(6)], format="extxyz")
    return path


@pytest.fixture
def content(clusters, tmp_path) -> dict:
    """What the YAML file of a tiny training run would hold."""
    backbone = {"kind": "painn", "features": 8, "layers": 2, "radial": 6}
    return {
        "output": str(tmp_path / "run"),
        "data": {"train": str(clusters / "train.xyz"), "valid": str(clusters / "valid.xyz")},
        "model": {"cutoff": 4.0, "backbone": backbone, "heads": [{"kind": "phi"}]},
        "loss": {"weights": {"energy": 10.0}},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "epochs": 3,
        "batch_size": 3,
        "threads": 1,
        "tensorboard": False,
    }


@pytest.fixture
def config(content) -> TrainConfig:
    return parse_config(content)


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)
