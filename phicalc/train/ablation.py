"""What each head adds: the same training for every row of a table, several seeds each.

Every run is an ordinary training run in a folder of its own; a killed ablation goes on where it
was. A run that has ended is measured on the validation set with its best weights, and what was
measured is kept beside it as ``result.json``.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from rich.console import Console
from torch_geometric.data import Data

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.errors import ConfigError
from phicalc.files import prepare_folder, write_json
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.train.ablation_config import AblationConfig
from phicalc.train.config import TrainConfig
from phicalc.train.dataset import graphs_of, read_frames
from phicalc.train.distributed import Processes
from phicalc.train.evaluation import shared_labels
from phicalc.train.logs import clock
from phicalc.train.metrics import ENERGY_PER_ATOM, evaluate
from phicalc.train.objective import Objective
from phicalc.train.trainer import TrainResult, train
from phicalc.units import MEV

RESULT = "result.json"
LOG = "train.log"
TIMED_STEPS, TIMED_STRUCTURES = 5, 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What one run of one row gave on the validation set.

    Attributes
    ----------
    energy_rmse, energy_mae
        meV/atom
    forces_rmse, forces_mae
        meV/Å; None where the data has no forces
    charge_correlation
        Pearson's, of predicted and reference charges of all atoms; None without either
    charge_correlation_within_elements
        the same after the mean charge of each element was taken off both: elements differ by
        themselves, so that alone is no merit
    charge_mae
        me
    supervised
        whether charges were trained on
    parameters
        trained numbers in the model
    seconds_per_training_step
        median processor time of loss and gradient of one batch: of no meaning on a GPU, but the
        same on a busy machine
    milliseconds_per_evaluation
        median processor time of energy and forces of one structure, alone, in Python
    """

    row: str
    seed: int
    steps: int
    energy_rmse: float | None
    energy_mae: float | None
    forces_rmse: float | None
    forces_mae: float | None
    charge_correlation: float | None
    charge_correlation_within_elements: float | None
    charge_mae: float | None
    supervised: bool
    parameters: int
    seconds_per_training_step: float
    milliseconds_per_evaluation: float


def run_ablation(
    config: AblationConfig,
    rows: Sequence[str] = (),
    *,
    say: Say = lambda line: None,
    measured: Callable[[RunResult], object] = lambda result: None,
) -> str | None:
    """Train and measure all runs that are not done yet, row by row.

    Parameters
    ----------
    rows
        Names of the rows to run; none: all.
    say
        Takes one line for each run that begins or ends.
    measured
        Takes each result as soon as it is written.

    Returns
    -------
    str or None
        Name of the signal that ended a run, such as "SIGINT": the same call goes on from there.
        None if all runs are done.

    Raises
    ------
    ConfigError
        If a row does not exist, or a run was made with other settings than are asked for now.
    """
    plan = [(row, seed) for row in chosen_rows(config, rows) for seed in config.seeds]
    pending = [
        (row, seed) for row, seed in plan if finished(config.run(row, seed), row, seed) is None
    ]
    say(f"{len(plan)} runs, {len(plan) - len(pending)} done before")
    prepare_folder(config.output)
    started = time.monotonic()
    for number, (row, seed) in enumerate(pending):
        label = f"[{len(plan) - len(pending) + number + 1}/{len(plan)}] {row}, seed {seed}"
        folder = config.folder(row, seed)
        resumed = (folder / "last.pt").exists()
        say(f"{label}: {'resumed' if resumed else 'training'}, log in {folder / LOG}")
        result = _train(config.run(row, seed), resumed)
        if result.stopped_by is not None:
            say(f"{label}: stopped at step {result.step}, saved; the same command goes on")
            return result.stopped_by
        found = measure(config.run(row, seed), row, seed, result.step)
        _write(config.run(row, seed), found)
        measured(found)
        spent = time.monotonic() - started
        left = spent / (number + 1) * (len(pending) - number - 1)
        say(f"{label}: {describe(found)}; {clock(spent)} spent, about {clock(left)} left")
    return None


def chosen_rows(config: AblationConfig, rows: Sequence[str]) -> list[str]:
    """The rows asked for, in the order of the file; all if none is."""
    unknown = [row for row in rows if row not in config.rows]
    if unknown:
        raise ConfigError(
            f"--rows: expected names from {', '.join(config.rows)}, got {', '.join(unknown)}"
        )
    return [row for row in config.rows if not rows or row in rows]


def finished(config: TrainConfig, row: str, seed: int) -> RunResult | None:
    """What a run gave if it is done; None if it is not.

    Raises
    ------
    ConfigError
        If it was made with other settings, or its result is no longer readable.
    """
    path = config.output / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = RunResult(**content["result"])
        # Settings that came later have their defaults.
        made_with = TrainConfig.model_validate(content["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a result of this version ({error}); remove it") from None
    if made_with != config:
        raise ConfigError(
            f"row {row!r}, seed {seed}: {path} was made with other settings; "
            "choose another output, or remove that folder"
        )
    return result


def results_of(config: AblationConfig) -> list[RunResult]:
    """All runs that are done."""
    found = [
        finished(config.run(row, seed), row, seed) for row in config.rows for seed in config.seeds
    ]
    return [result for result in found if result is not None]


def describe(result: RunResult) -> str:
    """The errors of a run in a few words."""
    parts = []
    if result.energy_rmse is not None:
        parts.append(f"E {result.energy_rmse:.3g} meV/atom")
    if result.forces_rmse is not None:
        parts.append(f"F {result.forces_rmse:.3g} meV/Å")
    if result.charge_correlation is not None and not result.supervised:
        parts.append(f"charges correlate {result.charge_correlation:.2f}")
    if result.charge_mae is not None and result.supervised:
        parts.append(f"charges MAE {result.charge_mae:.3g} me")
    return ", ".join(parts)


def _train(config: TrainConfig, resume: bool) -> TrainResult:
    """One training run, its lines in a file of its own folder."""
    prepare_folder(config.output)
    with (config.output / LOG).open("a", encoding="utf-8") as log:
        console = Console(file=log, soft_wrap=True, highlight=False, markup=False)
        return train(config, resume, console=console)


def _write(config: TrainConfig, result: RunResult) -> None:
    content = {"result": asdict(result), "config": config.model_dump(mode="json")}
    write_json(config.output / RESULT, content)


# --- measuring ------------------------------------------------------------------------------------


def measure(config: TrainConfig, row: str, seed: int, steps: int) -> RunResult:
    """Errors, charges and times of a run's best weights on its own validation set."""
    train_frames, valid_frames, _ = read_frames(config)
    potential = load_checkpoint(config.output / "best.pt").potential
    model = Differentiated(potential)
    graphs = graphs_of(valid_frames, potential.cutoff, shared_labels(valid_frames))
    evaluation = evaluate(
        model.eval(), graphs, batch_size=config.valid_batch_size, keep_values=True
    )
    energy = evaluation.errors.get(ENERGY_PER_ATOM)
    forces = evaluation.errors.get(fields.FORCES)
    charges = evaluation.errors.get(fields.CHARGES)
    correlation, within = None, None
    if charges is not None:
        correlation, within = correlations(*evaluation.values[fields.CHARGES], valid_frames)
    first = train_frames[: TIMED_STEPS * config.batch_size]
    trained_on = graphs_of(first, potential.cutoff, config.loss.properties)
    return RunResult(
        row=row,
        seed=seed,
        steps=steps,
        energy_rmse=None if energy is None else energy.rmse / MEV,
        energy_mae=None if energy is None else energy.mae / MEV,
        forces_rmse=None if forces is None else forces.rmse / MEV,
        forces_mae=None if forces is None else forces.mae / MEV,
        charge_correlation=correlation,
        charge_correlation_within_elements=within,
        charge_mae=None if charges is None else charges.mae * 1000.0,
        supervised=config.loss.weights.charges > 0,
        parameters=sum(p.numel() for p in potential.parameters() if p.requires_grad),
        seconds_per_training_step=training_step_seconds(model, trained_on, config),
        milliseconds_per_evaluation=1000.0 * evaluation_seconds(model, graphs),
    )


def correlations(
    reference: NDArray[np.float64], predicted: NDArray[np.float64], frames: Sequence[Atoms]
) -> tuple[float | None, float | None]:
    """Pearson's correlation of charges, over all atoms and within the elements.

    None where one of the two is constant: then it is not defined.
    """
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    centred = [reference.copy(), predicted.copy()]
    for element in np.unique(numbers):
        for values in centred:
            values[numbers == element] -= values[numbers == element].mean()
    return _pearson(reference, predicted), _pearson(*centred)


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 1e-12 else None


def training_step_seconds(model: Differentiated, graphs: list[Data], config: TrainConfig) -> float:
    """Median processor time of loss and gradient of a batch of the configured size."""
    objective = Objective(model, config.loss, Processes(0, 1, torch.device("cpu")))
    times = []
    for start in range(0, len(graphs), config.batch_size):
        batch = list(range(start, min(start + config.batch_size, len(graphs))))
        begin = time.process_time()
        objective.gradients(graphs, batch)
        times.append(time.process_time() - begin)
    model.zero_grad(set_to_none=True)
    return statistics.median(times)


def evaluation_seconds(model: Differentiated, graphs: Sequence[Data]) -> float:
    """Median processor time of energy and forces of one structure."""
    model.eval()
    times = []
    for structure in graphs[:TIMED_STRUCTURES]:
        graph = graph_dict(collate([structure]))
        begin = time.process_time()
        model(graph)
        times.append(time.process_time() - begin)
    return statistics.median(times)
