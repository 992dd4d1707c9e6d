"""Every backbone × head × dtype × structure, as fixtures."""

import pytest
from ase import Atoms

from phicalc.model.config import sums_coulomb
from phicalc.model.derivatives import Differentiated
from tests.conftest import structure

from .models import BACKBONES, HEADS, make_model

ALL_MODELS = [(backbone, head) for backbone in BACKBONES for head in HEADS]
ids = [f"{backbone}-{head}" for backbone, head in ALL_MODELS]


@pytest.fixture(scope="session", params=ALL_MODELS, ids=ids)
def names(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="session", params=["float32", "float64"])
def model(request: pytest.FixtureRequest, names: tuple[str, str]) -> Differentiated:
    """Each model in both precisions."""
    return make_model(*names, request.param)


@pytest.fixture(scope="session")
def exact_model(names: tuple[str, str]) -> Differentiated:
    """Each model in float64, where numbers are compared with finite differences."""
    return make_model(*names, "float64")


@pytest.fixture
def tolerance(model: Differentiated) -> dict[str, float]:
    """Named tolerance of the model's precision, for quantities of order one."""
    single = model.potential.config.dtype == "float32"
    return {"rtol": 0.0, "atol": 2e-5 if single else 1e-11}


def _refuse_slabs(names: tuple[str, str]) -> None:
    """Heads with Coulomb sums refuse slabs, which test_size.py shows; nothing is left to test."""
    if any(sums_coulomb(head) for head in HEADS[names[1]]):
        pytest.skip("this head refuses slabs")


@pytest.fixture
def slab(names: tuple[str, str]) -> Atoms:
    """As for all tests, where the model takes it."""
    _refuse_slabs(names)
    return structure("slab")


@pytest.fixture(params=["molecule", "bulk", "slab"])
def atoms(request: pytest.FixtureRequest, names: tuple[str, str]) -> Atoms:
    """Each of the three structures in turn, where the model takes it."""
    if request.param == "slab":
        _refuse_slabs(names)
    return structure(request.param)
