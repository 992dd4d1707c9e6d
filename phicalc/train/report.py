"""Errors for people: one line, table, JSON, parity plot, training curve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from phicalc import fields
from phicalc.machine.files import replacing, write_json
from phicalc.serving.metadata import ErrorSummary
from phicalc.train.metrics import ENERGY_PER_ATOM, UNITS, Evaluation
from phicalc.units import customary_unit

MOST_POINTS = 20_000


def customary(error: ErrorSummary) -> ErrorSummary:
    """An error in the unit in which people quote it: energies and forces in meV."""
    unit, size = customary_unit(error.unit)
    return replace(error, mae=error.mae / size, rmse=error.rmse / size, unit=unit)


def describe_errors(errors: Mapping[str, ErrorSummary]) -> str:
    """RMSE and MAE of all properties in one line; of the energy, that per atom."""
    parts = []
    for name, error in errors.items():
        if name != fields.ENERGY:
            label = fields.ENERGY if name == ENERGY_PER_ATOM else name
            shown = customary(error)
            parts.append(f"{label} RMSE {shown.rmse:.3g} MAE {shown.mae:.3g} {shown.unit}")
    return ", ".join(parts)


def error_table(evaluation: Evaluation) -> Table:
    """Errors by property and, for forces, by element, for the terminal."""
    table = Table(title=f"{evaluation.structures} structures, {evaluation.atoms} atoms")
    table.add_column("property")
    for column in ("MAE", "RMSE"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    table.add_column("labelled", justify="right")
    for name, error in evaluation.errors.items():
        label = fields.ENERGY if name == ENERGY_PER_ATOM else name
        count = evaluation.labelled.get(label, evaluation.structures)
        _add_errors(table, name.replace("_", " "), error, f"{count} of {evaluation.structures}")
    for symbol, error in evaluation.force_errors.items():
        _add_errors(table, f"forces on {symbol}", error, "")
    return table


def _add_errors(table: Table, name: str, error: ErrorSummary, labelled: str) -> None:
    shown = customary(error)
    table.add_row(name, f"{shown.mae:.4g}", f"{shown.rmse:.4g}", shown.unit, labelled)


def write_errors(
    evaluation: Evaluation, path: Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write all errors of an evaluation, and what is said ``about`` it, as JSON."""
    content = {
        **(about or {}),
        "structures": evaluation.structures,
        "atoms": evaluation.atoms,
        "labelled_structures": evaluation.labelled,
        "errors": {name: asdict(error) for name, error in evaluation.errors.items()},
        "force_errors_by_element": {
            symbol: asdict(error) for symbol, error in evaluation.force_errors.items()
        },
        "worst_structures": [
            {"structure": number, "forces_rmse": rmse} for number, rmse in evaluation.worst
        ],
    }
    write_json(path, content)


def write_parity_plot(evaluation: Evaluation, path: Path) -> None:
    """Predicted against reference values, one panel per property, as a PNG.

    The evaluation must have been made with ``keep_values``. Beyond 20,000 points an evenly spaced
    selection is drawn. Energies are per atom and without the reference energies of the elements,
    as least squares gives them: between compositions these differ by far more than any error.
    """
    names = list(evaluation.values)
    assert names, "the evaluation kept no values"
    figure = Figure(figsize=(4.2 * len(names), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for column, name in enumerate(names):
        reference, predicted = evaluation.values[name]
        kind = ENERGY_PER_ATOM if name == fields.ENERGY else name
        shift = evaluation.composition_energies if name == fields.ENERGY else np.zeros(1)
        axes = figure.add_subplot(1, len(names), column + 1)
        _draw_parity(axes, reference - shift, predicted - shift)
        error = evaluation.errors[kind]
        axes.set_title(f"RMSE {error.rmse:.3g}, MAE {error.mae:.3g} {UNITS[kind]}", fontsize=9)
        label = kind.replace("_", " ")
        if name == fields.ENERGY:
            label += " beyond composition"
        axes.set_xlabel(f"reference {label} ({UNITS[kind]})")
        axes.set_ylabel(f"predicted {label} ({UNITS[kind]})")
    with replacing(path) as new:
        figure.savefig(new, dpi=150)


def _draw_parity(axes: Axes, reference: Any, predicted: Any) -> None:
    stride = max(1, len(reference) // MOST_POINTS)
    axes.plot(reference[::stride], predicted[::stride], ".", markersize=2, alpha=0.5)
    both = np.concatenate([reference, predicted])
    both = both[np.isfinite(both)]
    limits = (both.min(), both.max()) if both.size else (0.0, 1.0)
    axes.plot(limits, limits, color="black", linewidth=0.8)
    axes.set_aspect("equal", adjustable="datalim")


def write_training_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses and validation errors against the step, as a PNG.

    Parameters
    ----------
    rows
        Rows of ``metrics.csv``; values may be strings.
    """
    steps = [float(row["step"]) for row in rows]
    rmses = [name for name in rows[-1] if "_rmse" in name]
    figure = Figure(figsize=(4.2 * (1 + len(rmses)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1 + len(rmses), 1)
    for name in ("train_loss", "valid_loss"):
        axes.plot(steps, [float(row[name]) for row in rows], label=name.replace("_", " "))
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    every = [axes]
    for number, name in enumerate(rmses):
        axes = figure.add_subplot(1, 1 + len(rmses), 2 + number)
        axes.plot(steps, [float(row.get(name) or "nan") for row in rows])
        axes.set_ylabel("valid " + name.replace("_rmse", " RMSE").replace("_", " "))
        every.append(axes)
    for axes in every:
        axes.set_xlabel("step")
        axes.set_yscale("log")
    with replacing(path) as new:
        figure.savefig(new, dpi=120)
