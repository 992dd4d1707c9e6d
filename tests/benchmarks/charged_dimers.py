"""Do two ions attract as −k/r beyond what was trained on? Runs of ablation/charged-dimers.yaml.

    python tests/benchmarks/charged_dimers.py split data/charged-dimers -o runs/charged-dimers
    phicalc ablate tests/benchmarks/ablation/charged-dimers.yaml
    python tests/benchmarks/charged_dimers.py measure tests/benchmarks/ablation/charged-dimers.yaml

Of the nine separations of each pair, the six shortest are trained on, the seventh chooses the
weights, and here the two farthest are predicted. The isolated ions are trained on too, with the
energies that the data gives for them; not those of the first pair, whose interaction energy has
a constant of +0.76 eV besides −k/r at all separations. The interaction energy is the model's
energy less the reference's own energies of the two ions, so that its error is that of the total
energy. Then each farthest pair is pulled to 20 Å, ions rigid: charge of the ions at 10 Å, energy
gained from 10 to 20 Å beside that of two point charges, and the curves as a PNG.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.neighborlist import build_neighbor_list
from matplotlib.figure import Figure
from scipy.sparse.csgraph import connected_components

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.model.checkpoint import load_checkpoint
from phicalc.model.potential import Potential
from phicalc.train.ablation.config import AblationConfig, load_ablation
from phicalc.units import COULOMB_CONSTANT

TRAINED, CHOSEN_ON, SEPARATIONS = 6, 7, 9
INCONSISTENT = 0  # the pair whose ions have other energies than its dimers
FAR, FARTHEST = 10.0, 20.0
MEV = 1000.0


@dataclass(frozen=True)
class Pair:
    """One pair of ions at nine separations; atoms of the first ion are True in ``first``."""

    frames: list[Atoms]
    first: np.ndarray

    @property
    def ions(self) -> list[Atoms]:
        """Both ions alone, with their reference energies and charges."""
        ions = []
        for chosen, name in ((self.first, "A"), (~self.first, "B")):
            pair = self.frames[0]
            ion = Atoms(pair.numbers[chosen], pair.positions[chosen])
            ion.info["charge"] = int(pair.info[f"charge{name}"])
            ion.calc = SinglePointCalculator(ion, energy=pair.info[f"energy{name}"])
            ions.append(ion)
        return ions

    @property
    def product(self) -> float:
        """q_A q_B | e²."""
        return float(self.frames[0].info["chargeA"] * self.frames[0].info["chargeB"])

    def at(self, distance: float) -> Atoms:
        """The farthest structure with its second ion moved along the line of centres."""
        atoms = self.frames[-1].copy()
        axis = centre(atoms, ~self.first) - centre(atoms, self.first)
        shift = distance - self.frames[-1].info["distance"]
        atoms.positions[~self.first] += shift * axis / np.linalg.norm(axis)
        return atoms


def centre(atoms: Atoms, chosen: np.ndarray) -> np.ndarray:
    """Centre of mass of some atoms | Å."""
    return atoms[chosen].get_center_of_mass()


def interaction(atoms: Atoms, energy: float) -> float:
    """Energy less that of the two ions by the reference | eV."""
    return energy - atoms.info["energyA"] - atoms.info["energyB"]


def read_pairs(folder: Path) -> list[Pair]:
    """Ten pairs; in either file they come in the same order, by separation."""
    train, valid = (read(folder / f"{name}.extxyz.gz", ":") for name in ("train", "valid"))
    pairs = []
    for number, farthest in enumerate(valid):
        frames = [*train[8 * number : 8 * number + 8], farthest]
        distances = [atoms.info["distance"] for atoms in frames]
        assert len({atoms.info["energyA"] for atoms in frames}) == 1, "frames of several pairs"
        assert len(frames) == SEPARATIONS and distances == sorted(distances)
        neighbours = build_neighbor_list(farthest, self_interaction=False, bothways=True)
        count, label = connected_components(neighbours.get_connectivity_matrix())
        assert count == 2, f"pair {number}: expected two ions, got {count}"
        pairs.append(Pair(frames, label == label[0]))
    return pairs


def split(data: Path, output: Path) -> None:
    """Write what is trained on, pairs first, and what chooses the weights."""
    pairs = read_pairs(data)
    train = [atoms for pair in pairs for atoms in pair.frames[:TRAINED]]
    for number, pair in enumerate(pairs):
        train += pair.ions if number != INCONSISTENT else []
    output.mkdir(parents=True, exist_ok=True)
    write(output / "train.extxyz", train)
    write(output / "valid.extxyz", [pair.frames[CHOSEN_ON - 1] for pair in pairs])


def evaluate(potential: Potential, structures: list[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies | eV, and charges | e of every structure (empty without a charge head)."""
    graph = graph_dict(collate([to_graph(atoms, potential.cutoff) for atoms in structures]))
    with torch.no_grad():
        output = potential(graph)
    charges: list[np.ndarray] = []
    if fields.CHARGES in output:
        sizes = [len(atoms) for atoms in structures]
        charges = [part.numpy() for part in output[fields.CHARGES].split(sizes)]
    return output[fields.ENERGY].numpy(), charges


@dataclass(frozen=True)
class Result:
    """One run: errors | meV, charges | e, and the share of the point charges' energy."""

    row: str
    seed: int
    trained_mae: float
    eighth_mae: float
    ninth_mae: float
    held_back_mae: float
    charge_error_mean: float | None
    charge_error_max: float | None
    gain_mean: float


def measure(potential: Potential, pairs: list[Pair], row: str, seed: int) -> Result:
    """Predict what was not trained on, and pull the ions apart."""
    errors = np.array(
        [
            evaluate(potential, pair.frames)[0]
            - np.array([atoms.get_potential_energy() for atoms in pair.frames])
            for pair in pairs
        ]
    )
    mae = MEV * np.abs(errors).mean(0)
    far, _ = evaluate(potential, [pair.at(FAR) for pair in pairs])
    farthest, _ = evaluate(potential, [pair.at(FARTHEST) for pair in pairs])
    _, charges = evaluate(potential, [pair.at(FAR) for pair in pairs])
    expected = COULOMB_CONSTANT * (1 / FARTHEST - 1 / FAR)
    gains = [
        (e_far - e_near) / (pair.product * expected)
        for e_near, e_far, pair in zip(far, farthest, pairs, strict=True)
    ]
    wrong = [
        abs(float(q[pair.first].sum()) - float(pair.frames[0].info["chargeA"]))
        for q, pair in zip(charges, pairs, strict=bool(charges))
    ]
    return Result(
        row=row,
        seed=seed,
        trained_mae=float(mae[:TRAINED].mean()),
        eighth_mae=float(mae[7]),
        ninth_mae=float(mae[8]),
        held_back_mae=float(mae[CHOSEN_ON:].mean()),
        charge_error_mean=statistics.fmean(wrong) if wrong else None,
        charge_error_max=max(wrong) if wrong else None,
        gain_mean=statistics.fmean(gains),
    )


def draw(config: AblationConfig, pairs: list[Pair], potentials: dict, path: Path) -> None:
    """Interaction energies of all pairs out to 20 Å, the first seed of every row."""
    figure = Figure(figsize=(17, 7), layout="constrained")
    for number, pair in enumerate(pairs):
        axes = figure.add_subplot(2, 5, number + 1)
        start = pair.frames[0].info["distance"]
        line = np.linspace(start, FARTHEST, 120)
        axes.plot(line, COULOMB_CONSTANT * pair.product / line, "k--", lw=1, label="k q$_A$q$_B$/r")
        tail = np.concatenate([np.arange(pair.frames[-1].info["distance"], 19.9, 0.4), [FARTHEST]])
        structures = [*pair.frames, *(pair.at(distance) for distance in tail)]
        distances = [atoms.info["distance"] for atoms in pair.frames] + list(tail)
        for row in config.rows:
            for (name, _), potential in list(potentials.items()):
                if name == row:
                    energies, _ = evaluate(potential, structures)
                    shown = [interaction(pair.frames[0], float(energy)) for energy in energies]
                    axes.plot(distances, shown, lw=1.2, label=row)
                    break
        data = [interaction(atoms, atoms.get_potential_energy()) for atoms in pair.frames]
        for part, marker in ((slice(0, TRAINED), "o"), (slice(TRAINED, None), "s")):
            label = "DFT, trained on" if marker == "o" else "DFT, held back"
            fill = "k" if marker == "o" else "w"
            axes.plot(
                distances[:SEPARATIONS][part], data[part], marker, ms=4, color="k", mfc=fill,
                label=label,
            )  # fmt: skip
        axes.set_ylim(min(data) - 0.7, 1.5)
        axes.set_title(pair.frames[0].get_chemical_formula(), fontsize=9)
        axes.set_xlabel("distance (Å)")
        if number % 5 == 0:
            axes.set_ylabel("interaction energy (eV)")
        if number == 0:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)


def spread(values: list[float | None], digits: int) -> str:
    """Mean ± sample standard deviation of what is there."""
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    text = f"{statistics.fmean(found):.{digits}f}"
    return text + (f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else "")


def table(config: AblationConfig, results: list[Result], pairs: list[Pair]) -> str:
    """Markdown, a row for each head and one for point charges without any learning."""
    point = [
        MEV
        * abs(
            interaction(atoms, atoms.get_potential_energy())
            - COULOMB_CONSTANT * pair.product / atoms.info["distance"]
        )
        for pair in pairs
        for atoms in pair.frames[CHOSEN_ON:]
    ]
    lines = [
        "| | trained on, meV | 8th, meV | 9th, meV | both, meV "
        "| ion's charge at 10 Å off by, e | at most, e | gain 10 → 20 Å by k/r | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in config.rows:
        runs = [result for result in results if result.row == row]
        if runs:
            cells = [
                spread([run.trained_mae for run in runs], 1),
                spread([run.eighth_mae for run in runs], 1),
                spread([run.ninth_mae for run in runs], 1),
                spread([run.held_back_mae for run in runs], 1),
                spread([run.charge_error_mean for run in runs], 3),
                spread([run.charge_error_max for run in runs], 3),
                spread([run.gain_mean for run in runs], 3),
                str(len(runs)),
            ]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines.append(f"| point charges | | | | {statistics.fmean(point):.1f} | | | 1 | |")
    return "\n".join(lines)


def compare(config: AblationConfig, data: Path, output: Path) -> None:
    """Print and write the table of all runs that are done, and the curves."""
    pairs = read_pairs(data)
    potentials = {}
    for row in config.rows:
        for seed in config.seeds:
            path = config.folder(row, seed) / "best.pt"
            if path.exists():
                potentials[row, seed] = load_checkpoint(path).potential.eval()
    if not potentials:
        raise SystemExit(f"no run in {config.output} is done; phicalc ablate makes them")
    results = [measure(p, pairs, row, seed) for (row, seed), p in potentials.items()]
    text = table(config, results, pairs)
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "charged_dimers.md").write_text(text + "\n", encoding="utf-8")
    (output / "charged_dimers.json").write_text(
        json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    draw(config, pairs, potentials, output / "charged_dimers.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("split", help="write the files that the runs train on")
    task.add_argument("data", type=Path, help="folder of train.extxyz.gz and valid.extxyz.gz")
    task.add_argument("-o", "--output", type=Path, required=True, help="directory")
    task = tasks.add_parser("measure", help="predict the farthest separations, and draw")
    task.add_argument("config", type=Path, help="the ablation's YAML file")
    task.add_argument("--data", type=Path, default=Path("data/charged-dimers"))
    task.add_argument("-o", "--output", type=Path, help="directory; by default the ablation's")
    arguments = parser.parse_args()
    if arguments.task == "split":
        split(arguments.data, arguments.output)
        return
    torch.set_num_threads(1)
    config = load_ablation(arguments.config)
    compare(config, arguments.data, arguments.output or config.output)


if __name__ == "__main__":
    main()
