"""What a step asks of a device: launches, numbers that the CPU waits for, and what is sent.

Counted on `tests.accelerator`, in place of a GPU; the time of a step is not known from here, see
tests/benchmarks/device_step.py.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ase import Atoms

from phicalc.data.boxes import water_box
from phicalc.electrostatics.solvers.looks import LOOK_EVERY
from phicalc.model.config import ModelConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.serving.eager import EagerModel
from phicalc.serving.evaluation import conditions_of, evaluate_many
from phicalc.serving.evaluator import Evaluation, Evaluator
from phicalc.serving.export import describe
from tests.accelerator import DEVICE, Accelerator, moved

# heads → launches of a step of 192 atoms, with head-room; today's number beside it
LAUNCHES = {(): 850, ("phi",): 1050, ("phi-coulomb",): 1900}  # 772, 949, 1734


def model_of(heads: Sequence[str], device: torch.device, dtype: str = "float32") -> EagerModel:
    """PaiNN of three layers with these heads, random weights; the same for each device."""
    config = ModelConfig.model_validate(
        {
            "heads": [{"kind": kind} for kind in heads],
            "backbone": {"kind": "painn", "features": 16, "layers": 3},
            "dtype": dtype,
        }
    )
    torch.manual_seed(0)
    potential = Potential(config, [1, 8])
    module = Differentiated(potential).eval().requires_grad_(False)
    known = describe(potential)
    return EagerModel(moved(module) if device == DEVICE else module, known, device)


def walk(evaluator: Evaluator, atoms: Atoms, steps: int = 3) -> list[Evaluation]:
    """Evaluations along a walk short enough for one neighbour list."""
    rng, atoms = np.random.default_rng(0), atoms.copy()
    found = []
    for _ in range(steps):
        atoms.positions += rng.normal(0, 0.003, atoms.positions.shape)
        found += evaluator(atoms, conditions_of(atoms))
    return found


def assert_same(found: Evaluation, expected: Evaluation, tolerance: float) -> None:
    for name, value in expected.result.properties.items():
        np.testing.assert_allclose(found.result.properties[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("heads", LAUNCHES, ids="+".join)
def test_a_reused_step(heads):
    """Two reads, of the neighbours and of the results; of a solve by iterations, a few more."""
    atoms = water_box(64)
    expected = walk(Evaluator([model_of(heads, torch.device("cpu"))], 1.0, True, 1), atoms)
    with Accelerator() as accelerator:
        evaluator = Evaluator([model_of(heads, DEVICE)], 1.0, True, 1)
        found = walk(evaluator, atoms, 2)
        before = evaluator.cache_info()["solver_iterations"]
        moving = atoms.copy()
        moving.positions = walk_positions(atoms, 3)
        accelerator.forget()
        found += evaluator(moving, conditions_of(moving))
        iterations = evaluator.cache_info()["solver_iterations"] - before
    assert evaluator.cache_info()["neighbour_rebuilds"] == 1
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, 1e-5)  # single precision, in rows of another width
    looks = -(-int(iterations) // LOOK_EVERY)
    assert (iterations > 0) == (heads == ("phi-coulomb",))
    # the widths of charges: how many there are, and the widest
    of_widths = 2 if "phi-coulomb" in heads else 0
    assert accelerator.reads.total() == 2 + looks + of_widths
    assert accelerator.uploads == 1, "positions"
    assert accelerator.launches.total() <= LAUNCHES[heads]


def walk_positions(atoms: Atoms, steps: int) -> np.ndarray:
    """Where `walk` is after so many steps."""
    rng, positions = np.random.default_rng(0), atoms.positions.copy()
    for _ in range(steps):
        positions += rng.normal(0, 0.003, positions.shape)
    return positions


@pytest.mark.parametrize("heads", [("phi",), ("qeq",), ("local",), ("phi", "qeq")], ids="+".join)
def test_larger_structures_and_molecules(heads):
    """Solves by iterations and none, with a basis and without, in a crystal and a cluster."""
    for count, periodic in ((100, True), (30, False)):
        atoms = water_box(count)
        atoms.pbc = periodic
        cpu = Evaluator([model_of(heads, torch.device("cpu"), "float64")], 1.0, True, 1)
        expected = walk(cpu, atoms)
        with Accelerator() as accelerator:
            evaluator = Evaluator([model_of(heads, DEVICE, "float64")], 1.0, True, 1)
            found = walk(evaluator, atoms)
            assert accelerator.launches
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, 1e-9)
        assert evaluator.cache_info() == cpu.cache_info()


def test_a_changing_cell_is_sent_and_nothing_else():
    atoms = water_box(64)
    with Accelerator() as accelerator:
        evaluator = Evaluator([model_of(("phi",), DEVICE)], 1.0, True, 1)
        walk(evaluator, atoms, 1)
        atoms.set_cell(1.001 * atoms.cell, scale_atoms=True)
        accelerator.forget()
        walk(evaluator, atoms, 1)
        assert accelerator.reads.total() == 2
        assert accelerator.uploads == 3, "positions, the cell, and how it has deformed"
    assert evaluator.cache_info()["neighbour_rebuilds"] == 1


def test_a_batch():
    """Structures evaluated together, as `predict` does."""
    frames = [water_box(count) for count in (4, 9)]
    expected, found = [], []
    for device, results in ((torch.device("cpu"), expected), (DEVICE, found)):
        with Accelerator():
            model = model_of(("phi", "qeq"), device)
            conditions = [conditions_of(atoms) for atoms in frames]
            for group in evaluate_many(model, frames, conditions, 2):
                results += group
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.charges, other.charges, rtol=0, atol=1e-9)


def test_a_device_counts_what_it_is_asked_for():
    """The counts can fail: each of these makes a GPU's program wait."""
    with Accelerator() as accelerator:
        values = torch.arange(4.0).to(DEVICE)
        assert accelerator.uploads == 1
        for read in (
            lambda: float(values[0]),
            lambda: values.tolist(),
            lambda: values.cpu(),
            lambda: bool((values > 1).any()),
            lambda: values.nonzero(),
            lambda: values[values > 1],
            lambda: torch.linalg.inv(torch.eye(3, device=DEVICE)),
        ):
            accelerator.forget()
            read()
            assert accelerator.reads.total() == 1
        accelerator.forget()
        assert (values[1:].view(3, 1) * 2).cpu().tolist() == [[2.0], [4.0], [6.0]]
        assert accelerator.launches.total() == 1
        with pytest.raises(AssertionError, match="one of the CPU"):
            values + torch.ones(4)
