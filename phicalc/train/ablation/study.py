"""What each head adds: the same training for every row of a table, several seeds each.

Every run is an ordinary training run in a folder of its own; a killed ablation goes on where it
was. A run that has ended is measured on the validation set with its best weights, and what was
measured is kept beside it as ``result.json``.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from phicalc.errors import ConfigError, DataError
from phicalc.machine.files import file_sha256, prepare_folder, write_json
from phicalc.model.checkpoint import load_checkpoint
from phicalc.train.ablation.config import AblationConfig
from phicalc.train.ablation.measure import RunResult, measure
from phicalc.train.config import TrainConfig
from phicalc.train.logs import clock
from phicalc.train.state import as_begun
from phicalc.train.trainer import TrainResult, train

RESULT = "result.json"
LOG = "train.log"

Say = Callable[[str], None]


def run_ablation(
    config: AblationConfig,
    rows: Sequence[str] = (),
    *,
    say: Say = lambda line: None,
    measured: Callable[[RunResult], object] = lambda result: None,
) -> str | None:
    """Train and measure all runs that are not done yet, row by row.

    Parameters
    ----------
    rows
        Names of the rows to run; none: all.
    say
        Takes one line for each run that begins or ends.
    measured
        Takes each result as soon as it is written.

    Returns
    -------
    str or None
        Name of the signal that ended a run, such as "SIGINT": the same call goes on from there.
        None if all runs are done.

    Raises
    ------
    ConfigError
        If a row does not exist, or a run was made or begun with other settings or data than are
        asked for now.
    DataError
        If the data of a run is not there; nothing has run then.
    """
    plan = [(row, seed) for row in chosen_rows(config, rows) for seed in config.seeds]
    pending = [
        (row, seed) for row, seed in plan if finished(config.run(row, seed), row, seed) is None
    ]
    for row, seed in pending:
        _check_begun(config.run(row, seed), row, seed)
    say(f"{len(plan)} runs, {len(plan) - len(pending)} done before")
    prepare_folder(config.output)
    started = time.monotonic()
    for number, (row, seed) in enumerate(pending):
        label = f"[{len(plan) - len(pending) + number + 1}/{len(plan)}] {row}, seed {seed}"
        folder = config.folder(row, seed)
        resumed = (folder / "last.pt").exists()
        say(f"{label}: {'resumed' if resumed else 'training'}, log in {folder / LOG}")
        result = _train(config.run(row, seed), resumed)
        if result.stopped_by is not None:
            say(f"{label}: stopped at step {result.step}, saved; the same command goes on")
            return result.stopped_by
        found = measure(config.run(row, seed), row, seed, result.step)
        _write(config.run(row, seed), found)
        measured(found)
        spent = time.monotonic() - started
        left = spent / (number + 1) * (len(pending) - number - 1)
        say(f"{label}: {describe(found)}; {clock(spent)} spent, about {clock(left)} left")
    return None


def chosen_rows(config: AblationConfig, rows: Sequence[str]) -> list[str]:
    """The rows asked for, in the order of the file; all if none is."""
    unknown = [row for row in rows if row not in config.rows]
    if unknown:
        raise ConfigError(
            f"--rows: expected names from {', '.join(config.rows)}, got {', '.join(unknown)}"
        )
    return [row for row in config.rows if not rows or row in rows]


def finished(config: TrainConfig, row: str, seed: int) -> RunResult | None:
    """What a run gave if it is done; None if it is not.

    Raises
    ------
    ConfigError
        If it was made with other settings or data, or its result is no longer readable.
    """
    path = config.output / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = RunResult(**content["result"])
        made_with, data = TrainConfig.stored(content["config"]), content.get("data")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a result of this version ({error}); remove it") from None
    _check_alike(made_with, data, config, f"row {row!r}, seed {seed}: {path}")
    return result


def results_of(config: AblationConfig, passed_over: Say = lambda line: None) -> list[RunResult]:
    """All runs that are done as the configuration asks; `passed_over` hears why others are not."""
    found = []
    for row in config.rows:
        for seed in config.seeds:
            try:
                result = finished(config.run(row, seed), row, seed)
            except ConfigError as error:
                passed_over(str(error))
            else:
                found += [] if result is None else [result]
    return found


def _check_begun(config: TrainConfig, row: str, seed: int) -> None:
    """That a run can begin, or go on as it began."""
    for path in _data_files(config).values():
        if not path.is_file():
            raise DataError(
                f"row {row!r}, seed {seed}: expected data in {path}, found no such file"
            )
    last = config.output / "last.pt"
    if last.exists():
        provenance = load_checkpoint(last).extra["provenance"]
        made_with = TrainConfig.stored(provenance["config"])
        data = {name: origin["sha256"] for name, origin in provenance["data"].items()}
        _check_alike(made_with, data, config, f"row {row!r}, seed {seed}: {last}")


def _check_alike(
    made_with: TrainConfig, data: dict[str, str] | None, config: TrainConfig, what: str
) -> None:
    """Compare settings, and files of data by their content.

    Settings that came later have their defaults. Files that are not there any more, or of which
    nothing was noted, count as the same.
    """
    if made_with != as_begun(config, made_with.model):
        difference = "settings"
    elif data is not None and any(
        path.is_file() and data[name] != _sha256(path) for name, path in _data_files(config).items()
    ):
        difference = "data under the same name"
    else:
        return
    raise ConfigError(
        f"{what} was made with other {difference}; choose another output, or remove that folder"
    )


def _data_files(config: TrainConfig) -> dict[str, Path]:
    """Training and validation file; the latter may be a part of the former."""
    return {"train": config.data.train, "valid": config.data.valid or config.data.train}


def _sha256(path: Path) -> str:
    return _sha256_as_of(path, path.stat().st_mtime_ns)


@cache
def _sha256_as_of(path: Path, _modified: int) -> str:
    return file_sha256(path)


def describe(result: RunResult) -> str:
    """The errors of a run in a few words."""
    parts = []
    if result.energy_rmse is not None:
        parts.append(f"E {result.energy_rmse:.3g} meV/atom")
    if result.forces_rmse is not None:
        parts.append(f"F {result.forces_rmse:.3g} meV/Å")
    if result.charge_correlation is not None and not result.supervised:
        parts.append(f"charges correlate {result.charge_correlation:.2f}")
    if result.charge_mae is not None and result.supervised:
        parts.append(f"charges MAE {result.charge_mae:.3g} me")
    return ", ".join(parts)


def _train(config: TrainConfig, resume: bool) -> TrainResult:
    """One training run, its lines in a file of its own folder."""
    prepare_folder(config.output)
    with (config.output / LOG).open("a", encoding="utf-8") as log:
        console = Console(file=log, soft_wrap=True, highlight=False, markup=False)
        return train(config, resume, console=console)


def _write(config: TrainConfig, result: RunResult) -> None:
    content: dict[str, Any] = {
        "result": asdict(result),
        "config": config.model_dump(mode="json"),
        "data": {name: _sha256(path) for name, path in _data_files(config).items()},
    }
    write_json(config.output / RESULT, content)
