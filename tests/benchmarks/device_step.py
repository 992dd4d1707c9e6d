"""Steps on a GPU: whether they are the CPU's, how long they take and what they need of its memory.

    python tests/benchmarks/device_step.py --json device.json
    python tests/benchmarks/device_step.py --device cpu -n 192 -n 1536 --steps 5

For PaiNN 64×3, r_c 5 Å, float32, random weights, without a head, with phi and with phi-coulomb:

* parity: energy, forces, stress and charges of 192 and 648 atoms of water and of a molecule, along
  a walk of five steps with the caches on, beside a cold CPU evaluation of each; in float64 too.
  Ends with status 1 where they differ by more than tests/test_cuda.py allows.
* waits: reads of the device by the CPU in a reused step, as CUDA itself reports them
  (``torch.cuda.set_sync_debug_mode``), beside what tests/serving/test_device_step.py counts.
* time: MD steps, ms and µs/atom, mean of whole steps of ASE's Langevin dynamics, rebuilds included.
* memory: MB/atom, largest allocation.

What `phicalc bench --device cuda` prints is its last two, of a model's own network.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from phicalc import PhiCalculator
from phicalc.bench.box import untrained_model
from phicalc.bench.report import GPU_SIZES
from phicalc.bench.steps import HEADS, heads_table
from phicalc.data.boxes import water_box
from phicalc.machine.device import resolve_device
from phicalc.machine.files import write_bytes, write_json
from phicalc.model.config import ModelConfig
from phicalc.serving.model_file import LoadedModel, load_model

# As in tests/test_cuda.py, energy per atom.
TOLERANCES = {
    "float32": {"energy": 1e-6, "forces": 1e-4, "stress": 1e-6, "charges": 1e-5},
    "float64": {"energy": 1e-9, "forces": 1e-6, "stress": 1e-8, "charges": 1e-6},
}


def network(heads: tuple[str, ...], dtype: str) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "backbone": {"kind": "painn", "features": 64, "layers": 3, "radial": 20},
            "cutoff": 5.0,
            "dtype": dtype,
            "heads": [{"kind": kind} for kind in heads],
        }
    )


def walk(atoms: Atoms, steps: int = 5) -> list[Atoms]:
    """Frames near enough to each other for one neighbour list."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(steps):
        atoms = atoms.copy()
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        frames.append(atoms)
    return frames


def results_of(calculator: PhiCalculator, atoms: Atoms) -> dict[str, np.ndarray]:
    calculator.get_property("energy", atoms)  # which fills all
    return {name: np.asarray(calculator.results[name]) for name in calculator.results}


def largest_differences(model: LoadedModel, device: str, atoms: Atoms) -> dict[str, float]:
    """Between the device, cached, and the CPU, cold; energy per atom."""
    there = PhiCalculator(load_model(model.data, device), device=device)
    found: dict[str, float] = {}
    for frame in walk(atoms):
        here = results_of(PhiCalculator(model, device="cpu", cache=False), frame)
        for name, value in results_of(there, frame).items():
            if name in TOLERANCES["float64"]:
                size = len(atoms) if name == "energy" else 1
                error = float(np.abs(value - here[name]).max()) / size
                found[name] = max(found.get(name, 0.0), error)
    return found


def parity(device: str) -> tuple[list[dict[str, object]], bool]:
    """One row per head, dtype and structure, and whether all agree."""
    molecule = water_box(20)
    molecule.pbc = False
    structures = {"192 atoms": water_box(64), "648 atoms": water_box(216), "cluster": molecule}
    rows: list[dict[str, object]] = []
    agree = True
    for head, kinds in HEADS.items():
        for dtype, allowed in TOLERANCES.items():
            model = untrained_model(network(kinds, dtype), [1, 8])
            for name, atoms in structures.items():
                errors = largest_differences(model, device, atoms)
                fine = all(errors[key] <= allowed[key] for key in errors)
                agree = agree and fine
                rows.append({"head": head, "dtype": dtype, "structure": name, **errors})
                shown = ", ".join(f"{key} {error:.1e}" for key, error in errors.items())
                print(f"{head}, {dtype}, {name}: {shown}{'' if fine else '   DIFFER'}")
    return rows, agree


def waits(device: str, heads: tuple[str, ...]) -> Counter[str]:
    """Where the CPU waited for CUDA in a reused step, by the line that made it wait."""
    calculator = PhiCalculator(
        load_model(untrained_model(network(heads, "float32"), [1, 8]).data, device), device=device
    )
    *before, last = walk(water_box(64), 4)
    for frame in before:
        calculator.get_property("energy", frame)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calculator.get_property("energy", last)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = [w for w in caught if "synchronizing" in str(w.message)]
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-n", "--size", type=int, action="append", help="atoms; repeatable")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time for a box")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}")
    rows, agree = parity(str(device))
    waited = {head: waits(str(device), kinds) for head, kinds in HEADS.items() if on_gpu}
    for head, found in waited.items():
        print(f"{head}: waits {found.total()} times in a reused step of 192 atoms {dict(found)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        write_bytes(path, untrained_model(network((), "float32"), [1, 8]).data)
        table = heads_table(
            path,
            arguments.size or GPU_SIZES,
            steps=arguments.steps,
            seconds=arguments.seconds,
            device=device,
            progress=lambda row: print(
                f"{row.heads}, {row.atoms} atoms: {1e3 * row.seconds:.2f} ms, "
                f"{row.microseconds_per_atom:.2f} µs/atom, {row.memory_per_atom:.3f} MB/atom, "
                f"{row.solver_iterations:.1f} iterations"
            ),
        )
    if arguments.json is not None:
        steps = [
            {
                **vars(row),
                "microseconds_per_atom": row.microseconds_per_atom,
                "memory_per_atom": row.memory_per_atom,
            }
            for row in table
        ]
        content = {"device": name, "parity": rows, "waits": waited, "steps": steps}
        write_json(arguments.json, content)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
