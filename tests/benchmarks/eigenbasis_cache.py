"""What the cached Laplacian eigenbasis saves, and that it changes nothing.

    python tests/benchmarks/eigenbasis_cache.py iterations   # two minutes on one core
    python tests/benchmarks/eigenbasis_cache.py identity     # 1,000 MD steps, about ten minutes

``iterations`` replays the Laplacians of 100 steps of 300 K water (648 atoms, 0.5 fs, the shipped
model) and of a vibrating polymer chain (CH2)100 through the solver, without and with the basis,
warm-started on both sides: mean iterations and wall time of solve and basis upkeep.
``identity`` runs 1,000 steps of MD with a float64 model and solves each step again, cold and
without a basis; prints the largest deviations of energy and force, and the share of steps on
which the neighbour topology was unchanged.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from torch import Tensor

from phicalc import PhiCalculator, fields
from phicalc.data.boxes import water_box
from phicalc.data.neighbours import NeighbourList
from phicalc.electrostatics.laplacian import edge_weights, silence_sparse_notice
from phicalc.electrostatics.solvers.cache import SolverCache, eigenbasis
from phicalc.electrostatics.solvers.eigenbasis import lowest_eigenvectors
from phicalc.electrostatics.solvers.poisson import solve_iterative

MODEL = Path(__file__).resolve().parents[2] / "models" / "nacl-water-phi.pt"
CUTOFF, SIGMA = 5.0, 2.0
SKIPPED = 20  # steps in which warm starts and the choice of the basis settle


@dataclass
class Step:
    """One solve to be done: topology number, weights, edges, source."""

    topology: int
    weights: Tensor
    edge_index: Tensor
    source: Tensor


def water_at_300_K(calculator: PhiCalculator, molecules: int, steps: int) -> Langevin:
    """Langevin dynamics of a box of water, settled for ``steps`` steps."""
    atoms = water_box(molecules, seed=0)
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=40)
    atoms.set_constraint(FixCom())
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=300.0,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    )
    dynamics.run(steps)
    return dynamics


def laplacian_steps(frames: list[Atoms], source: list[Tensor]) -> list[Step]:
    """Edge weights of a trajectory, with the topology numbers of the skin list."""
    neighbours = NeighbourList(CUTOFF, skin=1.0)
    steps = []
    for atoms, s in zip(frames, source, strict=True):
        found = neighbours.update(atoms.positions, atoms.cell.array, atoms.pbc)
        distances = torch.linalg.vector_norm(found.edge_vectors, dim=1)
        weights = edge_weights(distances, CUTOFF, SIGMA)
        steps.append(Step(neighbours.topology, weights, found.edge_index, s))
    return steps


def water_steps(number: int) -> list[Step]:
    """648 atoms of water."""
    calculator = PhiCalculator(MODEL)
    dynamics = water_at_300_K(calculator, 216, 200)
    frames, source = [], []

    def record() -> None:
        frames.append(dynamics.atoms.copy())
        source.append(calculator._last_evaluation().output[fields.SOURCE].clone())

    dynamics.attach(record)
    dynamics.run(number - 1)
    return laplacian_steps(frames, source)


def chain_steps(number: int) -> list[Step]:
    """A stretched (CH2)100 whose atoms vibrate, 0.05 Å at 10 to 90 THz, sampled every 0.5 fs."""
    rng = np.random.default_rng(0)
    units_along = np.arange(100)
    zigzag = 0.42 * (-1.0) ** units_along
    carbon = np.stack([1.27 * units_along, zigzag, np.zeros(100)], 1)
    out = np.stack([np.zeros(100), 0.63 * np.sign(zigzag), np.full(100, 0.89)], 1)
    hydrogens = np.concatenate([carbon + out, carbon + out * [1, 1, -1]])
    atoms = Atoms("C100H200", np.concatenate([carbon, hydrogens]))
    modes = rng.normal(size=(4, 300, 3)) * 0.05 / 2
    frequency = rng.uniform(0.01, 0.09, size=(4, 300, 1))  # per fs
    phase = rng.uniform(0, 2 * np.pi, size=(4, 300, 1))
    base = torch.tensor(np.where(atoms.numbers == 6, -2.55, -2.20))
    frames, source = [], []
    for step in range(number):
        frame = atoms.copy()
        wave = np.sin(2 * np.pi * frequency * 0.5 * step + phase)
        frame.positions += (modes * wave).sum(0)
        frames.append(frame)
        source.append(base + 0.2 * torch.tensor(wave[0, :, 0]))
    return laplacian_steps(frames, source)


def replay(steps: list[Step], mu: float, size: int, policy: str) -> dict[str, float | str]:
    """Mean iterations and milliseconds per step of the solver with a given use of the basis."""
    solve = torch.jit.script(solve_iterative)
    cache = SolverCache(eigenbasis(size), policy)
    mu_tensor = torch.tensor(mu, dtype=torch.float64)
    iterations, seconds = [], []
    with torch.jit.optimized_execution(False):
        for step in steps:
            start = time.perf_counter()
            basis, guess = cache.held(len(step.source)), cache.guess()
            b = mu_tensor * step.source
            phi, count, residual = solve(step.weights, step.edge_index, mu_tensor, b, basis, guess)

            def make(last: Tensor | None, step: Step = step) -> Tensor:
                num_atoms = len(step.source)
                return lowest_eigenvectors(step.weights, step.edge_index, num_atoms, size, last)[1]

            cache.observe(step.topology, make, phi, count, residual)
            seconds.append(time.perf_counter() - start)
            iterations.append(count)
    return {
        "mu": mu,
        "k": size,
        "policy": policy,
        "iterations": float(np.mean(iterations[SKIPPED:])),
        "ms": 1e3 * float(np.mean(seconds[SKIPPED:])),
        "refreshes": cache.info.refreshes,
        "mode": cache.info.mode,
    }


def measure_iterations() -> list[dict]:
    silence_sparse_notice()
    rows = []
    for name, steps in (("water 648", water_steps(120)), ("chain 300", chain_steps(120))):
        for mu in (0.1, 0.01, 0.001):
            choices = [(16, "never"), (16, "always"), (32, "always"), (64, "always")]
            choices += [(16, "auto"), (32, "auto"), (64, "auto")]
            for size, policy in choices:
                row = {"system": name, **replay(steps, mu, size, policy)}
                rows.append(row)
                print(
                    f"{name} μ {mu:<5g} k {row['k']:>2} {policy:6s} iterations "
                    f"{row['iterations']:6.1f}  {row['ms']:6.2f} ms  ({row['mode']})",
                    flush=True,
                )
    return rows


def measure_identity(model: Path, molecules: int, number: int) -> dict:
    """Largest deviation of a cached run from cold, uncached solves of the same structures."""
    cached, cold = PhiCalculator(model), PhiCalculator(model, cache=False)
    dynamics = water_at_300_K(cached, molecules, 200)
    atoms = dynamics.atoms
    before = cached.cache_info()
    deviations = []

    def compare() -> None:
        reference = atoms.copy()
        reference.info = {}
        reference.calc = cold
        energy = abs(atoms.get_potential_energy() - reference.get_potential_energy()) / len(atoms)
        force = np.abs(
            atoms.get_forces(apply_constraint=False) - reference.get_forces(apply_constraint=False)
        ).max()
        deviations.append((energy, force))

    dynamics.attach(compare)
    dynamics.run(number - 1)
    info = cached.cache_info()
    rebuilds = info["neighbour_rebuilds"] - before["neighbour_rebuilds"]
    largest = np.max(deviations, axis=0)
    return {
        "atoms": len(atoms),
        "steps": len(deviations),
        "energy_eV_per_atom": float(largest[0]),
        "force_eV_per_A": float(largest[1]),
        "topology_unchanged": 1.0 - rebuilds / number,
        "cached": info,
        "cold": cold.cache_info(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["iterations", "identity"])
    parser.add_argument("--model", type=Path, default=MODEL, help="identity: a float64 model")
    parser.add_argument("--molecules", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "iterations":
        result = measure_iterations()
    else:
        result = measure_identity(arguments.model, arguments.molecules, arguments.steps)
        print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2))
