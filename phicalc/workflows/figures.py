"""What all pictures share. No global state of matplotlib is touched."""

from pathlib import Path

from matplotlib.figure import Figure

LINE = "#1b4f72"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=160, bbox_inches="tight")
