"""``bitfleet memory --plot``: the standard algorithm, the paper's and this engine as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnncore.drawing import check_picture, new_figure, save_figure
from bnncore.memory import describe_ratio

__all__ = ["plot_memory"]

# The formulas' variables and the plan's roles under one name and colour each.
_GROUPS = {
    "activations": (("X", "activations"), "#4477aa"),
    "gradients": (("dX_Y", "dY", "gradients"), "#ee6677"),
    "weights": (("W", "dW", "weights"), "#228833"),
    "momenta": (("momenta",), "#ccbb44"),
    "pool masks": (("pool_masks",), "#66ccee"),
    "scratch": (("scratch", "unused"), "#aa3377"),
    "norms, input": (("mu_psi", "beta_dbeta", "norm", "input"), "#bbbbbb"),
}


def plot_memory(result: Mapping[str, Any], path: str) -> None:
    """Draw what ``bnncore.memory.compare_memory`` gives.

    Args:
      result: its result.
      path: the picture; its ending decides the format. It appears complete or not at all.

    Raises:
      ConfigurationError: matplotlib is missing, the format is unknown, or the file cannot be written.
    """
    check_picture(path)
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    unit = 2.0**20
    columns = [column for column in ("standard", "paper", "bitfleet") if result[column] is not None]
    totals = [result[column]["total_bytes"] / unit for column in columns]
    bottoms = [0.0] * len(columns)
    engine = "bitfleet" if result["preset"] == "bitfleet" else f"bitfleet, preset {result['preset']}"
    labels = ["standard\n(float32, Adam)", "paper\n(Algorithm 2, Adam)", f"{engine}\n({result['optimizer']})"][
        : len(columns)
    ]
    for group, (names, colour) in _GROUPS.items():
        sizes = [sum(result[c]["variables"].get(name, 0) for name in names) / unit for c in columns]
        if any(sizes):
            axes.bar(labels, sizes, bottom=bottoms, label=group, color=colour, width=0.6)
            bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    for place, total in enumerate(totals):
        ratio = "" if place == 0 else f"\n{describe_ratio(totals[0] / total)}"
        axes.annotate(
            f"{total:.3g} MiB{ratio}", (place, total), (0, 4), textcoords="offset points", ha="center", va="bottom"
        )
    axes.set_ylim(0, 1.18 * max(totals))
    axes.set_ylabel("MiB")
    axes.set_title(f"{result['model']}: memory to train with a batch of {result['batch_size']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)
