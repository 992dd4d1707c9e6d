"""A GPU gives the CPU's numbers. Skipped where there is none; physics/test_device.py is not."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk as build_bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from phicalc import PhiCalculator, load_model, predict
from phicalc.data.boxes import salt_water
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.data.read import Labels
from phicalc.serving.export import describe
from phicalc.serving.metadata import read_metadata
from phicalc.serving.model_file import model_bytes
from phicalc.train.config import LossConfig
from phicalc.train.distributed import Processes
from phicalc.train.objective import Objective
from tests.conftest import structure
from tests.physics.models import BACKBONES, CUTOFF, HEADS, make_model

pytestmark = pytest.mark.cuda

SHIPPED = sorted((Path(__file__).parents[1] / "models").glob("*.pt"))

# Seen on an H200: 2e-8 eV/atom and 7e-6 eV/Å in float32.
TOLERANCES = {
    "float32": {"energy": 1e-6, "forces": 1e-4, "stress": 1e-6, "charges": 1e-5},
    "float64": {"energy": 1e-9, "forces": 1e-6, "stress": 1e-8, "charges": 1e-6},
}


def salt(cells: int, elements: tuple[str, str] = ("Na", "Cl")) -> Atoms:
    """Shaken rock salt of 72 atoms times a number."""
    atoms = build_bulk("NaCl", "rocksalt", a=6.0, cubic=True) * (cells, 3, 3)
    atoms.symbols[atoms.symbols == "Na"] = elements[0]
    atoms.rattle(0.05, seed=1)
    return atoms


def compare(results, expected, atoms: int, tolerance: dict[str, float]) -> None:
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        allowed = tolerance[name] * (atoms if name == "energy" else 1)
        np.testing.assert_allclose(results[name], value, rtol=0, atol=allowed, err_msg=name)


def results_of(calculator: PhiCalculator, atoms: Atoms, names=("energy", "forces", "charges")):
    wanted = [*names, "stress"] if atoms.pbc.all() else names
    return {name: calculator.get_property(name, atoms) for name in wanted}


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_models(path):
    metadata = read_metadata(path)
    frames = [salt_water(n_water=n, n_pairs=1, seed=1) for n in (15, 100)]
    if "K" in metadata.symbols:
        frames = [salt(n, ("K", "Cl")) for n in (1, 4)]
    for atoms in frames:
        expected, found = (
            results_of(PhiCalculator(path, device=d), atoms) for d in ("cpu", "cuda")
        )
        compare(found, expected, len(atoms), TOLERANCES[metadata.dtype])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_network(backbone, head):
    """Scripted, saved and loaded: a molecule, a crystal on the mesh, a cluster by iterations."""
    module = make_model(backbone, head, "float64")
    content = model_bytes(module, describe(module.potential))
    cluster = salt(4)
    cluster.pbc = False
    for atoms in (structure("molecule"), salt(1), cluster):
        graph = graph_dict(collate([to_graph(atoms, CUTOFF)]))
        expected = load_model(content, "cpu")(graph)
        found = load_model(content, "cuda")({name: t.cuda() for name, t in graph.items()})
        assert {value.device.type for value in found.values()} == {"cuda"}
        tolerance = TOLERANCES["float64"]
        names = [name for name in tolerance if name in expected]
        compare(
            {name: found[name].cpu() for name in names},
            {name: expected[name] for name in names},
            len(atoms),
            tolerance,
        )


@pytest.mark.parametrize("head", ["qeq", "phi-coulomb", "phi-coulomb constant", "local"])
def test_response(head):
    module = make_model("painn", head, "float64")
    content = model_bytes(module, describe(module.potential))
    frames = [structure("molecule"), *([salt(1)] if head.startswith("phi-coulomb") else [])]
    for atoms in frames:
        expected, found = (
            PhiCalculator(load_model(content, d), device=d).get_property(
                "born_effective_charges", atoms
            )
            for d in ("cpu", "cuda")
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_training_step(head):
    """Loss and gradients of a batch."""
    labels = Labels(energy=-10.0, forces=np.zeros((9, 3)))
    graphs = [to_graph(structure("molecule"), CUTOFF, labels) for _ in range(2)]
    loss = LossConfig.model_validate({"weights": {"energy": 1.0, "forces": 1.0}})
    gradients, losses = [], []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        module = make_model("painn", head, "float64").to(device)
        losses.append(Objective(module, loss, Processes(0, 1, device)).gradients(graphs, [0, 1]))
        gradients.append(
            {n: p.grad.cpu() for n, p in module.named_parameters() if p.grad is not None}
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-8)


def test_calculator():
    """Along a trajectory, with what is kept from step to step; copied, pickled, and in batches."""
    module = make_model("painn", "phi-coulomb", "float64")
    model = load_model(model_bytes(module, describe(module.potential)), "cuda")
    atoms = salt(4)
    atoms.calc = PhiCalculator(model)
    assert atoms.calc.device.type == "cuda"
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    tolerance = TOLERANCES["float64"]
    frames = []

    def check():
        cold = PhiCalculator(model, device="cpu", cache=False)
        expected = results_of(cold, atoms)
        compare(results_of(atoms.calc, atoms), expected, len(atoms), tolerance)
        frames.append(atoms.copy())

    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(check)
    dynamics.run(5)
    assert atoms.calc.cache_info()["solver_steps"] >= 5
    expected = atoms.get_forces()
    for other in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        np.testing.assert_allclose(other.get_forces(atoms), expected, rtol=0, atol=1e-6)
    batched = predict(model, frames, device="cuda")
    np.testing.assert_allclose(batched[-1].forces, expected, rtol=0, atol=1e-6)


def test_modes_of_the_caller():
    module = make_model("painn", "phi-coulomb", "float32")
    model = load_model(model_bytes(module, describe(module.potential)), "cuda")
    atoms = salt(1)
    expected = PhiCalculator(model).get_forces(atoms)
    with torch.autocast("cuda"), torch.no_grad():
        found = PhiCalculator(model).get_forces(atoms)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
