"""The network alone, TorchScript against torch.export and AOTInductor, in turns.

    python tests/benchmarks/compiled_network.py 64             # molecules of water
    python tests/benchmarks/compiled_network.py 64 --dynamic   # for any number of atoms and edges

PaiNN 64×3 without heads, r_c 5 Å, float32, one thread: energy and its gradient in the edge vectors.
Needs a C++ compiler and takes minutes of it. What depends on the numbers in a tensor (the padded
neighbour rows) is worked out in Python and given to the compiled part, since an exported program
cannot; ``rows too`` counts it. Why there is no second backend: :mod:`phicalc.serving.torchscript`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from phicalc import fields
from phicalc.data.boxes import water_box
from phicalc.data.tensors import joined, structure_tensors
from phicalc.model.config import ModelConfig
from phicalc.model.derivatives import Differentiated
from phicalc.model.potential import Potential
from phicalc.nn import painn
from phicalc.serving.export import describe
from phicalc.serving.model_file import load_model, model_bytes

CUTOFF = 5.0
own_rows = painn.neighbour_rows


class Compiled:
    """The potential as a function of tensors, its rows among them."""

    def __init__(self, potential: Potential, graph: dict[str, Tensor], block: int) -> None:
        self.potential, self.names, self.block = potential, list(graph), block

    def arguments(self, graph: dict[str, Tensor]) -> list[Tensor]:
        """Order, rank, place of every edge, senders of each block of rows, and the graph."""
        edge_index, vectors = graph[fields.EDGE_INDEX], graph[fields.EDGE_VECTORS]
        count, edges = graph[fields.SPECIES].shape[0], vectors.shape[0]
        numbered = torch.arange(edges, dtype=torch.float64) + 1.0
        rows = own_rows(edge_index, vectors, numbered, count, CUTOFF, self.block)
        place = torch.empty(edges, dtype=torch.int64)
        filled = torch.nonzero(rows.gates).squeeze(1)
        place[rows.gates[filled].long() - 1] = filled
        shapes = list(zip(rows.atoms, rows.widths, strict=True))
        parts = rows.senders.split([n * width for n, width in shapes])
        blocks = [p.view(s).clone() for p, s in zip(parts, shapes, strict=True)]
        return [rows.order, rows.rank, place, *blocks, *graph.values()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        order, rank, place, *rest = tensors
        blocks = rest[: -len(self.names)]
        graph = dict(zip(self.names, rest[-len(self.names) :], strict=True))
        vectors = graph[fields.EDGE_VECTORS].detach().requires_grad_(True)
        graph[fields.EDGE_VECTORS] = vectors

        def given_rows(edge_index, edge_vectors, edge_gates, num_nodes, cutoff, block, counts=None):
            senders = torch.cat([b.reshape(-1) for b in blocks])
            padding = torch.zeros(senders.shape[0], 3, dtype=edge_vectors.dtype)
            padding = padding + torch.tensor([cutoff, 0.0, 0.0], dtype=edge_vectors.dtype)
            gates = torch.zeros(senders.shape[0], dtype=edge_gates.dtype)
            atoms, widths = [b.shape[0] for b in blocks], [b.shape[1] for b in blocks]
            padded = padding.index_copy(0, place, edge_vectors)
            gates = gates.index_copy(0, place, edge_gates)
            return painn.Rows(order, rank, atoms, widths, senders, padded, gates)

        painn.neighbour_rows = given_rows
        try:
            energy = self.potential(graph)[fields.ENERGY]
            (gradient,) = torch.autograd.grad(energy.sum(), vectors)
        finally:
            painn.neighbour_rows = own_rows
        return energy, gradient


class Traced(torch.nn.Module):
    def __init__(self, function: torch.fx.GraphModule) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(*tensors)


def compiled(network: Compiled, graph: dict[str, Tensor], dynamic: bool, path: Path):
    """Traced, exported, compiled and loaded."""
    arguments = network.arguments(graph)
    mode = "symbolic" if dynamic else "real"
    traced = make_fx(network, tracing_mode=mode, _allow_non_fake_inputs=True)(*arguments)
    shapes = None
    if dynamic:
        n, e, w = (torch.export.Dim(name, min=8) for name in "new")
        of = {name: {0: n} for name in (fields.SPECIES, fields.POSITIONS, fields.BATCH)}
        of |= {fields.EDGE_INDEX: {1: e}, fields.EDGE_VECTORS: {0: e}}
        of_rows = ({0: n}, {0: n}, {0: e}, {0: n, 1: w})
        shapes = ((*of_rows, *[of.get(name, {}) for name in network.names]),)
    program = torch.export.export(
        Traced(traced), tuple(arguments), dynamic_shapes=shapes, strict=False
    )
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


def measure(molecules: int, dynamic: bool, turns: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    potential = Potential(ModelConfig(heads=[]), [1, 8]).eval().requires_grad_(False)
    script = load_model(model_bytes(Differentiated(potential).eval(), describe(potential)))
    atoms = water_box(molecules, seed=0)
    graph = joined([structure_tensors(atoms, CUTOFF, 0.0)])
    block = 4096 if dynamic else max(painn.SMALL_BLOCK, (len(atoms) + 3) // 4)
    network = Compiled(potential, graph, block)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fast = compiled(network, graph, dynamic, Path(folder) / "network.pt2")
        print(f"{len(atoms)} atoms, compiled in {time.perf_counter() - start:.0f} s", flush=True)
        arguments = network.arguments(graph)
        difference = (fast(*arguments)[0] - script(graph)[fields.ENERGY]).abs()
        print(f"energies differ by {float(difference):.1e} eV")
        ways = {
            "TorchScript": lambda: script(graph),
            "AOTInductor": lambda: fast(*arguments),
            "rows too": lambda: fast(*network.arguments(graph)),
        }
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(turns + 4):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                way()
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, times in spent.items():
        wall, cpu = (1e3 * statistics.median(column) for column in zip(*times[4:], strict=True))
        print(f"{name:12s} wall {wall:7.1f} ms, CPU {cpu:7.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("molecules", type=int)
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--turns", type=int, default=20)
    given = parser.parse_args()
    measure(given.molecules, given.dynamic, given.turns)
