"""What a new run takes over from an earlier one's weights, and what follows its own data.

Weights go by name and, where they belong to elements, by chemical symbol. The unit of the readout
(``energy_scale``) and that of charges per atom stay with the weights that were learned in them, and
the contact wall begins where both sets of data let it. Reference energies belong to the level of
theory of the data, so they are fitted anew, to what the network leaves of its energies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.data.graph_file import tensors_of
from phicalc.data.reference import fit_reference_energies, robust_shifts
from phicalc.errors import ConfigError
from phicalc.geometric import Data
from phicalc.model.checkpoint import Checkpoint
from phicalc.model.config import ModelConfig
from phicalc.model.potential import MAX_ATOMIC_NUMBER, Potential
from phicalc.train.labels import labelled

SAMPLE, SAMPLE_PER_ELEMENT = 256, 8
SMALLEST_SPREAD = 1e-3
"""eV/atom; deviations below are no reason to refit reference energies."""
EVIDENCE_PER_ELEMENT = 5.0
"""Gain in log-likelihood, per fitted number, from which a refit is more than fitting noise."""

CHARGE_EMBEDDING, CHARGE_SCALE = "charge_embedding", "charge_scale"


def charges_as_in(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The configuration, with charges told as the checkpoint's network learned them.

    Unless the configuration says how, or the network has seen no charges.
    """
    asked_for = "charge_embedding" in config.model_fields_set
    if asked_for or not checkpoint.config.total_charge or _knows_no_charge(checkpoint):
        return config
    return config.model_copy(update={"charge_embedding": checkpoint.config.charge_embedding})


def take_weights(potential: Potential, checkpoint: Checkpoint, name: str) -> list[str]:
    """Copy all weights of a checkpoint that have a place in a new potential.

    Parameters
    ----------
    name
        What to call the checkpoint in messages.

    Returns
    -------
    list of str
        What was not taken over, or means something else now, in sentences.

    Raises
    ------
    ConfigError
        It is of another network.
    """
    own, given = potential.state_dict(), checkpoint.potential.state_dict()
    places = _places_of_elements(potential)
    left_out = _meaningless(potential.config, checkpoint)
    taken = {}
    for key, value in own.items():
        if key in given and key not in left_out:
            copied = _by_element(
                value, given[key], places[key], potential.elements, checkpoint.elements
            )
            if copied is not None:
                taken[key] = copied
    if not any(key.startswith("backbone.") for key in taken):
        raise ConfigError(
            f"initial: {name} is of another network; expected {potential.config.backbone}"
        )
    potential.load_state_dict({**own, **taken})
    return _notes(potential, checkpoint, [key for key in own if key not in taken])


def _places_of_elements(potential: Potential) -> dict[str, tuple[int, ...]]:
    """By weight: the dimensions that have one entry per element.

    Those are the ones that grow when an element joins.
    """
    more = next(z for z in range(1, MAX_ATOMIC_NUMBER + 1) if z not in potential.elements)
    with torch.random.fork_rng(devices=[]):
        grown = Potential(potential.config, [*potential.elements, more]).state_dict()
    return {
        key: tuple(d for d, size in enumerate(value.shape) if grown[key].shape[d] != size)
        for key, value in potential.state_dict().items()
    }


def _by_element(
    own: Tensor, given: Tensor, places: tuple[int, ...], mine: list[int], theirs: list[int]
) -> Tensor | None:
    """``given`` with its entries in my order of elements, mine where it has none; None: no fit."""
    expected = [len(theirs) if d in places else size for d, size in enumerate(own.shape)]
    if list(given.shape) != expected:
        return None
    shared = [z for z in mine if z in theirs]
    result, source = own.clone(), given.to(own.dtype)
    to, of = (torch.tensor([known.index(z) for z in shared]) for known in (mine, theirs))
    if not places:
        return source.clone()
    for d in places:
        source = source.index_select(d, of)
    index = torch.meshgrid(
        *[to if d in places else torch.arange(size) for d, size in enumerate(own.shape)],
        indexing="ij",
    )
    result[index] = source
    return result


def _meaningless(config: ModelConfig, checkpoint: Checkpoint) -> set[str]:
    """Weights of the total charge that say nothing here: a unit of no charges, another meaning."""
    theirs = checkpoint.config
    if not theirs.total_charge or _knows_no_charge(checkpoint):
        return {CHARGE_SCALE}
    same = theirs.charge_embedding == config.charge_embedding
    return set() if same else {CHARGE_SCALE, CHARGE_EMBEDDING}


def _knows_no_charge(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's record says that it has seen neutral structures only."""
    seen: Any = (checkpoint.extra.get("provenance") or {}).get("charges")
    return isinstance(seen, Mapping) and list(seen.get("structures", ())) == ["0"]


def _notes(potential: Potential, checkpoint: Checkpoint, fresh: list[str]) -> list[str]:
    notes = []
    mine, theirs = potential.elements, checkpoint.elements
    joined = _symbols(z for z in mine if z not in theirs)
    gone = _symbols(z for z in theirs if z not in mine)
    if joined:
        notes.append(f"new elements: {joined}; what belongs to them starts at random")
    if gone:
        notes.append(f"{gone}: not in the training data, so the model no longer knows them")
    parts = sorted({".".join(key.split(".")[:2]) for key in fresh})
    parts = [part for part in parts if part not in (CHARGE_EMBEDDING, CHARGE_SCALE)]
    if parts:
        notes.append(f"starting at random, for the checkpoint has no such part: {', '.join(parts)}")
    if potential.config.total_charge and CHARGE_EMBEDDING in fresh:
        notes.append("what atoms are told of the total charge starts at random")
    before, now = (c.model_dump(exclude={"dtype"}) for c in (checkpoint.config, potential.config))
    changed = [f"{k} {before[k]} → {now[k]}" for k in now if before[k] != now[k]]
    if changed:
        notes.append(f"the model differs from the checkpoint's: {'; '.join(changed)}")
    return notes


def merge_closest(potential: Potential, given: Tensor) -> None:
    """Let the contact wall begin where it does or at the given (S, S) | Å, whichever is smaller.

    Zero stands for a pair that was not seen.
    """
    own = potential.contact.closest
    smaller = torch.where((own > 0) & (given > 0), torch.minimum(own, given), own + given)
    own.copy_(smaller)


@torch.no_grad()
def refit_reference_energies(
    potential: Potential, graphs: Sequence[Data], joined: Sequence[int], given: Mapping[int, float]
) -> list[str]:
    """Fit reference energies to what the network leaves of the energies; say what was done.

    New elements get what the others leave. Then all are shifted, where that explains more than
    noise, as it does for another level of theory; at the same level a network that is right stays
    as it is. Shifts are nearest to zero where compositions leave them open.

    Parameters
    ----------
    joined
        Elements that the network has not seen; their energies count as unset.
    given
        E⁰ in eV by atomic number that the configuration gives.
    """
    chosen = _sample(graphs)
    energies = potential.get_buffer("reference_energies")
    before = energies.clone()
    position = {z: i for i, z in enumerate(potential.elements)}
    for z in joined:
        energies[position[z]] = 0.0
    for z in given:
        energies[position[z]] = given[z]
    species = [graph[fields.SPECIES].numpy() for graph in chosen]
    off = np.array(deviations(potential, chosen))
    unset = [z for z in joined if z not in given]
    held = {z: 0.0 for z in potential.elements if z not in unset}
    if unset:
        fitted = fit_reference_energies(species, off, held, unset).energies
        off = off - [sum(fitted.get(int(z), 0.0) for z in numbers) for numbers in species]
        for z in unset:
            energies[position[z]] = fitted[z]
    free = [z for z in potential.elements if z not in given]
    shifts = robust_shifts(species, off, free)
    left = off - [sum(shifts.get(int(z), 0.0) for z in numbers) for numbers in species]
    sizes = np.array([len(numbers) for numbers in species])
    spread = max(SMALLEST_SPREAD, _spread(left / sizes, len(free)))
    # of Cauchy's distribution: one more structure that is far off weighs little
    likelihoods = [-np.log1p((r / sizes / spread) ** 2).sum() for r in (off, left)]
    refit = likelihoods[1] - likelihoods[0] > EVIDENCE_PER_ELEMENT * len(free)
    for z in free if refit else ():
        energies[position[z]] += shifts[z]
    typical = _spread((left if refit else off) / sizes)
    changed = [
        f"{chemical_symbols[z]} {before[i]:.6g} → {energies[i]:.6g}"
        if z not in joined
        else f"{chemical_symbols[z]} {energies[i]:.6g}"
        for z, i in position.items()
        if energies[i] != before[i]
    ]
    after = f"energies start {1e3 * typical:.3g} meV/atom off (robust RMS)"
    if not changed:
        return [f"reference energies stay as in the checkpoint; {after}"]
    return [f"reference energies in eV, refitted to the data: {', '.join(changed)}; {after}"]


@torch.no_grad()
def deviations(potential: Potential, graphs: Sequence[Data]) -> list[float]:
    """Reference minus predicted energy of each structure in eV.

    Charges are solved directly, as in training: at the sizes of training structures that is
    quicker than iterating, and always converges.
    """
    potential.train()
    found = []
    for structure in graphs:
        graph = graph_dict(collate([structure]))
        found.append(float(graph[fields.ENERGY] - potential(graph)[fields.ENERGY]))
    potential.eval()
    return found


def _spread(deviations: np.ndarray[Any, np.dtype[np.float64]], fitted: int = 0) -> float:
    """Standard deviation about zero by the median, corrected for numbers that were fitted."""
    freedom = max(1, len(deviations) - fitted) / len(deviations)
    return float(1.4826 * np.median(np.abs(deviations)) / np.sqrt(freedom))


def _sample(graphs: Sequence[Data]) -> list[Data]:
    """Up to 256 labelled structures, evenly spaced, and up to eight more of each element."""
    known = [number for number, one in enumerate(labelled(graphs, fields.ENERGY)) if one]
    chosen = set(known[:: -(-len(known) // SAMPLE)])
    species = list(tensors_of(graphs, fields.SPECIES))
    seen: dict[int, int] = {}
    for number in known:
        elements = species[number].unique().tolist()
        if any(seen.get(z, 0) < SAMPLE_PER_ELEMENT for z in elements):
            chosen.add(number)
            for z in elements:
                seen[z] = seen.get(z, 0) + 1
    return [graphs[number] for number in sorted(chosen)]


def _symbols(numbers: Any) -> str:
    return " ".join(chemical_symbols[z] for z in numbers)
