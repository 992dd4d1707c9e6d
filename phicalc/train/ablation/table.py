"""The table of an ablation: mean ± spread over seeds, for the terminal, Markdown and JSON."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from phicalc.machine.files import write_bytes, write_json
from phicalc.train.ablation.config import AblationConfig
from phicalc.train.ablation.measure import RunResult


@dataclass(frozen=True)
class Column:
    """One column: its heading, the value of a run (None where there is none), its digits."""

    heading: str
    value: Callable[[RunResult], float | None]
    digits: int = 3


COLUMNS = (
    Column("E RMSE meV/atom", lambda run: run.energy_rmse),
    Column("E MAE meV/atom", lambda run: run.energy_mae),
    Column("F RMSE meV/Å", lambda run: run.forces_rmse),
    Column("F MAE meV/Å", lambda run: run.forces_mae),
    Column("charges r", lambda run: None if run.supervised else run.charge_correlation),
    Column(
        "r within elements",
        lambda run: None if run.supervised else run.charge_correlation_within_elements,
    ),
    Column("charges MAE me", lambda run: run.charge_mae if run.supervised else None),
    Column("CPU s/training step", lambda run: run.seconds_per_training_step, 2),
    Column("CPU ms/evaluation", lambda run: run.milliseconds_per_evaluation),
    Column("parameters", lambda run: float(run.parameters), 1),
)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over runs; no spread of a single one."""

    mean: float
    spread: float | None
    runs: int

    def shown(self, digits: int) -> str:
        """As "12.3 ± 0.4", with the decimals that show the mean to ``digits`` significant ones."""
        decimals = decimals_for(self.mean, digits)
        text = f"{self.mean:.{decimals}f}"
        return text if not self.spread else f"{text} ± {self.spread:.{decimals}f}"


def decimals_for(value: float, digits: int) -> int:
    """Decimals that show a value to some significant digits."""
    if value == 0.0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def statistic(values: Sequence[float]) -> Statistic:
    """Mean ± sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(statistics.fmean(values), spread, len(values))


def row_statistics(
    config: AblationConfig, results: Sequence[RunResult]
) -> dict[str, dict[str, Statistic]]:
    """By row and column; a row without any run is left out, as is a column without values."""
    table: dict[str, dict[str, Statistic]] = {}
    for row in config.rows:
        runs = [result for result in results if result.row == row]
        if not runs:
            continue
        table[row] = {}
        for column in COLUMNS:
            values = [value for run in runs if (value := column.value(run)) is not None]
            if values:
                table[row][column.heading] = statistic(values)
    return table


def cells(config: AblationConfig, results: Sequence[RunResult]) -> list[list[str]]:
    """The table as text, its headings first; columns that no row fills are left out."""
    table = row_statistics(config, results)
    used = [c for c in COLUMNS if any(c.heading in values for values in table.values())]
    lines = [["", *(column.heading for column in used), "seeds"]]
    for row, values in table.items():
        shown = [values[c.heading].shown(c.digits) if c.heading in values else "–" for c in used]
        count = max(value.runs for value in values.values())
        lines.append([row, *shown, str(count)])
    return lines


def rich_table(config: AblationConfig, results: Sequence[RunResult]) -> Table:
    """For the terminal."""
    headings, *lines = cells(config, results)
    table = Table(title=heading(config, results))
    for position, name in enumerate(headings):
        table.add_column(name, justify="right" if position else "left")
    for line in lines:
        table.add_row(*line)
    return table


def heading(config: AblationConfig, results: Sequence[RunResult]) -> str:
    """What the table is of, and how far it has come."""
    planned = len(config.rows) * len(config.seeds)
    missing = "" if len(results) == planned else f" ({len(results)} of {planned} runs done)"
    return (config.title or config.output.name) + missing


def write_tables(config: AblationConfig, results: Sequence[RunResult]) -> list[Path]:
    """``table.md`` and ``table.json`` in the ablation's directory; returns their paths."""
    headings, *lines = cells(config, results)
    markdown = [f"**{heading(config, results)}**", ""]
    markdown.append("| " + " | ".join(headings) + " |")
    markdown.append("|---" + "|---:" * (len(headings) - 1) + "|")
    markdown += ["| " + " | ".join(line) + " |" for line in lines]
    markdown += ["", "Errors on the validation set; mean ± sample standard deviation over seeds."]
    content = {
        "title": config.title,
        "rows": {
            row: {name: asdict(value) for name, value in values.items()}
            for row, values in row_statistics(config, results).items()
        },
        "runs": [asdict(result) for result in results],
    }
    paths = [config.output / "table.md", config.output / "table.json"]
    write_bytes(paths[0], ("\n".join(markdown) + "\n").encode("utf-8"))
    write_json(paths[1], content)
    return paths
