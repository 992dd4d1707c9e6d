"""The picture of spectra."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from phicalc.workflows.figures import LINE

if TYPE_CHECKING:
    from phicalc.workflows.spectra.spectra import Spectrum


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
