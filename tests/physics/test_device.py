"""Every tensor is made where its inputs are: what a GPU would find out, seen without one.

Inside ``with torch.device("meta")`` a tensor that is made without a device lands on the meta
device, which holds no numbers. Meeting the inputs, which are on the CPU, or being read, it raises
or leaves a meta tensor in the output.
"""

from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk

from phicalc import fields
from phicalc.data.graph import Graph, collate, graph_dict, to_graph
from phicalc.electrostatics.solvers.charges import DENSE_LIMIT
from phicalc.electrostatics.solvers.poisson import DIRECT_LIMIT
from phicalc.model.config import ModelConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.metadata import read_metadata
from phicalc.train.config import LossConfig
from phicalc.train.losses import joint_loss, residuals, summed_losses
from tests.conftest import structure
from tests.physics.models import CUTOFF, make_model

SHIPPED = sorted((Path(__file__).parents[2] / "models").glob("*.pt"))
LOSS = LossConfig.model_validate(
    {"weights": dict.fromkeys(("energy", "forces", "stress", "charges", "dipole"), 1.0)}
)


def test_the_guard_sees_a_forgotten_device():
    """What meets the inputs raises, and what is only reported is found in the output."""
    with torch.device("meta"):
        forgotten = torch.full([2], 3.0)
        with pytest.raises(RuntimeError, match="device"):
            torch.dot(torch.ones(2, device="cpu"), forgotten)
    with pytest.raises(AssertionError, match="iterations"):
        stays({"iterations": forgotten})


def salt(atoms: int, elements: tuple[str, str], periodic: bool) -> Atoms:
    """At least so many atoms of rock salt, shaken, in a cell or as a cluster."""
    repeat = 1
    while 8 * repeat * 3 * 3 <= atoms:
        repeat += 1
    crystal = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, 3, 3)
    crystal.numbers = [Atoms(elements[symbol == "Cl"]).numbers[0] for symbol in crystal.symbols]
    crystal.rattle(0.05, seed=3)
    crystal.pbc = periodic
    return crystal


def graph_of(cutoff: float, *structures: Atoms) -> Graph:
    return graph_dict(collate([to_graph(atoms, cutoff) for atoms in structures]))


def stays(output: Graph) -> Graph:
    """The output, all of it on the CPU."""
    elsewhere = {name: str(v.device) for name, v in output.items() if v.device.type != "cpu"}
    assert not elsewhere
    return output


def evaluate_on_meta(module: Differentiated, graph: Graph) -> None:
    """Energies, forces and stress, in evaluation mode."""
    with torch.device("meta"):
        output = stays(module.eval()(graph))
        stays({fields.ENERGY: module.energy(graph)})
    assert output[fields.FORCES].isfinite().all()


def respond_on_meta(module: Differentiated, graph: Graph) -> None:
    with torch.device("meta"):
        output = stays(module.eval().response(graph))
    assert output[fields.BORN_CHARGES].isfinite().all()


def train_on_meta(module: Differentiated, graph: Graph) -> None:
    """The gradient of a loss on all labels that the model can have."""
    labelled = {**graph, **{name: value + 0.1 for name, value in module.eval()(graph).items()}}
    module.train()
    try:
        with torch.device("meta"):
            prediction = module(labelled)
            named = [name for name in LOSS.properties if name in prediction]
            sums = summed_losses(residuals(prediction, labelled, named), LOSS)
            loss = joint_loss(sums, LOSS, 2, len(graph[fields.SPECIES]))
            if fields.AUXILIARY_LOSS in prediction:
                loss = loss + prediction[fields.AUXILIARY_LOSS].sum()
            loss.backward()
        stays(prediction)
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert found
        stays(found)
    finally:
        module.zero_grad(set_to_none=True)
        module.eval()


def with_field(graph: Graph) -> Graph:
    return {**graph, fields.FIELD: torch.tensor([[0.01, -0.02, 0.03]], dtype=torch.float64)}


@pytest.fixture(scope="module")
def module(names: tuple[str, str]) -> Differentiated:
    return make_model(*names, "float32")


def test_small_structures(module: Differentiated):
    """One by one and as a batch, where electrostatics is solved densely; with a field."""
    ethanol, rock_salt = structure("molecule"), structure("bulk")
    ethanol.info["charge"] = 1
    graphs = [graph_of(CUTOFF, a) for a in (ethanol, rock_salt)]
    for graph in (*graphs, graph_of(CUTOFF, ethanol, rock_salt)):
        evaluate_on_meta(module, graph)
    if module.potential.feels_field:
        evaluate_on_meta(module, with_field(graphs[0]))


@pytest.mark.parametrize("periodic", [True, False], ids=["crystal", "cluster"])
def test_large_structures(module: Differentiated, periodic: bool):
    """Where electrostatics is solved by iterations: on the mesh, and on a cluster's edges."""
    limit = DIRECT_LIMIT if "phi" in module.potential.head_names else DENSE_LIMIT
    graph = graph_of(CUTOFF, salt(limit, ("Na", "Cl"), periodic))
    evaluate_on_meta(module, graph)
    if any(hasattr(head, "inverse") for head in module.potential.heads):
        with torch.device("meta"):
            kept = stays({fields.INVERSE: module.inverse(graph)})
        evaluate_on_meta(module, {**graph, **kept})


def test_response(module: Differentiated):
    """Of a molecule, and of a crystal where the head's base charges allow it."""
    if not module.potential.feels_field:
        with pytest.raises(ValueError, match="expected one head with Coulomb sums"):
            respond_on_meta(module, graph_of(CUTOFF, structure("molecule")))
        return
    respond_on_meta(module, graph_of(CUTOFF, structure("molecule")))
    base = getattr(module.potential.config.heads[0], "base", None)
    if base in ("formal", "constant"):
        crystal = graph_of(CUTOFF, salt(0, ("Na", "Cl"), True))
        respond_on_meta(module, crystal)
        evaluate_on_meta(module, with_field(crystal))


def test_training_step(module: Differentiated):
    train_on_meta(module, graph_of(CUTOFF, structure("molecule"), structure("bulk")))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_models(path: Path):
    """The same of each shipped model's network, built as its file says."""
    metadata = read_metadata(path)
    torch.manual_seed(0)
    config = ModelConfig.model_validate(metadata.config)
    module = Differentiated(Potential(config, metadata.elements))
    elements = ("K" if 19 in metadata.elements else "Na", "Cl")
    for limit in (0, DENSE_LIMIT, DIRECT_LIMIT):
        evaluate_on_meta(module, graph_of(metadata.cutoff, salt(limit, elements, True)))
    small = salt(0, elements, True)
    train_on_meta(module, graph_of(metadata.cutoff, small, small))
    if module.potential.feels_field:
        respond_on_meta(module, graph_of(metadata.cutoff, small))
