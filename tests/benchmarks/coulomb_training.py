"""What a head adds to a training step on periodic boxes of salt water, as a ratio of one run.

``python tests/benchmarks/coulomb_training.py [--batch 1] [--rounds 9] [--device cpu]`` takes steps
(graph to gradients, loss on energy and forces) of the network of models/nacl-water.yaml with and
without a head in turns, and prints the median of each and its ratio to no head.
"""

import argparse
import statistics
import time

import torch

from phicalc import fields
from phicalc.data.boxes import salt_water
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.model.config import (
    LocalChargesConfig,
    ModelConfig,
    PaiNNConfig,
    PhiConfig,
    PhiCoulombConfig,
    QEqConfig,
)
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential

CUTOFF = 4.5
FORMAL = {"H": 0.4, "O": -0.8, "Na": 1.0, "Cl": -1.0}
HEADS = {
    "none": [],
    "phi": [PhiConfig()],
    "phi-coulomb": [PhiCoulombConfig(sigma=1.0, formal_charges=FORMAL)],
    "qeq": [QEqConfig()],
    "local": [LocalChargesConfig()],
}


def step(model: Differentiated, graph: dict[str, torch.Tensor]) -> float:
    """Seconds of one step, as ``phicalc.train.objective`` takes it."""
    start = time.perf_counter()
    output = model(graph)
    loss = output[fields.ENERGY].square().sum() + output[fields.FORCES].square().sum()
    loss.backward(inputs=[p for p in model.parameters() if p.requires_grad])
    if loss.is_cuda:
        torch.cuda.synchronize()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    boxes = [salt_water(60, 4, seed=seed) for seed in range(arguments.batch)]
    graph = graph_dict(collate([to_graph(box, CUTOFF) for box in boxes]).to(arguments.device))
    models = {}
    for name, heads in HEADS.items():
        torch.manual_seed(0)
        config = ModelConfig(
            cutoff=CUTOFF, total_charge=False, backbone=PaiNNConfig(radial=16), heads=heads
        )
        models[name] = Differentiated(Potential(config, [1, 8, 11, 17])).to(arguments.device)
        models[name].train()
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(arguments.rounds + 2):
        for name, model in models.items():
            seconds = step(model, graph)
            if turn > 1:  # warm
                times[name].append(seconds)
    bare = statistics.median(times["none"])
    print(f"{arguments.batch} box(es) of {len(boxes[0])} atoms, {arguments.device}, one thread")
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{name:12} {1e3 * middle:7.1f} ms  {middle / bare:5.2f} times no head")


if __name__ == "__main__":
    main()
