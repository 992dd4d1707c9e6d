"""What a model says may be asked of it is what it does."""

import json
import zipfile
from pathlib import Path

import pytest

from phicalc import fields
from phicalc.data.tensors import joined, structure_tensors
from phicalc.errors import PhicalcError
from phicalc.serving.capabilities import combined
from phicalc.serving.metadata import METADATA_NAME, ModelMetadata, read_metadata
from tests.conftest import structure
from tests.physics.models import CUTOFF, HEADS, make_model

KINDS = ("molecule", "bulk", "slab")


@pytest.fixture(scope="module", params=HEADS)
def network(request):
    return make_model("schnet", request.param, "float64")


def graph_of(atoms):
    return joined([structure_tensors(atoms, CUTOFF, 0.0)])


def does(action, *arguments) -> bool:
    try:
        action(*arguments)
    except PhicalcError:
        return False
    return True


def test_each_model_does_what_it_says(network):
    able = combined(network.potential.config)
    output = network(graph_of(structure("molecule")))
    assert able.charges == (fields.CHARGES in output)
    assert able.potential == (fields.POTENTIAL in output)
    for kind in KINDS:
        atoms = structure(kind)
        graph, periodic = graph_of(atoms), bool(atoms.pbc.any())
        evaluated = does(network, graph)
        assert evaluated == (able.partial_pbc or kind != "slab")
        if evaluated:
            reason = able.field_obstacle(atoms.numbers.tolist(), periodic, 0.0)
            assert does(network.response, graph) == (reason is None), reason


def test_outputs_have_the_shapes_of_their_table(network):
    atoms = structure("bulk")
    output = network(graph_of(atoms))
    for row in fields.PROPERTIES:
        if row.name in output:
            shape = tuple(output[row.name].shape)
            assert shape == (() if row.per == "atom" else (1,)) + row.shape_of(len(atoms)), row.name


def test_what_it_gives_by_name(network):
    able = combined(network.potential.config)
    assert set(able.outputs) >= {"energy", "energies", "forces", "stress"}
    assert ("dipole" in able.outputs) == able.charges
    assert ("born_effective_charges" in able.outputs) == (able.no_field is None)


@pytest.mark.parametrize("name", ["nacl-water", "nacl-water-phi", "kcl-crystal"])
def test_a_file_from_before_capabilities_gets_them_on_reading(name):
    """The description of a shipped model without that key, and with the keys it had instead."""
    path = Path(__file__).resolve().parents[2] / "models" / f"{name}.pt"
    with zipfile.ZipFile(path) as archive:
        (entry,) = [n for n in archive.namelist() if n.endswith(METADATA_NAME)]
        content = json.loads(archive.read(entry))
    content.pop("capabilities", None)
    today = read_metadata(path).capabilities
    former = {
        "supports_total_charge": today.total_charge,
        "supports_partial_pbc": today.partial_pbc,
        "basis_size": today.basis_size,
    }
    old = ModelMetadata.model_validate({**content, **former}).capabilities
    # a program from before inverses has none, whatever its head could do now
    assert old == today.model_copy(update={"keeps_inverse": False})
    assert old.partial_pbc == (content["heads"] == ["phi"])
    assert old.alone_above == (None if content["heads"] == ["phi"] else 64)
