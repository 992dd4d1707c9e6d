"""What `phicalc bench` prints."""

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from phicalc.bench.box import BoxResult
    from phicalc.bench.report import BenchResult
    from phicalc.bench.steps import StepResult


def line_of(result: "BoxResult | StepResult") -> str:
    """A box that has been measured."""
    from phicalc.bench.steps import StepResult

    if isinstance(result, StepResult):
        return f"{result.atoms} atoms, {result.heads}: {1e3 * result.seconds:.2f} ms/step"
    speed, memory = result.steps_per_second, result.peak_memory
    return f"{result.atoms} atoms: {speed:.1f} steps/s, {memory:.0f} MB"


def parts_table(result: "BenchResult") -> Table:
    """Milliseconds per MD step, one row for each box."""
    table = Table(title=f"{result.model} on {_where(result)}: ms per MD step")
    parts = list(result.boxes[0].parts)
    for title in ("atoms", "step", *parts, "Φ uncached", "memory / MB"):
        table.add_column(title, justify="right")
    for box in result.boxes:
        times = [box.step_seconds, *box.parts.values(), box.uncached_electrostatics]
        cells = [f"{1e3 * seconds:.2f}" for seconds in times]
        table.add_row(str(box.atoms), *cells, f"{box.peak_memory:.0f}")
    return table


def heads_table(result: "BenchResult") -> Table:
    """Time and memory of a step under each head, one row for each box."""
    network = f"{result.backbone} of {result.model}, random weights, {result.dtype}"
    table = Table(title=f"{network}, on {_where(result)}: MD steps of water")
    for title in ("head", "atoms", "ms", "µs/atom", "MB/atom", "iterations"):
        table.add_column(title, justify="left" if title == "head" else "right")
    for row in result.heads_table:
        table.add_row(
            row.heads,
            str(row.atoms),
            f"{1e3 * row.seconds:.2f}",
            f"{row.microseconds_per_atom:.2f}",
            f"{row.memory_per_atom:.3f}",
            f"{row.solver_iterations:.1f}",
        )
    return table


def _where(result: "BenchResult") -> str:
    return f"{result.device}, {result.threads} thread{'s' if result.threads > 1 else ''}"
