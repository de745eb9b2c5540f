"""Pictures of results: figures that need no display, written complete or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLOT_FORMATS", "check_picture", "new_figure", "save_figure"]

PLOT_FORMATS = ("png", "svg", "pdf")
"""Endings of the files that can be drawn."""


def check_picture(path: str) -> None:
    """Make sure that a picture can be drawn before it is worked for.

    Raises:
      ConfigurationError: its ending is unknown, or matplotlib is missing.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in PLOT_FORMATS:
        raise ConfigurationError(f"a picture must end in .{', .'.join(PLOT_FORMATS)}, got {path}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("drawing needs matplotlib. Install it: pip install 'bitfleet[plot]'") from error


def new_figure(width: float, height: float) -> Figure:
    """Give an empty figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure; the path's ending decides the format.

    Raises:
      ConfigurationError: the file cannot be written.
    """
    try:
        with replace_file(Path(path)) as file:
            figure.savefig(file, format=Path(path).suffix.removeprefix(".").lower(), dpi=120)
    except OSError as error:
        raise ConfigurationError(f"the picture cannot be written to {path}: {error}") from error
