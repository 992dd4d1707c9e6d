"""Pictures of phonons."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phicalc.workflows.figures import LINE

if TYPE_CHECKING:
    from phonopy import Phonopy


def draw_phonons(phonopy: "Phonopy") -> Figure:
    """Bands along the path beside the density of states.

    Parameters
    ----------
    phonopy
        With `band_structure` and `total_dos` computed.
    """
    figure = Figure(figsize=(8.0, 4.5))
    bands, states = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    structure = phonopy.band_structure
    assert structure is not None and structure.labels is not None
    for distances, frequencies in zip(structure.distances, structure.frequencies, strict=True):
        bands.plot(distances, frequencies, color=LINE, linewidth=1.0)
    _name_special_points(bands, structure.distances, structure.path_connections, structure.labels)
    bands.set_ylabel("frequency / THz")
    everything = np.concatenate(structure.frequencies)
    lowest, highest = min(0.0, everything.min()), everything.max()
    bands.set_ylim(lowest * 1.05, highest * 1.05)
    dos = phonopy.total_dos
    assert dos is not None and dos.dos is not None
    states.plot(dos.dos, dos.frequency_points, color=LINE, linewidth=1.0)
    states.fill_betweenx(dos.frequency_points, dos.dos, color=LINE, alpha=0.2)
    states.set_xlabel("states / THz")
    states.set_xlim(left=0.0)
    for axes in (bands, states):
        axes.axhline(0.0, color="gray", linewidth=0.5)
    return figure


def draw_thermal(phonopy: "Phonopy") -> Figure:
    """Free energy, entropy and heat capacity against temperature."""
    figure = Figure(figsize=(6.0, 4.5))
    axes = figure.subplots()
    thermal = phonopy.thermal_properties
    assert thermal is not None and thermal.temperatures is not None
    for values, label in (
        (thermal.free_energy, "free energy / kJ/mol"),
        (thermal.entropy, "entropy / J/K/mol"),
        (thermal.heat_capacity, "heat capacity / J/K/mol"),
    ):
        assert values is not None
        axes.plot(thermal.temperatures, values, label=label)
    axes.axhline(0.0, color="gray", linewidth=0.5)
    axes.set_xlabel("temperature / K")
    axes.set_title("per mole of primitive cells", fontsize="medium")
    axes.legend(frameon=False)
    return figure


def _name_special_points(
    axes: Axes, distances: list[np.ndarray], connections: list[bool], labels: list[str]
) -> None:
    """Ticks at the ends of the lines; where the path jumps, both names share one."""
    remaining = iter(labels)
    places, names = [float(distances[0][0])], [next(remaining)]
    for line, connected in zip(distances, connections, strict=True):
        places.append(float(line[-1]))
        names.append(next(remaining))
        if not connected:
            after = next(remaining, None)
            names[-1] += "" if after is None else f"|{after}"
    axes.set_xticks(places, names)
    axes.set_xlim(places[0], places[-1])
    for place in places:
        axes.axvline(place, color="gray", linewidth=0.5)
