"""Features of atoms, by every door that gives them."""

import numpy as np
import pytest
from ase.io import read, write
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from phicalc import PhiCalculator, predict
from phicalc.cli import app
from phicalc.errors import UnsupportedError
from phicalc.serving.export import describe
from phicalc.serving.model_file import LoadedModel, load_model, model_bytes
from tests.reference_models import lennard_jones_model, small_potential

BACKBONES = ({"kind": "painn", "features": 8}, {"kind": "schnet", "features": 8})


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda backbone: backbone["kind"])
def network(request) -> LoadedModel:
    network = small_potential("float64", backbone={**request.param, "layers": 2})
    return load_model(model_bytes(network, describe(network.potential)))


def features(model: LoadedModel, atoms) -> list[np.ndarray]:
    atoms.calc = PhiCalculator(model)
    atoms.get_potential_energy()
    return atoms.calc.features


def test_they_do_not_turn_but_follow_the_geometry(network, molecule):
    found = features(network, molecule.copy())
    assert [step.shape for step in found] == [(len(molecule), 8)] * 2
    turned = molecule.copy()
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix() @ np.diag([1, 1, -1])
    turned.positions = turned.positions @ turn.T + [1.0, -3.0, 2.0]
    assert_allclose(features(network, turned), found, rtol=0, atol=1e-12)
    turned.positions[0] += 0.1
    assert np.abs(np.array(features(network, turned)) - found).max() > 1e-4


def test_they_follow_the_atoms(network, molecule):
    order = np.random.default_rng(0).permutation(len(molecule))
    found = np.array(features(network, molecule.copy()))
    assert_allclose(features(network, molecule[order]), found[:, order], rtol=0, atol=1e-12)


def test_prediction_gives_each_structure_its_own(network, molecule, bulk, tmp_path):
    frames = [molecule, bulk, molecule]
    results = predict(network, frames, features=True)
    for atoms, result in zip(frames, results, strict=True):
        assert_allclose(result.features, features(network, atoms.copy()), rtol=0, atol=1e-12)
    assert predict(network, frames)[0].features is None


def test_the_command_writes_those_of_the_last_step(network, molecule, bulk, tmp_path):
    (tmp_path / "model.pt").write_bytes(network.data)
    write(tmp_path / "in.xyz", [molecule, bulk])
    arguments = ["predict", "model.pt", "in.xyz", "-o", "out.xyz"]
    arguments = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert CliRunner().invoke(app, [*arguments, "--features"]).exit_code == 0
    for atoms, written in zip([molecule, bulk], read(tmp_path / "out.xyz", ":"), strict=True):
        expected = features(network, atoms.copy())[-1]
        assert_allclose(written.arrays["features"], expected, rtol=0, atol=1e-6)


def test_a_model_without_them_says_so(molecule):
    argon = molecule.copy()
    argon.numbers[:] = 18
    argon.positions *= 4.0
    with pytest.raises(UnsupportedError, match="gives features, got an older one"):
        features(lennard_jones_model(), argon)
    with pytest.raises(UnsupportedError, match="nothing was calculated yet"):
        _ = PhiCalculator(lennard_jones_model()).features


def test_polarizability_is_the_dipoles_answer_to_a_field(molecule):
    """By differences of the dipole in fields of ±0.05 V/Å."""
    network = small_potential("float64", heads=[{"kind": "phi-coulomb"}])
    model = load_model(model_bytes(network, describe(network.potential)))
    molecule.calc = PhiCalculator(model)
    molecule.get_potential_energy()
    found = molecule.calc.polarizability
    for axis in range(3):
        dipoles = []
        for strength in (0.05, -0.05):
            atoms = molecule.copy()
            atoms.calc = PhiCalculator(model, field=strength * np.eye(3)[axis])
            dipoles.append(atoms.get_dipole_moment())
        assert_allclose((dipoles[0] - dipoles[1]) / 0.1, found[:, axis], rtol=1e-6, atol=1e-9)
