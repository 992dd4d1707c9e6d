"""Many structures through one model, a batch at a time: the ground under ``phicalc predict``."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ase import Atoms
from ase.io.extxyz import write_extxyz

from phicalc.checks.conditions import name_spins
from phicalc.checks.settings import BATCH_SIZE
from phicalc.checks.structure import check_field
from phicalc.data.read import read_structures
from phicalc.errors import ConvergenceError, OutputError, StructureError, UnsupportedError
from phicalc.machine.device import resolve_device
from phicalc.machine.files import prepare_folder, replacing
from phicalc.machine.modes import own_modes, torch_threads
from phicalc.serving.evaluation import Conditions, admit, conditions_of, evaluate_many, naming
from phicalc.serving.model_file import LoadedModel, load_model
from phicalc.serving.result import Result

FORMATS = (".xyz", ".extxyz")


Prediction = Result


@own_modes()
def predict(
    model: str | Path | LoadedModel,
    frames: Iterable[Atoms],
    *,
    device: str = "auto",
    charge: float | None = None,
    field: Sequence[float] | None = None,
    features: bool = False,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda structures: None,
) -> list[Result]:
    """What a model says about many structures, the same as `PhiCalculator` one by one.

    Parameters
    ----------
    model
        A model file.
    frames
        Structures, of any size and periodicity; nothing of them is changed.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda[:n]"``.
    charge
        Total charge in e of structures without ``info["charge"]``; None: 0.
    field
        Electric field in V/Å of structures without ``info["external_field"]``; None: 0.
    features
        Also give the features of the atoms after each message step.
    batch_size
        Structures at a time; large ones are evaluated one by one where the model has a head that
        is faster so.
    threads
        CPU threads; None: the process's own setting, which is restored at the end.
    advance
        Called with the number of structures after each batch.

    Raises
    ------
    StructureError, UnsupportedError
        A structure is unsound or not one for this model; the message names the frame, from 0.
        Unknown elements are found before anything is computed.
    ConvergenceError
        An electrostatic solve did not converge; the message names the frames of the batch.
    ModelFileError
        The model cannot be loaded.

    Examples
    --------
    >>> from phicalc import predict
    >>> from phicalc.data.boxes import salt_water
    >>> frames = [salt_water(8, 1, seed=seed) for seed in range(3)]
    >>> results = predict("models/nacl-water.pt", frames, device="cpu")
    >>> [result.stress.shape for result in results]
    [(6,), (6,), (6,)]
    """
    model = _loaded(model, device)
    if isinstance(frames, Atoms):
        raise StructureError("expected a list of structures, got one Atoms; pass [atoms]")
    everything = list(frames)
    conditions = _admitted(model, everything, charge, field)
    found: list[Result] = []
    with torch_threads(threads):
        for batch in evaluate_many(model, everything, conditions, batch_size, features):
            found += batch
            advance(len(batch))
    return found


@own_modes()
def predict_file(
    model: str | Path | LoadedModel,
    structures: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    charge: float | None = None,
    field: Sequence[float] | None = None,
    features: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Predict the structures of a file and write them with their results, whole or not at all.

    Parameters
    ----------
    structures
        extxyz(.gz) or any format of ASE's.
    output
        Extended XYZ, ``.xyz`` or ``.extxyz``; ``ase.io.read`` finds the results in ``atoms.calc``.
    overwrite
        Replace an older file.
    features
        Also write the features of the atoms after the last message step, as column ``features``.
    progress
        Called with the number of structures done and of all.
    model, device, charge, field, batch_size
        As `predict`.

    Raises
    ------
    DataError
        The structures cannot be read.
    OutputError
        The output has another suffix, exists already or cannot be written.
    PhicalcError
        As `predict`.
    """
    path = Path(output)
    if path.suffix not in FORMATS:
        raise OutputError(f"expected an output {' or '.join(FORMATS)}, got {path}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; give another name, or overwrite it")
    frames = read_structures(structures)
    try:
        model = _loaded(model, device)
        conditions = _admitted(model, frames, charge, field)
        prepare_folder(path.parent)  # before the computation, after all that costs nothing
        found: list[Result] = []
        for batch in evaluate_many(model, frames, conditions, batch_size, features):
            found += batch
            progress(len(found), len(frames))
    except (StructureError, UnsupportedError, ConvergenceError) as error:
        raise type(error)(f"{structures}: {error}") from error
    written = [p.attached_to(a) for p, a in zip(found, frames, strict=True)]
    for atoms, result in zip(written, found, strict=True):
        if result.features is not None:
            atoms.arrays["features"] = result.features[-1]
    for atoms, own in zip(written, conditions, strict=True):
        if charge is not None or own.charge:
            atoms.info["charge"] = own.charge
        if own.field.any():
            atoms.info["external_field"] = own.field
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        write_extxyz(file, written)
    return found


def _loaded(model: str | Path | LoadedModel, device: str) -> LoadedModel:
    target = resolve_device(device)
    if isinstance(model, LoadedModel):
        return model.on(target)
    return load_model(model, target)


def _admitted(
    model: LoadedModel,
    frames: Sequence[Atoms],
    charge: float | None,
    field: Sequence[float] | None,
) -> list[Conditions]:
    """What the structures are in, all of which the model can compute."""
    found = []
    elsewhere = None if field is None else check_field(field)
    for number, atoms in enumerate(frames):
        with naming([number]):
            own = conditions_of(atoms, charge, elsewhere)
            admit([model], atoms, own)
        found.append(own)
    name_spins(frames, [own.charge for own in found])
    return found
