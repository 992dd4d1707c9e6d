"""Fixtures that every test may use: small structures, two served models, and one thread."""

import pytest
from ase import Atoms
from ase.build import bulk as build_bulk
from ase.build import fcc111
from ase.build import molecule as build_molecule

from phicalc.serving.model_file import LoadedModel
from tests.reference_models import lennard_jones_model, phi_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """One thread is bitwise reproducible, and these systems are too small for more."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Graphs are kept in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked `cuda` runs wherever there is a device."""
    import torch

    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def structure(kind: str) -> Atoms:
    """A molecule, a bulk cell smaller than any cutoff, or a slab, off its symmetric positions."""
    if kind == "molecule":
        atoms = build_molecule("CH3CH2OH")
    elif kind == "bulk":
        atoms = build_bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    elif kind == "slab":
        atoms = fcc111("Al", (2, 2, 2), vacuum=6.0, periodic=False)
    else:
        raise ValueError(f"expected molecule, bulk or slab, got {kind!r}")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def molecule() -> Atoms:
    """Ethanol, not periodic."""
    return structure("molecule")


@pytest.fixture
def bulk() -> Atoms:
    """Four atoms of rock salt in a skewed cell, periodic in three directions."""
    return structure("bulk")


@pytest.fixture
def slab() -> Atoms:
    """Two layers of aluminium, periodic in the plane only."""
    return structure("slab")


@pytest.fixture(params=["molecule", "bulk", "slab"])
def atoms(request: pytest.FixtureRequest) -> Atoms:
    """Each of the three structures in turn."""
    return structure(request.param)


@pytest.fixture(scope="session")
def lennard_jones() -> LoadedModel:
    """ASE's Lennard-Jones potential as a model file, of neon and argon, in float64."""
    return lennard_jones_model()


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """PaiNN with Φ in float64, random weights."""
    return phi_model()
