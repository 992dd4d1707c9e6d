"""Fine-tuning: what is taken over by element, and what follows the new data."""

import io
import re

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from rich.console import Console

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.errors import ConfigError
from phicalc.model.checkpoint import load_checkpoint
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.initial import new_potential
from phicalc.train.trainer import train
from tests.train.conftest import cluster, with_labels

BACKBONE = {"kind": "painn", "features": 8, "layers": 2, "radial": 6}  # as in `content`
SHIFT = {29: -1600.0, 79: -3000.0, 47: -2000.0}  # eV, all electrons for some of them


@pytest.fixture(scope="module")
def first(clusters, tmp_path_factory):
    """The checkpoint of a run on clusters of copper and gold."""
    content = {
        "output": str(tmp_path_factory.mktemp("first")),
        "data": {"train": str(clusters / "train.xyz"), "valid": str(clusters / "valid.xyz")},
        "model": {"cutoff": 4.0, "backbone": BACKBONE, "heads": [{"kind": "phi"}]},
        "loss": {"weights": {"energy": 10.0}},
        "epochs": 40,
        "batch_size": 3,
        "ema_decay": 0.9,
        "threads": 1,
        "tensorboard": False,
    }
    return train(parse_config(content), console=Console(quiet=True)).best


def another(content, tmp_path, frames, **changes):
    """A configuration on other frames."""
    ase.io.write(tmp_path / "other.xyz", frames, format="extxyz")
    data = {"train": str(tmp_path / "other.xyz"), "valid": str(tmp_path / "other.xyz")}
    return parse_config(content | {"data": data, "output": str(tmp_path / "tuned")} | changes)


def shifted(frames, shift):
    for atoms in frames:
        atoms.calc.results["energy"] += sum(shift.get(int(z), 0.0) for z in atoms.numbers)
    return frames


def errors(potential, graphs):
    """Predicted minus reference energies, eV/atom."""
    found = []
    for structure in graphs:
        graph = graph_dict(collate([structure]))
        off = potential(graph)[fields.ENERGY] - graph[fields.ENERGY]
        found.append(float(off.detach()) / len(graph[fields.SPECIES]))
    return np.array(found)


def with_element(seed, symbol):
    """A cluster in which some of the atoms are of another element."""
    atoms = cluster(seed)
    numbers = atoms.symbols
    numbers[seed % len(atoms)] = symbol
    return with_labels(Atoms(numbers, atoms.positions), EMT(), ("energy", "forces"))


FRAMES = [cluster(seed) for seed in range(20)]


def fresh(frames):
    return [with_labels(a.copy(), EMT(), ("energy", "forces")) for a in frames]


def test_at_the_same_level_a_model_goes_on_as_it_was(content, tmp_path, first):
    """The same structures: not a bit of any weight or reference energy changes."""
    old = load_checkpoint(first).potential
    config = another(content, tmp_path, fresh(FRAMES[:7]))
    said = []
    potential = new_potential(config.model, load_training_data(config), first, said.append)
    for name, value in old.state_dict().items():
        assert torch.equal(potential.state_dict()[name], value), name
    assert any("reference energies stay as in the checkpoint" in line for line in said)


def test_another_level_of_theory_starts_at_the_old_accuracy(content, tmp_path, first):
    """Energies differ by 1600 and 3000 eV per atom; the network need not unlearn anything."""
    old = load_checkpoint(first).potential
    config = another(content, tmp_path, shifted(fresh(FRAMES), SHIFT))
    data = load_training_data(config)
    before = errors(old, load_training_data(another(content, tmp_path, fresh(FRAMES))).train)
    said = []
    potential = new_potential(config.model, data, first, said.append)
    after = errors(potential, data.train)
    assert np.abs(errors(old, data.train)).min() > 1000
    assert np.sqrt((after**2).mean()) < 1.2 * np.sqrt((before**2).mean())
    change = potential.reference_energies - old.reference_energies
    np.testing.assert_allclose(change, [SHIFT[29], SHIFT[79]], atol=0.3)
    assert any("refitted" in line and re.search(r"Cu \S+ → -1[56]", line) for line in said)
    for name in ("energy_scale", "readout.0.weight", "backbone.embedding.weight"):
        assert torch.equal(potential.state_dict()[name], old.state_dict()[name])


def test_a_shift_of_a_rare_element_is_seen(content, tmp_path, first):
    """Two structures of twenty hold gold: their 3000 eV are no outliers to be ignored."""
    frames = [a for a in FRAMES if len(set(a.symbols)) == 2][:2]
    pure = []
    for seed in range(18):
        atoms = FRAMES[seed].copy()
        atoms.numbers[:] = 29
        pure.append(atoms)
    config = another(content, tmp_path, shifted(fresh(pure + frames), {79: -3000.0}))
    data = load_training_data(config)
    potential = new_potential(config.model, data, first)
    assert np.abs(errors(potential, data.train)[-2:]).max() < 2.0


@pytest.mark.parametrize("level", [{}, SHIFT])
def test_a_new_element_joins(content, tmp_path, first, level):
    """Silver comes into a model of copper and gold, whose own weights stay with their symbols."""
    old = load_checkpoint(first).potential
    frames = [with_element(seed, "Ag") for seed in range(12)] + fresh(FRAMES[:7])
    config = another(content, tmp_path, shifted(frames, level))
    data = load_training_data(config)
    said = []
    potential = new_potential(config.model, data, first, said.append)
    assert potential.elements == [29, 47, 79]
    mine, theirs = potential.state_dict(), old.state_dict()
    for name in ("backbone.embedding.weight", "charge_embedding", "heads.0.base_source"):
        assert torch.equal(mine[name][[0, 2]], theirs[name]), name
    assert any("new elements: Ag; what belongs to them starts at random" in line for line in said)
    assert np.abs(errors(potential, data.train)[-7:]).max() < 0.3
    assert np.median(np.abs(errors(potential, data.train)[:12])) < 0.5
    closest = potential.contact.closest
    assert bool((closest[1] > 0).any()) and torch.equal(closest, closest.T)
    assert bool((closest[[0, 2]][:, [0, 2]] <= old.contact.closest).all())


def test_an_element_that_is_gone_is_said(content, tmp_path, first):
    """And its rows do not end up with others: copper keeps its own."""
    old = load_checkpoint(first).potential
    frames = []
    for atoms in FRAMES[:6]:
        copper = atoms.copy()
        copper.numbers[:] = 29
        frames.append(copper)
    config = another(content, tmp_path, fresh(frames))
    said = []
    potential = new_potential(config.model, load_training_data(config), first, said.append)
    assert any(line.startswith("Au: not in the training data") for line in said)
    atoms = frames[0].copy()
    atoms.positions *= 1.2  # no closer than the old model has seen copper
    energies = []
    for model in (old, potential):
        graph = graph_dict(collate([to_graph(atoms, 4.0)]))
        terms = model(graph)
        energies.append(float(terms["energy_network"].detach()))
    assert energies[0] == pytest.approx(energies[1], rel=1e-5)


def test_as_many_elements_but_others(content, tmp_path, first):
    """Silver for gold: the shapes are the same, and gold's rows are not silver's."""
    old = load_checkpoint(first).potential.state_dict()
    frames = [with_element(seed, "Ag") for seed in range(12)]
    for atoms in frames:
        atoms.numbers[atoms.numbers == 79] = 47
    config = another(content, tmp_path, fresh(frames))
    mine = new_potential(config.model, load_training_data(config), first).state_dict()
    name = "backbone.embedding.weight"
    assert torch.equal(mine[name][0], old[name][0])
    assert not torch.equal(mine[name][1], old[name][1])


def test_given_reference_energies_win(content, tmp_path, first):
    frames = shifted(fresh(FRAMES), SHIFT)
    config = another(content, tmp_path, frames)
    given = config.data.model_copy(update={"reference_energies": {"Cu": -1601.0, "Au": -3001.0}})
    config = config.model_copy(update={"data": given})
    data = load_training_data(config)
    potential = new_potential(config.model, data, first)
    assert potential.reference_energies.tolist() == [-1601.0, -3001.0]
    assert abs(np.median(errors(potential, data.train))) < 1e-2  # in the readout's constant


def test_a_tuned_run_says_what_was_done_and_improves(content, tmp_path, first):
    config = another(content, tmp_path, shifted(fresh(FRAMES), SHIFT), initial=str(first), epochs=2)
    console = Console(record=True, width=400, file=io.StringIO())
    result = train(config, console=console)
    text = console.export_text()
    assert "initial: reference energies in eV, refitted to the data: Cu " in text
    record = load_checkpoint(result.best).extra["provenance"]["reference"]
    assert record["energies"]["Cu"] == pytest.approx(-1600, abs=10)
    assert record["open"] == []


def test_a_tuned_run_goes_on_without_its_initial_checkpoint(content, tmp_path, first, quiet):
    """Its weights are the run's own by then; and the reference energies are not fitted again."""
    copy = tmp_path / "first.pt"
    copy.write_bytes(first.read_bytes())
    frames = shifted(fresh(FRAMES), SHIFT)
    config = another(content, tmp_path, frames, initial=str(copy), epochs=1)
    energies = load_checkpoint(train(config, console=quiet).last).potential.reference_energies
    copy.unlink()
    longer = config.model_copy(update={"epochs": 2})
    last = train(longer, resume=True, console=quiet).last
    assert torch.equal(load_checkpoint(last).potential.reference_energies, energies)


def test_what_the_checkpoint_cannot_give_is_said(content, tmp_path, first):
    changed = content["model"] | {"heads": [{"kind": "qeq"}], "cutoff": 4.5}
    config = another(content, tmp_path, fresh(FRAMES[:7]), model=changed)
    said = []
    new_potential(config.model, load_training_data(config), first, said.append)
    assert any("starting at random" in line and "heads.0" in line for line in said)
    assert any("cutoff 4.0 → 4.5" in line for line in said)
    other = content["model"] | {"backbone": {"kind": "schnet", "features": 5, "filters": 5}}
    config = another(content, tmp_path, fresh(FRAMES[:7]), model=other)
    with pytest.raises(ConfigError, match=r"^initial: .* another network"):
        new_potential(config.model, load_training_data(config), first)
