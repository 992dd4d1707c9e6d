"""One MD step of phicalc beside SchNetPack's PaiNN of the same size, in one run.

    python tests/benchmarks/schnetpack_step.py --json step.json

Both codes step ASE's Langevin dynamics along the same recorded motion of liquid water: PaiNN with
64 features, 3 layers, 20 radial functions, r_c 5 Å, float32. Every competitor is a process of its
own, and they take turns, ten steps at a time. Weights are random; they do not matter for the time,
nor do the forces, since each step starts from the next recorded frame.

* phicalc: `PhiCalculator`, Φ head, ZBL and stress included, so energy, forces, stress and charges.
* schnetpack: `SpkCalculator`, energy and forces only, MatScipy neighbours under SchNetPack's own
  skin list with the same skin of 1 Å (rebuilt as rarely as ours; its default of 0.3 Å and its
  ASE list are slower), model in evaluation mode.
* schnetpack, memory kept: the same in a process whose C library keeps freed memory from its start
  (`MALLOC_…` below), which is what `phicalc.machine.allocator` does for ours.
* schnetpack, scripted: that, and `torch.jit.script` of its model.

* phicalc, many-body: phicalc with the backbone of kind density in its default size.

The last column is phicalc's time over each one's. Without SchNetPack only phicalc is measured.

* phicalc, other file: with `--against MODEL.pt`, a model file in the same calculator. `--write`
  makes one of the network above, so that the code which another version scripts runs in turns with
  this one's:

    PYTHONPATH=OTHER-VERSION python tests/benchmarks/schnetpack_step.py --write before.pt
    python tests/benchmarks/schnetpack_step.py --against before.pt

SchNetPack 2.1.1 beside torch 2.13 wants an environment of its own:

    pip install --no-deps schnetpack==2.1.1 dirsync fasteners torch-ema torchmetrics omegaconf \
        pytorch-lightning lightning-utilities hydra-core antlr4-python3-runtime==4.9.3 \
        progressbar2 python-utils
    pip install . h5py tqdm pyyaml tensorboard

and one line of it mended: in `schnetpack/data/loader.py` take `T_co` out of the import from
`torch.utils.data.dataloader`, which no longer has it, and write
`T_co = typing.TypeVar("T_co", covariant=True)` below the imports.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin

from phicalc.data.boxes import water_box

CUTOFF, SKIN = 5.0, 1.0
FEATURES, LAYERS, RADIAL = 64, 3, 20
TIMESTEP = 0.5 * units.fs
BLOCK = 10
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
OTHER_FILE = "phicalc, other file"
MANY_BODY = "phicalc, many-body"
COMPETITORS = {
    "phicalc": {},
    MANY_BODY: {},
    OTHER_FILE: {},
    "schnetpack": {},
    "schnetpack, memory kept": KEEP_MEMORY,
    "schnetpack, scripted": KEEP_MEMORY,
}


class FlexibleWater(Calculator):
    """Springs in each molecule and a Lennard-Jones wall between oxygens: water that moves right.

    Bonds k (r − r₀)², H–H k' (d − d₀)², oxygens as in SPC without its charges.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        positions = atoms.positions.reshape(-1, 3, 3)
        forces = np.zeros_like(positions)
        for a, b, rest, stiffness in (
            (0, 1, 0.9572, 23.0),
            (0, 2, 0.9572, 23.0),
            (1, 2, 1.5139, 5.0),
        ):
            bond = positions[:, b] - positions[:, a]
            length = np.linalg.norm(bond, axis=1, keepdims=True)
            pull = 2.0 * stiffness * (length - rest) * bond / length
            forces[:, a] += pull
            forces[:, b] -= pull
        box = atoms.cell.lengths()
        for i, oxygen in enumerate(positions[:, 0]):
            offset = positions[:, 0] - oxygen
            offset -= box * np.round(offset / box)
            square = (offset**2).sum(axis=1)
            near = np.flatnonzero((square < 16.0) & (square > 0.0))
            sixth = (3.166**2 / square[near]) ** 3
            wall = 24.0 * 0.00674 * (2.0 * sixth**2 - sixth) / square[near]
            forces[i, 0] -= (wall[:, None] * offset[near]).sum(axis=0)
        self.results = {"energy": 0.0, "forces": forces.reshape(-1, 3)}


def recorded_motion(molecules: int, steps: int) -> tuple[Atoms, np.ndarray, np.ndarray]:
    """A box of water at 300 K, and its positions and momenta at each of so many steps."""
    atoms = water_box(molecules)
    random = np.random.default_rng(0)
    widths = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
    atoms.set_momenta(widths * random.standard_normal((len(atoms), 3)))
    atoms.calc = FlexibleWater()
    dynamics = langevin(atoms)
    dynamics.run(200)
    positions, momenta = [], []
    for _ in range(steps):
        dynamics.run(1)
        positions.append(atoms.get_positions())
        momenta.append(atoms.get_momenta())
    atoms.calc = None
    return atoms, np.array(positions), np.array(momenta)


def langevin(atoms: Atoms) -> Langevin:
    return Langevin(
        atoms,
        TIMESTEP,
        temperature_K=300.0,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    )


def phicalc_model(many_body: bool = False) -> bytes:
    """A model file of the network that is measured, with random weights."""
    import torch

    from phicalc.model.config import DensityConfig, ModelConfig, PaiNNConfig
    from phicalc.model.derivatives import Differentiated
    from phicalc.model.potential import Potential
    from phicalc.serving.export import describe
    from phicalc.serving.model_file import model_bytes

    backbone = PaiNNConfig(features=FEATURES, layers=LAYERS, radial=RADIAL)
    if many_body:
        backbone = DensityConfig()
    torch.manual_seed(0)
    potential = Potential(ModelConfig(backbone=backbone, cutoff=CUTOFF), [1, 8])
    return model_bytes(Differentiated(potential), describe(potential))


def phicalc_calculator(model: bytes):
    from phicalc import PhiCalculator
    from phicalc.serving.model_file import load_model

    return PhiCalculator(load_model(model, "cpu"), device="cpu", skin=SKIN)


def schnetpack_calculator(scripted: bool):
    import schnetpack
    import torch
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.transform import MatScipyNeighborList, SkinNeighborList

    class InMemory(SpkCalculator):
        """Takes the model itself, where the original reads a pickle that torch refuses."""

        def _load_model(self, model_file):
            return model_file.eval()

    model = schnetpack.model.NeuralNetworkPotential(
        schnetpack.representation.PaiNN(
            FEATURES,
            LAYERS,
            radial_basis=schnetpack.nn.BesselRBF(RADIAL, CUTOFF),
            cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
        ),
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        output_modules=[
            schnetpack.atomistic.Atomwise(n_in=FEATURES, output_key="energy"),
            schnetpack.atomistic.Forces(),
        ],
    )
    neighbours = SkinNeighborList(MatScipyNeighborList(CUTOFF), cutoff_skin=SKIN)
    calculator = InMemory(model, neighbor_list=neighbours, energy_unit="eV", dtype=torch.float32)
    if scripted:
        calculator.model = torch.jit.script(calculator.model)
    return calculator


def compete(name: str, threads: int, against: Path | None, channel) -> None:
    """A competitor: receives a motion, then steps through ranges of its frames and tells times."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    make = {
        "phicalc": lambda: phicalc_calculator(phicalc_model()),
        MANY_BODY: lambda: phicalc_calculator(phicalc_model(many_body=True)),
        OTHER_FILE: lambda: phicalc_calculator(against.read_bytes()),
        "schnetpack, scripted": lambda: schnetpack_calculator(scripted=True),
    }.get(name, lambda: schnetpack_calculator(scripted=False))
    for atoms, positions, momenta in iter(channel.recv, None):
        atoms.calc = make()
        dynamics = langevin(atoms)
        forces = atoms.get_forces()
        for first in iter(channel.recv, None):
            seconds = []
            for frame in range(first, first + BLOCK):
                atoms.positions[:] = positions[frame]
                atoms.set_momenta(momenta[frame])
                start = time.perf_counter()
                forces = dynamics.step(forces)
                seconds.append(time.perf_counter() - start)
            channel.send(seconds)


def start(name: str, threads: int, against: Path | None):
    """A competitor's process, with its C library's settings, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    os.environ.update(COMPETITORS[name])
    try:
        process = context.Process(
            target=compete, args=(name, threads, against, theirs), daemon=True
        )
        process.start()
    finally:
        for variable in COMPETITORS[name]:
            del os.environ[variable]
    theirs.close()
    return process, ours


def measure(channels: dict, molecules: int, blocks: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of every step of every competitor on one box, block by block in turns."""
    motion = recorded_motion(molecules, (warm_up + blocks) * BLOCK)
    for channel in channels.values():
        channel.send(motion)
    seconds: dict[str, list[float]] = {name: [] for name in channels}
    for block in range(warm_up + blocks):
        for name, channel in channels.items():
            channel.send(block * BLOCK)
            taken = channel.recv()
            if block >= warm_up:
                seconds[name].extend(taken)
    for channel in channels.values():
        channel.send(None)
    return seconds


def report(atoms: int, seconds: dict[str, list[float]]) -> dict:
    """Print a table and return it: milliseconds per step, phicalc's time over each other's."""
    rows = {
        name: {
            "median_ms": 1e3 * median(taken),
            "mean_ms": 1e3 * sum(taken) / len(taken),
            "least_ms": 1e3 * min(taken),
        }
        for name, taken in seconds.items()
    }
    ours = rows["phicalc"]["mean_ms"]
    steps = len(seconds["phicalc"])
    print(
        f"\n{f'{atoms} atoms, {steps} steps':26}{'median ms':>12}{'mean ms':>12}{'phicalc is':>12}"
    )
    for name, row in rows.items():
        row["phicalc_over_this"] = ours / row["mean_ms"]
        columns = (row["median_ms"], row["mean_ms"], row["phicalc_over_this"])
        print(f"{name:26}{columns[0]:12.1f}{columns[1]:12.1f}{columns[2]:12.2f}")
    return {"atoms": atoms, "steps": steps, "competitors": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 648], help="atoms")
    parser.add_argument("--blocks", type=int, default=10, help=f"of {BLOCK} steps each")
    parser.add_argument("--warm-up", type=int, default=2, help="blocks that do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--against", type=Path, help="a model file to measure beside this code's")
    parser.add_argument("--write", type=Path, help="write this code's model file, and no more")
    options = parser.parse_args()
    if options.write:
        options.write.write_bytes(phicalc_model())
        return

    found = importlib.util.find_spec("schnetpack") is not None
    if not found:
        print("schnetpack is not installed here; see the top of this file")
    names = [name for name in COMPETITORS if found and name.startswith("schnetpack")]
    names = ["phicalc", MANY_BODY, *([OTHER_FILE] if options.against else []), *names]
    started = {name: start(name, options.threads, options.against) for name in names}
    channels = {name: channel for name, (_, channel) in started.items()}
    table = []
    for size in options.sizes:
        seconds = measure(channels, size // 3, options.blocks, options.warm_up)
        table.append(report(3 * (size // 3), seconds))
    for process, channel in started.values():
        channel.send(None)
        process.join()
    if options.json:
        content = {"threads": options.threads, "boxes": table}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
