"""The picture of a run."""

import numpy as np
from matplotlib.figure import Figure


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
