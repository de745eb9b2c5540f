"""Curves over epochs or rounds, drawn with matplotlib: for a notebook, or for a figure of the caller's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bnncore.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves"]


def plot_curves(
    x: Sequence[int], curves: Mapping[str, Sequence[float | None]], *, x_label: str, y_label: str, axes: Axes | None
) -> Axes:
    """Draw curves with their points; values that are None are left out.

    Args:
      x: [n], counted from 1.
      curves: y [n] by label.
      x_label: of the x axis.
      y_label: of the y axis, with the unit.
      axes: where to draw; None: a new figure, which a notebook shows by itself.

    Raises:
      ConfigurationError: matplotlib is missing, or a curve has no value.
    """
    for label, values in curves.items():
        if all(value is None for value in values):
            raise ConfigurationError(f"there is nothing to draw: {label} has no value in any {x_label}")
    try:
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ConfigurationError("drawing needs matplotlib. Install it: pip install 'bitfleet[plot]'") from error
    if axes is None:
        axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
        axes.spines[["top", "right"]].set_visible(False)
    for label, values in curves.items():
        known = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
        axes.plot([at for at, _ in known], [value for _, value in known], marker="o", markersize=3, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return axes
