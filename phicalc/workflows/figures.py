"""Pictures of phonons and spectra. No global state of matplotlib is touched."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from phonopy import Phonopy

    from phicalc.workflows.equation_of_state import EquationOfStateResult
    from phicalc.workflows.spectra import Spectrum


LINE = "#1b4f72"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=160, bbox_inches="tight")


def draw_dynamics(table: np.ndarray) -> Figure:
    """Temperature, energies and, on a scale of its own, the conserved quantity against time.

    Parameters
    ----------
    table
        The log of a run, two rows at least; where the pressure is in it, it gets a panel too.
    """
    times = table["time_fs"] * 1e-3
    rows = 4 if "pressure_GPa" in (table.dtype.names or ()) else 3
    figure = Figure(figsize=(7.0, 2.1 * rows))
    panels = figure.subplots(rows, 1, sharex=True)
    panels[0].plot(times, table["temperature_K"], color="tab:red", linewidth=0.8)
    panels[0].set_ylabel("temperature / K")
    panels[0].set_title(
        f"mean {table['temperature_K'].mean():.1f} K", fontsize="small", loc="right"
    )
    for name, color in (("potential", "tab:blue"), ("kinetic", "tab:red")):
        energy = table[f"{name}_eV"]
        panels[1].plot(times, energy - energy[0], color=color, linewidth=0.8, label=name)
    conserved = table["conserved_eV"] - table["conserved_eV"][0]
    panels[1].plot(times, conserved, color="black", linewidth=1.0, label="conserved")
    panels[1].set_ylabel("energy − start / eV")
    panels[1].legend(frameon=False, ncols=3, fontsize="small", loc="best")
    offset, slope = np.polynomial.polynomial.polyfit(times, conserved, 1)
    panels[2].plot(times, 1e3 * conserved, color="black", linewidth=0.8)
    panels[2].plot(times, 1e3 * (offset + slope * times), color="tab:orange", linewidth=1.0)
    panels[2].set_ylabel("conserved − start / meV")
    panels[2].set_title(f"drift {1e3 * slope:+.3g} meV/ps", fontsize="small", loc="right")
    if rows == 4:
        panels[3].plot(times, table["pressure_GPa"], color="tab:green", linewidth=0.8)
        panels[3].set_ylabel("pressure / GPa")
    panels[-1].set_xlabel("time / ps")
    panels[-1].set_xlim(times[0], times[-1])
    figure.align_ylabels()
    return figure


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


def draw_spectra(spectra: dict[str, "Spectrum"]) -> Figure:
    """Spectra below each other, on one axis of wavenumbers.

    Parameters
    ----------
    spectra
        By their names.
    """
    figure = Figure(figsize=(7.0, 2.8 * len(spectra) + 0.4))
    rows = figure.subplots(len(spectra), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, spectrum) in zip(rows, spectra.items(), strict=True):
        axes.plot(spectrum.wavenumbers, spectrum.intensity, color=LINE, linewidth=1.0)
        if len(spectrum.parts) > 1:
            for symbol, part in spectrum.parts.items():
                axes.plot(spectrum.wavenumbers, part, linewidth=0.8, label=symbol)
            axes.legend(frameon=False)
        axes.set_title(f"{name}: {spectrum.description}", fontsize="small", loc="left")
        axes.set_ylabel(spectrum.unit)
        axes.set_xlim(0.0, spectrum.wavenumbers[-1])
        axes.set_ylim(bottom=0.0)
    rows[-1].set_xlabel("wavenumber / cm⁻¹")
    return figure


def draw_equation_of_state(result: "EquationOfStateResult") -> Figure:
    """Energies and the fitted curve against the volume."""
    figure = Figure(figsize=(6.0, 4.5))
    axes = figure.subplots()
    volumes, energies = result.curve
    axes.plot(volumes, 1e3 * (energies - result.energy), color=LINE, label=result.equation)
    axes.plot(
        result.volumes, 1e3 * (result.energies - result.energy), "o", color=LINE, label="computed"
    )
    axes.axvline(result.volume, color="gray", linewidth=0.5)
    title = f"V₀ = {result.volume:.3f} Å³, B₀ = {result.bulk_modulus:.2f} GPa"
    if result.lattice_constant is not None:
        title += f", a₀ = {result.lattice_constant:.4f} Å"
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("volume / Å³")
    axes.set_ylabel("energy − minimum / meV per cell")
    axes.legend(frameon=False)
    return figure
