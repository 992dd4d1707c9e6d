import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk as build_bulk

import phicalc.serving.export
import phicalc.serving.model_file
from phicalc.data.boxes import salt_water
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.engines.ase import PhiCalculator
from phicalc.errors import ModelFileError, OutputError
from phicalc.model.checkpoint import ADDED, load_checkpoint, save_checkpoint
from phicalc.serving.eager import EagerModel
from phicalc.serving.export import (
    NOT_COMPARED,
    TOLERANCES,
    describe,
    export,
    sample_structures,
    verify,
)
from phicalc.serving.metadata import ModelMetadata, read_metadata
from phicalc.serving.model_file import LoadedModel, check_device, load_model, model_bytes
from tests.reference_models import (
    ELEMENTS,
    LennardJones,
    lennard_jones_metadata,
    small_potential,
)

SHIPPED = sorted((Path(__file__).parents[2] / "models").glob("*.pt"))

NOTED = {
    "data": {"train": {"name": "water.extxyz", "sha256": "ab" * 32, "structures": 12}},
    "valid_errors": {"forces": {"mae": 0.02, "rmse": 0.03, "count": 99, "unit": "eV/Å"}},
    "step": 400,
    "config": {"epochs": 3},
    "torch": "2.13.0",
}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, small_potential("float32").potential, {"provenance": NOTED})
    return path


@pytest.mark.parametrize("backbone", ["painn", "schnet"])
@pytest.mark.parametrize("heads", [[], [{"kind": "phi", "basis_size": 5}]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_exported_model_is_the_trained_one(tmp_path, atoms, backbone, heads, dtype):
    atoms.numbers[atoms.numbers == 13] = 11
    module = small_potential(dtype, heads=heads, backbone={"kind": backbone, "features": 8})
    save_checkpoint(tmp_path / "best.pt", module.potential)
    metadata = export(tmp_path / "best.pt", tmp_path / "model.pt")
    assert metadata.backbone == backbone
    assert metadata.heads == [head["kind"] for head in heads]
    assert metadata.capabilities.basis_size == (5 if heads else 0)
    assert metadata.parameters == sum(p.numel() for p in module.parameters())
    graph = graph_dict(collate([to_graph(atoms, 4.0)]))
    expected, found = module(graph), load_model(tmp_path / "model.pt")(graph)
    for name in set(expected) - set(NOT_COMPARED):
        assert (name in expected) == (name in found)
        if name in expected:
            assert torch.allclose(found[name], expected[name], rtol=0, atol=TOLERANCES[dtype]), name


def test_metadata_tells_where_the_model_comes_from(checkpoint, tmp_path):
    out = tmp_path / "model.pt"
    returned = export(
        checkpoint, out, description="salt water", licence="MIT", data_licence="CC BY-SA 4.0"
    )
    metadata = read_metadata(out)
    assert metadata == returned
    assert metadata.elements == ELEMENTS
    assert metadata.cutoff == 4.0
    assert metadata.capabilities.total_charge
    assert metadata.config == load_checkpoint(checkpoint).config.model_dump(mode="json")
    noted = metadata.provenance.model_dump(exclude={"checkpoint_sha256"}, exclude_defaults=True)
    assert noted == {key: value for key, value in NOTED.items() if key != "torch"}
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert metadata.provenance.checkpoint_sha256 == digest
    assert (metadata.description, metadata.licence) == ("salt water", "MIT")
    assert metadata.data_licence == "CC BY-SA 4.0"


def test_a_float32_checkpoint_in_float64(checkpoint, tmp_path, molecule):
    export(checkpoint, tmp_path / "single.pt")
    metadata = export(checkpoint, tmp_path / "double.pt", dtype="float64")
    assert metadata.dtype == metadata.config["dtype"] == "float64"
    single, double = (PhiCalculator(tmp_path / f"{name}.pt") for name in ("single", "double"))
    assert double.get_forces(molecule) == pytest.approx(single.get_forces(molecule), abs=1e-4)
    assert not np.array_equal(double.get_forces(molecule), single.get_forces(molecule))
    # float64 all the way: forces are the slope of the energy to many digits
    step, shifted = 1e-4, molecule.copy()
    slope = 0.0
    for sign in (1, -1):
        shifted.positions = molecule.positions
        shifted.positions[0, 0] += sign * step
        slope += sign * double.get_potential_energy(shifted) / (2 * step)
    assert double.get_forces(molecule)[0, 0] == pytest.approx(-slope, abs=1e-6)


def test_a_model_that_differs_is_refused_and_nothing_is_written(checkpoint, tmp_path, monkeypatch):
    def subtly_wrong(module, metadata):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter *= 1.001
        data = model_bytes(module, metadata)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter /= 1.001
        return data

    monkeypatch.setattr(phicalc.serving.export, "model_bytes", subtly_wrong)
    with pytest.raises(ModelFileError, match="differ from the network's by"):
        export(checkpoint, tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    (tmp_path / "model.pt").write_bytes(b"old")
    with pytest.raises(ModelFileError, match="differ"):
        export(checkpoint, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == b"old"


def test_a_network_that_gives_nan_is_refused(tmp_path):
    module = small_potential()
    with torch.no_grad():
        next(module.potential.readout.parameters()).fill_(float("nan"))
    save_checkpoint(tmp_path / "best.pt", module.potential)
    with pytest.raises(ModelFileError, match="NaN or infinite energ"):
        export(tmp_path / "best.pt", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("head", ["phi", "phi-coulomb"])
def test_verification_looks_at_each_output(head):
    """Those of the response to a field and the features among them."""
    module = small_potential("float64", heads=[{"kind": head}])
    known = describe(module.potential)
    network = EagerModel(module, known, torch.device("cpu"))
    samples = sample_structures(ELEMENTS)[:2]
    verify(network, load_model(model_bytes(module, known)), samples)
    graph = graph_dict(collate([to_graph(samples[1], 4.0)]))
    names = [name for name in network(graph) if name not in NOT_COMPARED]
    names += ["features 0", "features 1"]
    if head == "phi-coulomb":
        names += list(network.response(graph))
    for name in names:
        other = load_model(model_bytes(Shifted(module, name), known))
        with pytest.raises(ModelFileError, match=f"gives {name} that differ"):
            verify(network, other, samples)


class Shifted(torch.nn.Module):
    """A model with one output off by a little."""

    def __init__(self, module, name):
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = self.module(graph)
        if self.name in output:
            output[self.name] = output[self.name] + 1e-5
        return output

    @torch.jit.export
    def features(self, graph: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = self.module.features(graph)
        return [
            step + 1e-5 if self.name == f"features {number}" else step
            for number, step in enumerate(found)
        ]

    @torch.jit.export
    def response(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = self.module.response(graph)
        if self.name in output:
            output[self.name] = output[self.name] + 1e-5
        return output


@pytest.mark.parametrize("elements", [[1], [1, 8, 11, 17], [6, 79]])
def test_samples_are_sound_structures_of_the_elements(elements):
    samples = sample_structures(elements)
    assert {int(z) for atoms in samples for z in atoms.numbers} == set(elements)
    assert {bool(atoms.pbc.all()) for atoms in samples} == {True, False}
    assert {atoms.info.get("charge", 0.0) for atoms in samples} == {0.0, 1.0}
    assert max(len(atoms) for atoms in samples) > 256  # beyond direct solves
    for atoms in samples[1:]:
        distances = atoms.get_all_distances(mic=True)
        assert distances[~np.eye(len(atoms), dtype=bool)].min() > 0.5
    again = sample_structures(elements)
    assert all(a == b for a, b in zip(samples, again, strict=True))


def test_own_structures_can_be_compared_on(checkpoint, tmp_path):
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        export(checkpoint, tmp_path / "model.pt", structures=[on_one_spot()])


def on_one_spot() -> Atoms:
    return Atoms("H2", positions=np.zeros((2, 3)))


@pytest.mark.parametrize("content", [None, b"", b"text" * 50])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "best.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match="checkpoint"):
        export(path, tmp_path / "model.pt")


def test_a_model_file_is_no_checkpoint(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match="checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


# --- model files written anew --------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_model_written_anew_gives_the_same_numbers(path, tmp_path):
    """To the bit, solved directly and by iterations; and it says the same of itself."""
    new = tmp_path / "new.pt"
    export(path, new)
    before, after = read_metadata(path), read_metadata(new)
    renewed = {"phicalc_version", "torch_version", "devices"}
    assert before.model_dump(exclude=renewed) == after.model_dump(exclude=renewed)
    assert after.devices == ["cpu", "cuda"]
    frames = [salt_water(n_water=n, n_pairs=1, seed=1) for n in (15, 100)]
    if "K" in before.symbols:
        frames = [build_bulk("KCl", "rocksalt", a=6.3, cubic=True) * (n, n, n) for n in (1, 3)]
    for atoms in frames:
        atoms.rattle(0.03, seed=2)
        old_results, new_results = (
            {name: calculator.get_property(name, atoms) for name in ("energy", "forces", "charges")}
            for calculator in (PhiCalculator(path, device="cpu"), PhiCalculator(new, device="cpu"))
        )
        for name, value in old_results.items():
            assert np.array_equal(new_results[name], value), name


def test_texts_of_a_model_file_are_kept_unless_given(checkpoint, tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    export(checkpoint, old, description="salt", licence="MIT", data_licence="CC0")
    kept = export(old, new, description="salt water")
    assert (kept.description, kept.licence, kept.data_licence) == ("salt water", "MIT", "CC0")
    assert kept.provenance == read_metadata(old).provenance
    assert kept.provenance.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    again = export(new, new, dtype="float64", licence="")
    assert (again.dtype, again.licence) == ("float64", "")


def test_a_model_file_without_buffers_that_came_later(tmp_path, molecule, monkeypatch):
    """They are what they are in a new potential."""
    module, old, new = small_potential(), tmp_path / "old.pt", tmp_path / "new.pt"
    old.write_bytes(model_bytes(module, describe(module.potential)))
    weights = load_model(old).weights()
    later = {f"potential.{name}" for name in ADDED}
    assert later <= weights.keys()
    kept = {name: value for name, value in weights.items() if name not in later}
    monkeypatch.setattr(LoadedModel, "weights", lambda model: kept)
    export(old, new)
    expected, found = (PhiCalculator(p).get_forces(molecule) for p in (old, new))
    assert np.array_equal(found, expected)
    del kept["potential.energy_scale"]
    with pytest.raises(ModelFileError, match=r"energy_scale.*export its checkpoint"):
        export(old, new)


def test_a_model_file_that_does_not_tell_its_network(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(model_bytes(LennardJones(), lennard_jones_metadata()))
    with pytest.raises(ModelFileError, match=r"built from its file.*export its checkpoint"):
        export(path, tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()


def test_an_older_file_is_refused_on_cuda(tmp_path, monkeypatch):
    """Before torch reads it; in one sentence that says how to mend it."""
    monkeypatch.setattr(phicalc.serving.model_file, "resolve_device", torch.device)
    module = small_potential()
    old = describe(module.potential).model_copy(update={"devices": ["cpu"]})
    with pytest.raises(ModelFileError, match=r"older file.*`phicalc export OLD.pt -o NEW.pt`") as e:
        load_model(model_bytes(module, old), "cuda")
    assert "\n" not in str(e.value)
    cuda = torch.device("cuda")
    check_device(describe(module.potential), cuda, "model.pt")
    check_device(old.model_copy(update={"heads": []}), cuda, "model.pt")
    assert (
        old.devices == ModelMetadata(elements=[1], cutoff=4.0).devices
    )  # a file that says nothing


def test_provenance_that_is_not_understood(tmp_path):
    save_checkpoint(
        tmp_path / "best.pt", small_potential().potential, {"provenance": {"step": "many"}}
    )
    with pytest.raises(ModelFileError, match="step: expected a whole number"):
        export(tmp_path / "best.pt", tmp_path / "model.pt")


def test_a_folder_that_does_not_exist(checkpoint, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        export(checkpoint, tmp_path / "no" / "model.pt")
