"""The ``phicalc`` command: thin, each command calls one function of the library.

What a command needs is imported inside it, so that ``phicalc --help`` answers at once. An error
(:class:`phicalc.errors.PhicalcError`) ends as one line on standard error and in its exit status:
0 done; 2 a mistake in the input; 3 not converged; 4 a simulation that a guard stopped; 130 or 143
stopped by SIGINT or SIGTERM.
"""

import json
import warnings
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from phicalc import __version__
from phicalc.cli import ablate, crystal, lammps, predict, simulate
from phicalc.cli.arguments import complain, complain_in_words, warn
from phicalc.cli.mistakes import finite, sentence
from phicalc.cli.options import OptionsOf, command
from phicalc.errors import ConfigError, PhicalcError, status_of_signal
from phicalc.machine.files import file_sha256

if TYPE_CHECKING:
    from phicalc.cli.evaluation import Batches, Threaded
    from phicalc.serving.metadata import ModelMetadata


class OneLineErrors(TyperGroup):
    """Commands whose user sees what was wrong, not where in the program it was found."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except typer.BadParameter as error:
            if type(error).__name__ == "MissingParameter":
                raise  # typer shows how the command is used
            complain_in_words(sentence(error))
            ctx.exit(PhicalcError.exit_status)
        except (PhicalcError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            complain(error)
            mistake = PhicalcError.exit_status
            ctx.exit(mistake if isinstance(error, OSError) else error.exit_status)
        except KeyboardInterrupt:
            ctx.exit(status_of_signal("SIGINT"))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line on standard error, without a place in the program."""
    warn(str(message))


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    epilog="\b\nFrom data to a model:\n  phicalc train config.yaml\n"
    "  phicalc export run/best.pt -o model.pt\n  phicalc eval model.pt test.extxyz\n\n"
    "\b\nFrom a model to results:\n  phicalc md model.pt water.xyz -n 10000 -T 300\n"
    "  phicalc relax model.pt crystal.cif --cell full\n  phicalc elastic model.pt crystal.cif\n"
    "  phicalc phonons model.pt crystal.cif\n  phicalc predict model.pt structures.xyz",
)
app.add_typer(predict.commands)
app.add_typer(simulate.commands)
app.add_typer(lammps.commands)
app.add_typer(crystal.commands)
app.add_typer(ablate.commands)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phicalc {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """A neural interatomic potential with learned electrostatics: train, export, examine.

    Models run in ASE:  atoms.calc = PhiCalculator("model.pt")
    """


class Precision(str, Enum):
    """Number formats a network may be exported in."""

    float32 = "float32"
    float64 = "float64"


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, see the README.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from last.pt in the output directory.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew over an earlier run.")
    ] = False,
) -> None:
    """Train a potential as a configuration says.

    Ctrl-C ends the run after the current step, saved, with exit status 130; --resume takes it up
    again.

    \b
    Examples:
      phicalc train config.yaml
      phicalc train config.yaml --resume
      torchrun --nproc-per-node 2 -m phicalc.train config.yaml    (on two processes)
    """
    from phicalc.train.config import load_config
    from phicalc.train.trainer import train as run

    result = run(load_config(config), resume, overwrite=overwrite)
    if result.stopped_by is not None:
        raise typer.Exit(status_of_signal(result.stopped_by))


@command(app, "eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file, or a training checkpoint.")],
    data: Annotated[Path, typer.Argument(help="Structures with labels: extxyz(.gz) or ASE's.")],
    evaluation: Annotated["Batches", OptionsOf("phicalc.cli.evaluation")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for errors.json and parity.png."),
    ] = Path("evaluation"),
    skip: Annotated[
        list[int] | None, typer.Option(help="Frame to leave out, from 0; may be repeated.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Column of a label, as energy=REF_energy; may be repeated."),
    ] = None,
) -> None:
    """Errors of a model on labelled structures, per property and element.

    \b
    Examples:
      phicalc eval model.pt valid.extxyz.gz
      phicalc eval run/best.pt valid.extxyz.gz -o run/valid
      phicalc eval model.pt valid.extxyz.gz --skip 29
      phicalc eval model.pt mace.xyz --key energy=REF_energy --key forces=REF_forces
    """
    keys = _label_keys(key or ())
    from phicalc.train.evaluation import evaluate_file
    from phicalc.train.report import error_table

    console = Console()
    with console.status("reading structures") as status:
        done = 0

        def advance(structures: int) -> None:
            nonlocal done
            done += structures
            status.update(f"{done} structures evaluated")

        result = evaluate_file(
            model,
            data,
            output,
            skip=skip or (),
            keys=keys,
            device=evaluation.device,
            batch_size=evaluation.batch_size,
            advance=advance,
        )
    console.print(error_table(result))
    console.print(f"written: {output / 'errors.json'}, {output / 'parity.png'}", highlight=False)


def _label_keys(given: Iterable[str]) -> dict[str, str]:
    """Columns by our names of labels, from "name=column"."""
    keys = {}
    for pair in given:
        name, equals, column = pair.partition("=")
        if not (equals and column):
            raise ConfigError(f"--key: expected NAME=COLUMN, as energy=REF_energy, got {pair!r}")
        keys[name] = column
    return keys


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="best.pt or last.pt of a training run, or a model file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")] = Path(
        "model.pt"
    ),
    dtype: Annotated[
        Precision | None, typer.Option(help="Instead of the source's own precision.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the model is for.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights.")] = None,
    data_licence: Annotated[
        str | None, typer.Option(help="Of the training data, with its attribution.")
    ] = None,
) -> None:
    """Write the model file of a checkpoint, and check that it gives the network's own numbers.

    A model file is written anew: the same weights and texts, for all devices of this phicalc.

    \b
    Examples:
      phicalc export run/best.pt -o model.pt
      phicalc export run/best.pt -o model-float64.pt --dtype float64
      phicalc export old-model.pt -o model.pt
    """
    from phicalc.serving.export import export as write_model

    metadata = write_model(
        source,
        output,
        dtype=None if dtype is None else dtype.value,
        description=description,
        licence=licence,
        data_licence=data_licence,
    )
    Console(highlight=False, soft_wrap=True).print(
        f"{output}: {' + '.join([metadata.backbone, *metadata.heads])} for "
        f"{' '.join(metadata.symbols)}, {metadata.dtype}, {output.stat().st_size / 1e6:.2f} MB, "
        f"same numbers as the network; total charge: {_charges_of(metadata)}"
    )


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """What a model file says about itself; its network is not loaded.

    \b
    Examples:
      phicalc info model.pt
      phicalc info model.pt --json | jq .config
    """
    from phicalc.serving.metadata import read_metadata

    metadata = read_metadata(model)
    if as_json:
        typer.echo(json.dumps(metadata.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    table = Table(title=str(model), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(metadata):
        table.add_row(name, value)
    table.add_row("sha256", file_sha256(model))
    Console().print(table)


def _facts(metadata: "ModelMetadata") -> Iterable[tuple[str, str]]:
    """Name and value of each line of ``phicalc info``."""
    from phicalc.units import customary_unit

    provenance = metadata.provenance
    yield "elements", " ".join(metadata.symbols)
    yield "network", " + ".join([metadata.backbone, *metadata.heads])
    yield "parameters", f"{metadata.parameters} in {metadata.dtype}"
    yield "cutoff", f"{metadata.cutoff} Å"
    yield "total charge", _charges_of(metadata)
    yield from _reference_facts(metadata)
    for use, source in provenance.data.items():
        labels = [f"{name} {count}" for name, count in source.labels.items()]
        counts = f" ({', '.join(labels)})" if labels else ""
        yield f"{use} data", f"{source.name}, {source.structures} structures{counts}"
    if "train" in provenance.data:
        periodic = provenance.data["train"].periodicity
        kinds = [f"{count} {PERIODICITY[n]}" for n, count in periodic.items()]
        yield "trained on", ", ".join(kinds) or "periodicity not recorded"
    for name, error in provenance.valid_errors.items():
        unit, size = customary_unit(error.unit)
        errors = f"MAE {error.mae / size:.4g}, RMSE {error.rmse / size:.4g} {unit}"
        yield f"valid {name.replace('_', ' ')}", errors
    yield "for", metadata.description or "not stated"
    yield "licence", metadata.licence or "not stated"
    yield "data licence", metadata.data_licence or "not stated"
    yield "written by", f"phicalc {metadata.phicalc_version}, torch {metadata.torch_version}"
    yield "format", str(metadata.format_version)


PERIODICITY = {"0": "molecules", "1": "wires", "2": "slabs", "3": "crystals or boxes"}
"""Structures by the number of their periodic directions, in words."""


def _charges_of(metadata: "ModelMetadata") -> str:
    """What total charges a model answers for."""
    if not metadata.capabilities.total_charge:
        return "0 only"
    allowed = metadata.charge_range
    if allowed is None:
        return "any; those of training are not recorded"
    return f"{allowed}, as in training"


def _reference_facts(metadata: "ModelMetadata") -> Iterable[tuple[str, str]]:
    """Reference energies of the elements, and which of them the data leaves open."""
    reference = metadata.provenance.reference
    if reference is None:
        yield "reference energies", "not recorded"
        return
    energies = [f"{symbol} {energy:.6g}" for symbol, energy in reference.energies.items()]
    yield "reference energies", f"{', '.join(energies)} eV ({reference.source})"
    if reference.open:
        yield (
            "open",
            f"reference energies of {', '.join(reference.open)}: the compositions of the data fix "
            "only sums, so energies between other compositions mean nothing",
        )


@command(app)
def bench(
    model: Annotated[Path, typer.Argument(help="Model file that knows H and O.")],
    evaluation: Annotated["Threaded", OptionsOf("phicalc.cli.evaluation")],
    size: Annotated[
        list[int] | None, typer.Option("--size", "-n", min=3, help="Atoms in a box; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="MD steps measured per box.")] = 100,
    seconds: Annotated[
        float, typer.Option(min=0, callback=finite, help="Longest time spent on a box.")
    ] = 60.0,
    heads: Annotated[
        bool | None,
        typer.Option(
            "--heads/--no-heads",
            help="Measure the network without a head, with phi and with phi-coulomb, too.  "
            "[default: on a GPU]",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for bench.json and bench.png."),
    ] = Path("bench"),
) -> None:
    """MD steps per second and peak memory on boxes of water, and where the time goes.

    \b
    Examples:
      phicalc bench model.pt
      phicalc bench model.pt -n 192 -n 648 --threads 2
      phicalc bench model.pt --device cuda
    """
    from phicalc.bench.report import DEFAULT_SIZES, GPU_SIZES, run_bench
    from phicalc.cli.bench_tables import heads_table, line_of, parts_table
    from phicalc.machine.device import resolve_device
    from phicalc.serving.metadata import read_metadata

    on_gpu = resolve_device(evaluation.device).type == "cuda"
    read_metadata(model)  # both before a folder is made
    console = Console(highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    with console.status("measuring"):
        result = run_bench(
            model,
            tuple(size or (GPU_SIZES if on_gpu else DEFAULT_SIZES)),
            steps=steps,
            seconds=seconds,
            device=evaluation.device,
            threads=evaluation.threads,
            heads=on_gpu if heads is None else heads,
            progress=lambda box: console.print(line_of(box)),
        )
    console.print(parts_table(result))
    if result.heads_table:
        console.print(heads_table(result))
    result.write_json(output / "bench.json")
    result.write_plot(output / "bench.png")
    console.print(f"written: {output / 'bench.json'}, {output / 'bench.png'}")
