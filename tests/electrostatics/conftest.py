"""These tests use the sparse kernels directly, without a head or a model file around them."""

import pytest

from phicalc.electrostatics.laplacian import silence_sparse_notice


@pytest.fixture(autouse=True, scope="session")
def _no_sparse_notice():
    silence_sparse_notice()
