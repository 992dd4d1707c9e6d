"""Several threads: each gets its own structure's numbers, or an error that says what to do."""

import contextlib
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as build_molecule
from ase.io import write

from phicalc import PhiCalculator, predict
from phicalc.errors import UnsupportedError
from phicalc.serving.evaluation import conditions_of
from phicalc.serving.evaluator import Evaluator

REFUSED = r"one thread at a time.*give each thread its own: copy\.deepcopy"
REPLACED = r"got those of another thread.*give each thread its own"


def shaken(seed: int) -> Atoms:
    atoms = build_molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def in_thread(function):
    """What a function gives, called in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


@pytest.fixture
def held_up(model, monkeypatch):
    """A calculator in the midst of an evaluation by another thread, which then goes on."""
    calculator, entered, leave = PhiCalculator(model), threading.Event(), threading.Event()
    evaluate = Evaluator._evaluate

    def slowly(*arguments):
        entered.set()
        assert leave.wait(60)
        return evaluate(*arguments)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Evaluator, "_evaluate", slowly)
        running = pool.submit(calculator.get_forces, shaken(0))
        assert entered.wait(60)
        monkeypatch.setattr(Evaluator, "_evaluate", evaluate)
        yield calculator
        leave.set()
        assert np.array_equal(
            running.result(timeout=60), PhiCalculator(model).get_forces(shaken(0))
        )


def test_a_second_thread_is_refused_while_the_first_computes(held_up):
    for refused in (
        lambda: held_up.get_potential_energy(shaken(1)),
        lambda: held_up.calculate(shaken(1), ["forces"]),
        lambda: held_up._evaluator(shaken(1), conditions_of(shaken(1))),
        held_up.reset,
    ):
        with pytest.raises(UnsupportedError, match=REFUSED):
            refused()


def test_what_another_thread_has_replaced_is_not_read(model):
    """Two threads in turns: getters give the right numbers, all else says why it does not."""
    calculator, mine, theirs = PhiCalculator(model), shaken(1), shaken(2)
    expected = PhiCalculator(model).get_forces(mine)
    calculator.calculate(mine)
    in_thread(lambda: calculator.calculate(theirs))
    for read in (
        lambda: calculator.results["energy"],
        lambda: calculator.energy_terms,
        lambda: calculator.potential,
        lambda: calculator.forces_spread,
        calculator.spectrum,
        calculator.get_potential_energy,
        calculator.export_properties,
    ):
        with pytest.raises(UnsupportedError, match=REPLACED):
            read()
    assert np.array_equal(calculator.get_forces(mine), expected)
    assert np.array_equal(calculator.results["forces"], expected)


def test_threads_that_calculate_one_structure_in_turn(model, tmp_path):
    atoms, other = shaken(0), shaken(1)
    atoms.calc = other.calc = calculator = PhiCalculator(model)
    atoms.get_potential_energy()
    atoms.rattle(0.01, seed=2)
    energy = in_thread(atoms.get_potential_energy)
    assert calculator.results["energy"] == energy  # it is the structure of both
    write(tmp_path / "a.extxyz", atoms)
    in_thread(other.get_potential_energy)
    with pytest.raises(UnsupportedError, match=REPLACED):
        calculator.results  # noqa: B018
    assert atoms.get_potential_energy() == energy


def test_one_thread_after_another(model):
    """A step each, by workers of a pool: the numbers of one thread, to the bit, read anywhere."""
    alone, shared = PhiCalculator(model), PhiCalculator(model)
    atoms, workers = shaken(3), [ThreadPoolExecutor(1) for _ in range(3)]
    for step in range(6):
        atoms.positions += 0.01
        forces = workers[step % 3].submit(shared.get_forces, atoms).result(timeout=60)
        assert np.array_equal(forces, alone.get_forces(atoms))
        assert shared.energy_terms == alone.energy_terms
        assert shared.results["energy"] == alone.results["energy"]
    for worker in workers:
        worker.shutdown()


@pytest.mark.parametrize("how", ["one model", "deepcopy", "predict"])
def test_each_with_its_own(model, how):
    """At once, over one loaded model or copies of one calculator: as one after another."""
    original = PhiCalculator(model)
    frames = [[shaken(10 * number + step) for step in range(5)] for number in range(4)]

    def forces(calculator, structures):
        if how == "predict":
            return [found.forces for found in predict(model, structures, device="cpu")]
        return [calculator.get_forces(atoms) for atoms in structures]

    own = [copy.deepcopy(original) if how == "deepcopy" else PhiCalculator(model) for _ in frames]
    expected = [forces(PhiCalculator(model), structures) for structures in frames]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(forces, own, frames))
    assert np.array_equal(found, expected)


def test_a_calculator_shared_at_once_is_right_or_refused(model):
    """However the threads fall: no wrong number."""
    calculator, start = PhiCalculator(model), threading.Barrier(4)
    frames = [shaken(seed) for seed in range(4)]
    expected = [PhiCalculator(model).get_potential_energy(atoms) for atoms in frames]

    def energies(atoms):
        found = []
        start.wait(60)
        for _ in range(30):
            with contextlib.suppress(UnsupportedError):
                found.append(calculator.get_potential_energy(atoms))
        return found

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(energies, frames))
    assert any(results)
    for found, energy in zip(results, expected, strict=True):
        assert found == pytest.approx([energy] * len(found), abs=1e-8)
