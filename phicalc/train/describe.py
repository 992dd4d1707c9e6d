"""What a run says and notes of its data: labels, charges, reference energies."""

from collections.abc import Iterator
from typing import Any

from ase.data import chemical_symbols

from phicalc import fields
from phicalc.data.graph_file import tensors_of
from phicalc.model.potential import Potential
from phicalc.serving.metadata import ChargesSeen, charge_range
from phicalc.train.config import TrainConfig
from phicalc.train.dataset import TrainingData
from phicalc.train.labels import describe_labels

LISTED_CHARGES = 8


def describe_data(data: TrainingData, config: TrainConfig) -> Iterator[str]:
    """Lines on what the structures have, and on what follows from it for the model."""
    yield from data.sources
    labels = data.provenance["train"]["labels"], data.provenance["valid"]["labels"]
    yield f"training labels: {describe_labels(labels[0], len(data.train), data.ignored)}"
    if any(count < len(data.valid) for count in labels[1].values()):
        yield f"validation labels: {describe_labels(labels[1], len(data.valid), {})}"
    if config.data.partial:
        yield "data.partial is no longer needed: any label may be missing in any structure"
    if data.reference is not None:
        fit = data.reference.fit
        yield (
            f"reference energies ({data.reference.source}) leave "
            f"{1e3 * fit.residual_rms:.3g} meV/atom RMS; "
            f"forces have {1e3 * data.energy_scale:.4g} meV/Å RMS"
        )
        if fit.open:
            yield (
                f"the compositions leave the reference energies of {_symbols(fit.open)} open "
                f"(of {len(fit.energies)} combinations {fit.rank} fixed): energies between "
                "other compositions mean nothing; give data.reference_energies, or frames of "
                "isolated atoms"
            )
    yield from _charges(data, config)


def reference_record(
    data: TrainingData, potential: Potential, config: TrainConfig
) -> dict[str, Any] | None:
    """A potential's reference energies as `phicalc.serving.metadata.ReferenceEnergies` has them.

    None without energy labels.
    """
    if data.reference is None:
        return None
    refitted = config.initial is not None and not data.reference.configured
    energies = potential.get_buffer("reference_energies").tolist()
    symbols = [chemical_symbols[z] for z in potential.elements]
    return {
        "energies": dict(zip(symbols, energies, strict=True)),
        "source": "of the initial checkpoint and the data" if refitted else data.reference.source,
        "open": [chemical_symbols[z] for z in data.reference.fit.open],
    }


def _charges(data: TrainingData, config: TrainConfig) -> Iterator[str]:
    """What is said of ions; nothing where all structures are neutral and stay so."""
    seen = ChargesSeen.model_validate(data.charges)
    ions = sum(count for charge, count in seen.structures.items() if float(charge) != 0.0)
    if not config.model.total_charge:
        if ions > 0:
            yield (
                f"{ions} training structures are charged, but the network is not told "
                "(model.total_charge: false); the exported model will refuse such structures"
            )
        return
    allowed = charge_range(seen, config.model.charge_embedding)
    assert allowed is not None
    shown = [f"{charge} ({count})" for charge, count in seen.structures.items()]
    if len(shown) > LISTED_CHARGES:
        shown = [*shown[: LISTED_CHARGES - 1], "…", shown[-1]]
    yield (
        f"total charges in e (structures): {', '.join(shown)}; the exported model will refuse "
        f"others than {allowed}"
    )
    outside = sum(
        not allowed.holds(float(charge), len(species))
        for charge, species in zip(
            tensors_of(data.valid, fields.TOTAL_CHARGE),
            tensors_of(data.valid, fields.SPECIES),
            strict=True,
        )
    )
    if outside > 0:
        yield f"{outside} validation structures have a total charge beyond all of the training set"


def _symbols(numbers: tuple[int, ...]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)
