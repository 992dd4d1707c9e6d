"""How fast a model runs MD, where the time goes, and what its electrostatics and caches cost.

Each box of water has a process of its own. In it one Langevin run is driven by the model; beside
every step the same geometry is also evaluated without the cache and by the same network without
its heads. All ratios are therefore of one run, side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from phicalc.bench.box import BoxRequest, BoxResult, in_own_process
from phicalc.bench.steps import StepResult, heads_table
from phicalc.errors import ConfigError, UnsupportedError
from phicalc.machine.device import resolve_device
from phicalc.machine.files import replacing, write_json
from phicalc.serving.metadata import read_metadata

DEFAULT_SIZES = (192, 648, 1536)
"""Atoms in the boxes."""

GPU_SIZES = (192, 1536, 5184, 12288, 41472, 98304)
"""The same on a GPU."""

COLOURS = {
    "neighbours": "#7f7f7f",
    "backbone": "#1f77b4",
    "autograd": "#6baed6",
    "electrostatics": "#d62728",
    "ase": "#c7c7c7",
}


@dataclass(frozen=True)
class BenchResult:
    """What `run_bench` measured, with what it was measured on."""

    model: str
    backbone: str
    heads: list[str]
    dtype: str
    cutoff: float
    parameters: int
    device: str
    threads: int
    torch_version: str
    boxes: list[BoxResult]
    heads_table: list[StepResult] = field(default_factory=list)
    """The network with random weights under several heads, where that was asked for."""

    def write_json(self, path: str | Path) -> None:
        """Write everything, ratios included, as JSON."""
        content = asdict(self)
        for box, entry in zip(self.boxes, content["boxes"], strict=True):
            entry["step_seconds"] = box.step_seconds
            entry["steps_per_second"] = box.steps_per_second
            entry["electrostatics_share"] = box.electrostatics_share
            entry["uncached_share"] = box.uncached_share
        for row, entry in zip(self.heads_table, content["heads_table"], strict=True):
            entry["microseconds_per_atom"] = row.microseconds_per_atom
            entry["memory_per_atom"] = row.memory_per_atom
        write_json(Path(path), content)

    def write_plot(self, path: str | Path) -> None:
        """Draw speed, memory and the parts of a step against size, as a PNG."""
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        speed, parts, memory = figure.subplots(1, 3)
        _draw_speed(speed, self.boxes)
        _draw_parts(parts, self.boxes, bool(self.heads))
        _draw_memory(memory, self.boxes)
        heads = " + ".join([self.backbone, *self.heads])
        where = self.device if self.device != "cpu" else f"CPU, threads: {self.threads}"
        figure.suptitle(f"{self.model}: {heads}, {self.dtype}, r_c {self.cutoff:g} Å; {where}")
        with replacing(Path(path)) as new:
            figure.savefig(new, dpi=150)


def run_bench(
    model: str | Path,
    sizes: Sequence[int] = DEFAULT_SIZES,
    *,
    steps: int = 100,
    seconds: float = 60.0,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    heads: bool = False,
    progress: Callable[[BoxResult | StepResult], None] | None = None,
) -> BenchResult:
    """Measure MD steps per second, peak memory and the parts of a step on boxes of water.

    Parameters
    ----------
    model
        Model file that knows H and O.
    sizes
        Atoms per box, at least 3; rounded down to whole molecules.
    steps
        MD steps measured per box, after the warm-up.
    seconds
        No further step is begun in a box after this time, but three always are.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda[:n]"``.
    threads
        CPU threads; torch's own choice by default.
    seed
        Of the boxes and the dynamics.
    heads
        Measure plain steps of the model's network, with random weights, under each head of
        `phicalc.bench.steps.HEADS` too.
    progress
        Called with the result of each box as it is ready.

    Raises
    ------
    ConfigError
        A number out of range.
    ModelFileError
        No model file.
    UnsupportedError
        No such device, a model that does not know water, or a box that could not be run.
    ConvergenceError
        An electrostatic solve did not converge.
    """
    if not sizes or min(sizes) < 3:
        raise ConfigError(f"expected sizes of at least 3 atoms, got {list(sizes)}")
    for name, number in (("steps", steps), ("threads", threads)):
        if number is not None and number < 1:
            raise ConfigError(f"expected {name} ≥ 1, got {number}")
    metadata = read_metadata(model)
    if not {1, 8} <= set(metadata.elements):
        raise UnsupportedError(
            f"the boxes are of water; expected a model that knows H and O, got {metadata.symbols}"
        )
    target = resolve_device(device)
    boxes: list[BoxResult] = []
    for size in sizes:
        boxes.append(
            BoxResult(
                **in_own_process(
                    "phicalc.bench.box",
                    BoxRequest(str(model), size // 3, steps, seconds, str(target), threads, seed),
                )
            )
        )
        if progress is not None:
            progress(boxes[-1])
    table: list[StepResult] = []
    if heads:
        table = heads_table(
            model,
            sizes,
            steps=steps,
            seconds=seconds,
            device=target,
            threads=threads,
            seed=seed,
            progress=progress,
        )
    return BenchResult(
        model=Path(model).name,
        backbone=metadata.backbone,
        heads=list(metadata.heads),
        dtype=metadata.dtype,
        cutoff=metadata.cutoff,
        parameters=metadata.parameters,
        device=torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        threads=threads or torch.get_num_threads(),
        torch_version=str(torch.__version__),
        boxes=boxes,
        heads_table=table,
    )


def _draw_speed(axes: Axes, boxes: Sequence[BoxResult]) -> None:
    atoms = [box.atoms for box in boxes]
    speeds = [box.steps_per_second for box in boxes]
    linear = [speeds[0] * atoms[0] / number for number in atoms]
    axes.loglog(atoms, linear, ":", color="grey", label="∝ 1/atoms")
    axes.loglog(atoms, speeds, "o-", color="black")
    axes.minorticks_off()
    axes.set_xticks(atoms, [str(number) for number in atoms])
    axes.set_yticks(speeds, [f"{speed:.3g}" for speed in speeds])
    axes.set(xlabel="atoms", ylabel="MD steps per second", title="speed")
    axes.legend(frameon=False)


def _draw_parts(axes: Axes, boxes: Sequence[BoxResult], has_heads: bool) -> None:
    places = range(len(boxes))
    bottom = [0.0] * len(boxes)
    for name, colour in COLOURS.items():
        heights = [1e6 * box.parts[name] / box.atoms for box in boxes]
        axes.bar(places, heights, bottom=bottom, color=colour, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    if has_heads:
        for place, top, box in zip(places, bottom, boxes, strict=True):
            text = f"{box.electrostatics_share:.1%}\n({box.uncached_share:.1%})"
            axes.annotate(text, (place, top), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(list(places), [str(box.atoms) for box in boxes])
    axes.set_ylim(0.0, 1.45 * max(bottom))
    axes.set(
        xlabel="atoms",
        ylabel="µs per atom and step",
        title="parts; electrostatics in % of\nbackbone + autograd (uncached)",
    )
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def _draw_memory(axes: Axes, boxes: Sequence[BoxResult]) -> None:
    atoms = [box.atoms for box in boxes]
    axes.plot(atoms, [box.peak_memory / 1e3 for box in boxes], "o-", color="black")
    axes.axhline(boxes[0].base_memory / 1e3, ls=":", color="grey", label="before the first step")
    axes.set(xlabel="atoms", ylabel="peak memory, GB", title="memory")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
