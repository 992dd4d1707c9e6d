"""What an ablation measures of a run that has ended: errors, charges, times."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.data.read import has_label
from phicalc.geometric import Data
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.derivatives import Differentiated
from phicalc.train.config import TrainConfig
from phicalc.train.dataset import graphs_of, read_frames
from phicalc.train.distributed import Processes
from phicalc.train.evaluation import evaluate_structures
from phicalc.train.metrics import ENERGY_PER_ATOM
from phicalc.train.objective import Objective
from phicalc.units import MEV

TIMED_STEPS, TIMED_STRUCTURES = 5, 20


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


def measure(config: TrainConfig, row: str, seed: int, steps: int) -> RunResult:
    """Errors, charges and times of a run's best weights on its own validation set."""
    train_frames, valid_frames = read_frames(config)
    best = config.output / "best.pt"
    evaluation = evaluate_structures(
        best, valid_frames, device="cpu", batch_size=config.valid_batch_size, keep_values=True
    )
    potential = load_checkpoint(best).potential
    model = Differentiated(potential).eval()
    energy = evaluation.errors.get(ENERGY_PER_ATOM)
    forces = evaluation.errors.get(fields.FORCES)
    charges = evaluation.errors.get(fields.CHARGES)
    correlation, within = None, None
    if charges is not None:
        labelled = [atoms for atoms in valid_frames if has_label(atoms, fields.CHARGES)]
        correlation, within = correlations(*evaluation.values[fields.CHARGES], labelled)
    graphs = graphs_of(valid_frames, potential.cutoff, [])
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
