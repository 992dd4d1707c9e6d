"""Which structures bear which labels: any may be missing, what counts is said."""

from collections.abc import Mapping, Sequence

from ase import Atoms

from phicalc import fields
from phicalc.data.graph_file import tensors_of
from phicalc.data.read import Labels, is_defined, labels_in_some
from phicalc.errors import DataError
from phicalc.geometric import Data
from phicalc.train.config import Property


def labels_somewhere(
    frames: Sequence[Atoms], properties: Sequence[Property] = fields.LABELS
) -> tuple[Property, ...]:
    """Properties that at least one structure has a label for that is defined for it."""
    return tuple(labels_in_some(frames, properties))


def require_defined(
    frames: Sequence[Atoms], labels: Sequence[Labels], properties: Sequence[Property]
) -> None:
    """Raise DataError where every label of a property lies on structures that can't have one."""
    for name in properties:
        if any(name in of_one.present for of_one in labels):
            continue
        undefined = [number for number, atoms in enumerate(frames) if not is_defined(name, atoms)]
        shown = ", ".join(map(str, undefined[:10])) + (", …" if len(undefined) > 10 else "")
        raise DataError(
            f"no {name} is defined for the periodicity of frames {shown}, which are "
            f"{fields.PROPERTY[name].undefined_for}, and no other frame has one; train without "
            f"{name}, or add structures that have one"
        )


def labelled_structures(
    graphs: Sequence[Data], properties: Sequence[Property]
) -> dict[Property, int]:
    """By property: graphs with a label, which NaN is not."""
    return {name: sum(labelled(graphs, name)) for name in properties}


def labelled(graphs: Sequence[Data], name: str) -> list[bool]:
    """Of each graph, whether it has a label, which NaN is not."""
    return [
        tensor is not None and not bool(tensor.isnan().any()) for tensor in tensors_of(graphs, name)
    ]


def describe_labels(
    labelled: Mapping[Property, int], structures: int, ignored: Mapping[Property, int]
) -> str:
    """The counts in words: "energy 800 of 800, stress 640 of 800 (20 ignored: …)"."""
    parts = []
    for name, count in labelled.items():
        part = f"{name} {count} of {structures}"
        if name in ignored:
            part += (
                f" ({ignored[name]} ignored on structures that are "
                f"{fields.PROPERTY[name].undefined_for})"
            )
        parts.append(part)
    return ", ".join(parts)
