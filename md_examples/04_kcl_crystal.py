"""A crystal from a model: lattice constant, elasticity and phonons of KCl, beside experiment.

    python md_examples/04_kcl_crystal.py [--supercell 2] [--output md_examples/output]

Three classes of ``phicalc.workflows``, each of which is also a command: `phicalc eos`, `phicalc
elastic` and `phicalc phonons`. The splitting of the longitudinal (LO) from the transverse (TO)
optical phonons at Γ comes from the model's own Born charges and dielectric tensor; with a model
that has none the example says so and draws LO and TO together.

The model learned PBE, which binds KCl too weakly: it is to be compared with the numbers of that
functional first, and only then with experiment. Leaves kcl.png and the workflows' own files in
the output folder; under a minute on one CPU thread.
"""

import argparse
from pathlib import Path

import numpy as np
from ase.build import bulk
from matplotlib.figure import Figure

from phicalc import PhiCalculator
from phicalc.workflows.crystal import (
    ElasticConstants,
    ElasticSettings,
    EquationOfState,
    EquationOfStateSettings,
    Phonons,
    PhononSettings,
)

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "kcl-crystal.pt"

EXPERIMENT = {  # room temperature
    "a": 6.29, "B": 17.5, "C11": 40.7, "C12": 7.1, "C44": 6.3, "TO": 4.3, "LO": 6.4, "ε∞": 2.2,
}  # fmt: skip
FUNCTIONAL = {"a": 6.408, "B": 16.1}  # PBE, which the model was trained on
UNITS = {"a": "Å", "TO": "THz", "LO": "THz", "ε∞": ""}  # the others: GPa


def optical(phonons, direction):
    """Frequencies of the three optical modes at Γ, approached along ``direction``; THz."""
    return np.sort(phonons.gamma(direction))[3:]


def collect(eos, elastic, phonons):
    """The numbers to compare, by name."""
    matrix = elastic.stiffness.matrix
    found = {
        "a": eos.lattice_constant,
        "B": eos.bulk_modulus,
        "C11": matrix[0, 0],
        "C12": matrix[0, 1],
        "C44": matrix[3, 3],
        "TO": optical(phonons, (1.0, 0.0, 0.0))[0],
    }
    if phonons.born is not None:
        found["LO"] = optical(phonons, (1.0, 0.0, 0.0))[2]
        found["ε∞"] = np.trace(phonons.born.dielectric) / 3.0
    return found


def report(found):
    """A row for each number."""
    print(f"{'':4s} {'model':>9s} {'PBE':>7s} {'experiment':>11s}")
    for name, value in found.items():
        functional = f"{FUNCTIONAL[name]:7.4g}" if name in FUNCTIONAL else " " * 7
        unit = UNITS.get(name, "GPa")
        print(f"{name:4s} {value:9.3f} {functional} {EXPERIMENT[name]:11.4g} {unit}")


def plot(eos, phonons, found, path):
    """Equation of state, elastic constants beside experiment, phonon bands."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    atoms = len(phonons.atoms)
    volumes, energies = eos.curve
    left.plot(volumes, 1e3 * (energies - eos.energy) / atoms, color="tab:blue")
    left.plot(eos.volumes, 1e3 * (eos.energies - eos.energy) / atoms, "o", color="tab:blue")
    left.set(xlabel="volume per formula unit / Å³", ylabel="energy − minimum / meV per atom")
    left.set_title(f"a = {found['a']:.3f} Å, B = {found['B']:.1f} GPa", fontsize="medium")
    names = ["B", "C11", "C12", "C44"]
    places = np.arange(len(names))
    middle.bar(places - 0.2, [found[n] for n in names], 0.4, color="tab:blue", label="model")
    middle.bar(
        places + 0.2, [EXPERIMENT[n] for n in names], 0.4, color="lightgrey", label="experiment"
    )
    middle.set_xticks(places, ["B", "C₁₁", "C₁₂", "C₄₄"])
    middle.set_ylabel("GPa")
    middle.legend(frameon=False)
    draw_bands(right, phonons.phonopy.band_structure)
    figure.savefig(path, dpi=110)


def draw_bands(axes, bands):
    """Phonon bands, with the measured optical modes at Γ."""
    for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
        axes.plot(distances, frequencies, color="tab:blue", linewidth=1.0)
    labels, ends = list(bands.labels), [bands.distances[0][0]]
    places, names = list(ends), [labels.pop(0)]
    for distances, connected in zip(bands.distances, bands.path_connections, strict=True):
        places.append(distances[-1])
        names.append(labels.pop(0) + ("" if connected or not labels else f"|{labels.pop(0)}"))
    gammas = [place for place, name in zip(places, names, strict=True) if name == "Γ"]
    for name, marker in (("LO", "^"), ("TO", "v")):
        values = [EXPERIMENT[name]] * len(gammas)
        axes.plot(gammas, values, marker, color="tab:red", label=f"{name}, measured", zorder=3)
    axes.set_xticks(places, names)
    axes.set(xlim=(places[0], places[-1]), ylim=(0.0, None), ylabel="frequency / THz")
    for place in places:
        axes.axvline(place, color="lightgrey", linewidth=0.6, zorder=0)
    axes.legend(frameon=False, loc="upper right", fontsize="small")


def main(model: Path, supercell: int, output: Path) -> None:
    """Build, compute, report and draw."""
    atoms = bulk("KCl", "rocksalt", a=6.35)
    atoms.calc = PhiCalculator(model)
    folder = output / "kcl"
    # restart=True: an earlier call's relaxation is taken up, its results are replaced
    eos = EquationOfState(atoms, EquationOfStateSettings(), folder).run(restart=True)
    elastic = ElasticConstants(atoms, ElasticSettings(), folder).run(restart=True)
    # cubic cells in the supercell, so that it is as wide in every direction
    cubic = bulk("KCl", "rocksalt", a=eos.lattice_constant, cubic=True)
    cubic.calc = atoms.calc
    settings = PhononSettings(supercell=(supercell,) * 3, animated=((0.0, 0.0, 0.0),))
    phonons = Phonons(cubic, settings, folder).run(restart=True)

    found = collect(eos, elastic, phonons)
    report(found)
    moduli = elastic.stiffness
    print(f"elastic constants {'fulfil' if moduli.stable else 'VIOLATE'} Born's criterion")
    print(f"bulk modulus by the stresses {moduli.bulk_modulus.hill:.2f} GPa")
    print(f"acoustic modes at Γ within {phonons.acoustic:.1e} THz of zero")
    print(f"lowest frequency {phonons.lowest:+.3f} THz")
    if phonons.born is None:
        print(f"no splitting of LO and TO: {phonons.note}")
    else:
        charge = abs(phonons.born.charges[0].trace()) / 3.0
        print(f"Born charges ±{charge:.3f} e, sum violated by {phonons.born.violation:.1e} e")
    plot(eos, phonons, found, output / "kcl.png")
    print(f"wrote kcl.png and the folder kcl to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="model file that knows K and Cl")
    parser.add_argument("--supercell", type=int, default=2, help="cubic cells along each axis")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    arguments = parser.parse_args()
    main(arguments.model, arguments.supercell, arguments.output)
