"""``bitfleet bench --plot``: the step's time by phase beside the other side's, and the phases under their roofs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnncore.bench.bounds import bounds_for
from bnncore.bench.counting import Kind
from bnncore.bench.report import describe_other
from bnncore.drawing import check_picture, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bench"]

_COLOURS = {
    "forward": "#4477aa",
    "recompute": "#66ccee",
    "grad_w": "#ee6677",
    "grad_x": "#ccbb44",
    "rest": "#bbbbbb",
}
_NAMES = {"grad_w": "weight gradient", "grad_x": "input gradient", "rest": "all else"}
_WHOLE_STEP = "#aa3377"
_ROOFS: dict[Kind, str] = {"binary": "binary", "gradient": "8-bit × bit", "input": "8-bit × 8-bit", "float": "float32"}


def plot_bench(result: Mapping[str, Any], path: str) -> None:
    """Draw what ``bnncore.bench.compare.compare`` gives.

    Args:
      result: its result.
      path: the picture; its ending decides the format.

    Raises:
      ConfigurationError: matplotlib is missing, the format is unknown, or the file cannot be written.
    """
    check_picture(path)
    figure = new_figure(11.0, 4.4)
    times, roofs = figure.subplots(1, 2, width_ratios=(2, 3))
    _draw_times(times, result)
    _draw_roofs(roofs, result)
    figure.suptitle(
        f"{result['model']}: a training step with a batch of {result['batch_size']}, {result['threads']} thread(s), "
        f"{result['isa']} at {result['machine']['clock_hz'] / 1e9:.2f} GHz"
    )
    save_figure(figure, path)


def _draw_times(axes: Axes, result: Mapping[str, Any]) -> None:
    ours = result["bitfleet"]
    bottom = 0.0
    for name, phase in ours["phases"].items():
        axes.bar(["bitfleet"], [phase["ms"]], bottom=bottom, color=_COLOURS[name], label=_NAMES.get(name, name))
        bottom += phase["ms"]
    if not ours["phases"]:
        axes.bar(["bitfleet"], [ours["step_ms_median"]], color=_WHOLE_STEP)
    tops = {"bitfleet": max(bottom, ours["step_ms_median"])}
    texts = {"bitfleet": f"{ours['step_ms_median']:.3g} ms"}
    if "against" in result:
        name = describe_other(result).replace(", ", "\n")
        tops[name] = result[result["against"]]["step_ms_median"]
        axes.bar([name], [tops[name]], color=_WHOLE_STEP)
        texts[name] = f"{tops[name]:.3g} ms"
        texts["bitfleet"] += f"\n{result['speedup']:.2f} times faster" if result["speedup"] >= 1 else ""
    for place, (name, top) in enumerate(tops.items()):
        axes.annotate(texts[name], (place, top), (0, 4), textcoords="offset points", ha="center", va="bottom")
    axes.set_ylim(0, 1.18 * max(tops.values()))
    axes.set_ylabel("ms a step")
    axes.spines[["top", "right"]].set_visible(False)
    if ours["phases"]:
        axes.legend(frameon=False, loc="upper left")


def _draw_roofs(axes: Axes, result: Mapping[str, Any]) -> None:
    """Products a second over products a byte, both logarithmic: a phase can be no higher than its roof."""
    machine, threads = result["machine"], result["threads"]
    gigabytes = machine["copy_bytes_per_s"] / 1e9
    points = {name: phase for name, phase in result["bitfleet"]["phases"].items() if "gmacs_per_s" in phase}
    intensities = [phase["macs_per_byte"] for phase in points.values()] or [100.0]
    left, right = 0.5 * min(1.0, *intensities), 2 * max(1000.0, *intensities)
    bounds = bounds_for(result["isa"])
    tops = []
    for kind, title in _ROOFS.items():
        if kind not in bounds:
            continue
        top = bounds[kind].macs_per_cycle * machine["clock_hz"] * threads / 1e9
        tops.append(top)
        corner = top / gigabytes
        axes.plot([left, corner, right], [left * gigabytes, top, top], color="#999999", linewidth=1)
        axes.annotate(f"{title}, {bounds[kind].kernel}: {top:.0f}", (corner, top), (4, 3), textcoords="offset points")
    for name, phase in points.items():
        label = f"{_NAMES.get(name, name)}: {phase['gmacs_per_s']:.0f}"
        axes.plot([phase["macs_per_byte"]], [phase["gmacs_per_s"]], "o", color=_COLOURS[name], label=label)
    axes.annotate(f"memory: {gigabytes:.0f} GB/s", (left, left * gigabytes), (12, 0), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    heights = [left * gigabytes, *tops, *(phase["gmacs_per_s"] for phase in points.values())]
    axes.set_ylim(0.5 * min(heights), 2 * max(heights))
    axes.set_xlabel("products a byte moved")
    axes.set_ylabel("GMAC/s")
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        axes.legend(frameon=False, loc="lower right")
