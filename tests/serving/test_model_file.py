import hashlib
import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import ModelFileError, OutputError, UnsupportedError
from phicalc.serving.metadata import FORMAT_VERSION, METADATA_NAME, read_metadata
from phicalc.serving.model_file import load_model, model_bytes, save_model
from tests.reference_models import (
    LennardJones,
    lennard_jones_metadata,
    small_metadata,
    small_potential,
)


@pytest.fixture(scope="module")
def content() -> bytes:
    """A sound model file of a Lennard-Jones model."""
    return model_bytes(LennardJones(), lennard_jones_metadata())


def graph_of(atoms, cutoff=4.0):
    return graph_dict(collate([to_graph(atoms, cutoff)]))


# --- sound files --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["molecule", "bulk"])
def test_saved_and_loaded_gives_the_networks_numbers_from_the_first_call_on(
    request, kind, dtype, tmp_path
):
    graph = graph_of(request.getfixturevalue(kind))
    module = small_potential(dtype)
    expected = module(graph)
    model = load_model(save_model(module, tmp_path / "model.pt", small_metadata(dtype)))
    for _ in range(4):
        found = model(graph)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    assert not any(value.requires_grad for value in found.values())


def test_metadata_travels_with_the_file(tmp_path):
    metadata = small_metadata(description="for tests", licence="MIT", config={"a": {"b": [1.5]}})
    path = save_model(small_potential(), tmp_path / "model.pt", metadata)
    assert read_metadata(path) == load_model(path).metadata == metadata
    assert metadata.symbols == ["H", "C", "O", "Na", "Cl"]
    assert metadata.format_version == FORMAT_VERSION
    assert metadata.torch_version == torch.__version__
    with zipfile.ZipFile(path) as archive:  # readable with no phicalc at hand
        (name,) = [name for name in archive.namelist() if name.endswith(METADATA_NAME)]
        assert json.loads(archive.read(name))["units"]["stress"] == "eV/Å³"


def test_sha256_is_that_of_the_file(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert load_model(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def parts(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def as_torch_saves(module: torch.nn.Module) -> bytes:
    """TorchScript's own archive of a module, which tells where its sources lay."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


SHIPPED = sorted((Path(__file__).parents[2] / "models").glob("*.pt"))


@pytest.mark.parametrize("source", ["written now", *(path.name for path in SHIPPED)])
def test_a_model_file_names_no_folder_of_the_machine_that_wrote_it(source):
    written = {path.name: path.read_bytes() for path in SHIPPED}
    written["written now"] = model_bytes(small_potential(), small_metadata())
    assert len(written) > 3
    folders = [
        str(Path(__file__).parents[2]).encode(),
        str(Path(torch.__file__).parents[2]).encode(),
    ]
    anywhere = re.compile(rb"/[\w./-]+\.py\b|site-packages")  # of whatever machine

    def telling(content: bytes) -> list[str]:
        found = parts(content).items()
        return [n for n, part in found if any(f in part for f in folders) or anywhere.search(part)]

    assert telling(as_torch_saves(small_potential()))
    assert not telling(written[source])
    assert not any(folder in written[source] for folder in folders)


def test_the_archive_is_laid_out_as_torch_lays_it_out():
    """Records start on multiples of 64 bytes and tensors lie there as they are in memory."""
    module = small_potential()
    content, reference = model_bytes(module, small_metadata()), as_torch_saves(module)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    with zipfile.ZipFile(io.BytesIO(reference)) as archive:
        torchs = {e.filename: e for e in archive.infolist() if not e.filename.endswith("debug_pkl")}
    assert torchs.keys() < entries.keys()
    for name, entry in entries.items():
        start = entry.header_offset + 26
        name_length, extra_length = struct.unpack("<HH", content[start : start + 4])
        assert (start + 4 + name_length + extra_length) % 64 == 0, name
        if name in torchs:
            assert entry.compress_type == torchs[name].compress_type, name
    assert {entries[name].compress_type for name in entries if "/data/" in name} == {0}
    assert len(content) < 0.8 * len(reference)


def test_saving_leaves_the_module_as_it_is(tmp_path):
    module = small_potential().train()
    save_model(module, tmp_path / "model.pt", small_metadata())
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, content):
    class Unscriptable(torch.nn.Module):
        def forward(self, graph):
            return {name: eval(name) for name in graph}

    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(Exception, match="eval"):
        save_model(Unscriptable(), path, lennard_jones_metadata())
    assert path.read_bytes() == b"old"
    save_model(LennardJones(), path, lennard_jones_metadata())
    assert load_model(path).metadata == lennard_jones_metadata()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        save_model(LennardJones(), tmp_path / "no" / "model.pt", lennard_jones_metadata())


def test_pickled_models_go_on_without_their_file(tmp_path, molecule):
    path = save_model(small_potential(), tmp_path / "model.pt", small_metadata())
    model = load_model(path)
    pickled = pickle.dumps(model)
    path.unlink()
    graph = graph_of(molecule)
    assert torch.equal(pickle.loads(pickled)(graph)[fields.FORCES], model(graph)[fields.FORCES])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(mode, molecule):
    model = load_model(model_bytes(small_potential(), small_metadata()))
    graph = graph_of(molecule)
    expected = model(graph)[fields.FORCES]
    with mode():
        assert torch.equal(model(graph)[fields.FORCES], expected)


def test_the_callers_default_dtype_does_not_matter(molecule):
    model = load_model(model_bytes(small_potential(), small_metadata()))
    graph = graph_of(molecule)
    expected = model(graph)
    torch.set_default_dtype(torch.float64)
    try:
        found = model(graph)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_nothing_of_torch_is_left_changed(molecule):
    before = torch._C._get_graph_executor_optimize(), torch.get_default_dtype()
    load_model(model_bytes(small_potential(), small_metadata()))(graph_of(molecule))
    assert (torch._C._get_graph_executor_optimize(), torch.get_default_dtype()) == before


def test_saving_and_loading_warn_of_nothing(tmp_path, molecule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save_model(small_potential(), tmp_path / "model.pt", small_metadata())
        load_model(path)(graph_of(molecule))


# --- unsound files ------------------------------------------------------------------------------


class Burglar:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def torch_saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(content: bytes, changes: dict[str, bytes | None]) -> bytes:
    """A copy of an archive with some parts, named by their endings, replaced or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            part: bytes | None = source.read(name)
            for ending, replacement in changes.items():
                if name.endswith(ending):
                    part = replacement
            if part is not None:
                target.writestr(name, part)
    return buffer.getvalue()


def described_as(content: bytes, **changes) -> bytes:
    description = {**json.loads(lennard_jones_metadata().model_dump_json()), **changes}
    return rezipped(content, {METADATA_NAME: json.dumps(description).encode()})


def test_rezipping_alone_does_no_harm(content):
    assert load_model(rezipped(content, {})).metadata == lennard_jones_metadata()


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"nothing\.pt: no such file"):
        load_model(tmp_path / "nothing.pt")


def test_a_directory(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "0 bytes"),
        (lambda content: b"nacl-water " * 100, "another kind of file"),
        (lambda content: content[: len(content) // 2], "cut short"),
        (lambda content: content[:-30], "cut short"),
        (lambda content: content[:20], "cut short"),
        (
            lambda content: content.replace(struct.pack("<d", 0.1), struct.pack("<d", 0.2)),
            "checksum",
        ),
        (lambda content: rezipped(content, {"": None}), "empty zip"),
        (lambda content: rezipped(content, {".py": b"class"}), "cannot load"),
        (lambda content: rezipped(content, {".py": None}), "torch.save file"),
        (lambda content: rezipped(content, {".pkl": None}), "without TorchScript"),
        (lambda content: rezipped(content, {"constants.pkl": None}), "torch.save file"),
        (lambda content: rezipped(content, {METADATA_NAME: None}), "another program"),
        (lambda content: rezipped(content, {METADATA_NAME: b"{"}), "no description"),
        (lambda content: rezipped(content, {METADATA_NAME: b"[1]"}), "no description"),
        (lambda content: rezipped(content, {METADATA_NAME: b"\xff"}), "no description"),
        (lambda content: rezipped(content, {METADATA_NAME: b"{}"}), "no description"),
        (
            lambda content: described_as(content, cutoff=-1),
            "cutoff: expected .* 0, got -1",
        ),
        (
            lambda content: described_as(content, elements=[]),
            "elements: expected at least 1",
        ),
        (lambda content: rezipped(content, {"/data.pkl": b"junk"}), "cannot load"),
        (lambda content: torch_saved({"a": torch.ones(2)}), "torch.save file.*phicalc export"),
        (lambda content: torch_saved([1], _use_new_zipfile_serialization=False), "another kind"),
    ],
)
def test_a_foreign_or_damaged_file(tmp_path, content, spoil, message):
    path = tmp_path / "model.pt"
    spoiled = spoil(content)
    assert spoiled != content
    path.write_bytes(spoiled)
    with pytest.raises(ModelFileError, match=message) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_of_a_newer_format_says_to_upgrade(content):
    newer = described_as(content, format_version=FORMAT_VERSION + 1, phicalc_version="9.1", new=1)
    with pytest.raises(ModelFileError, match=r"≤ 1, got 2, written by phicalc 9\.1; upgrade"):
        load_model(newer)
    same = described_as(content, written_with_care=True)  # an addition that changes no meaning
    assert load_model(same).metadata == lennard_jones_metadata()


@pytest.mark.parametrize(
    "disguise",
    [
        lambda content, evil: pickle.dumps(evil),
        lambda content, evil: torch_saved(evil),
        lambda content, evil: torch_saved(evil, _use_new_zipfile_serialization=False),
        lambda content, evil: rezipped(content, {"/data.pkl": pickle.dumps(evil, 2)}),
        lambda content, evil: rezipped(content, {"/constants.pkl": pickle.dumps(evil, 2)}),
        lambda content, evil: rezipped(content, {METADATA_NAME: pickle.dumps(evil)}),
    ],
    ids=["pickle", "torch.save", "legacy torch.save", "data.pkl", "constants.pkl", "metadata"],
)
def test_a_pickle_in_disguise_is_refused_and_not_run(tmp_path, content, disguise):
    marker = tmp_path / "burgled"
    disguised = disguise(content, Burglar(marker))
    for action in (load_model, read_metadata):
        if action is read_metadata and disguised.count(METADATA_NAME.encode()):
            continue  # it reads nothing but the description, which is sound there
        with pytest.raises(ModelFileError):
            action(disguised)
    assert not marker.exists()


def test_the_burglar_would_have_come_in_through_pickle(tmp_path):
    pickle.loads(pickle.dumps(Burglar(tmp_path / "burgled")))
    assert (tmp_path / "burgled").exists()


# --- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "tpu:0"])
def test_a_device_that_is_not_there(device, content):
    with pytest.raises(UnsupportedError, match=device):
        load_model(content, device)
