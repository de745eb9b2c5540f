"""The four quantities side by side, on logarithmic axes."""

from __future__ import annotations

from statistics import median
from typing import Any

SIDES = {"flower": "#ee6677", "bitfleet": "#4477aa"}
MIB = 1 << 20


def plot(result: dict[str, Any], path: str) -> None:
    """Draw the result of the benchmark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    runs = {side: [run for run in result["runs"] if run["side"] == side] for side in SIDES}
    target = result["options"]["server_target"]
    followed = ", extrapolated" if result["server_pss_is_extrapolated"] else ""
    panels: list[tuple[str, str, list[float]]] = [
        (
            "KiB a device and round",
            "bytes_ratio",
            [median(run["bytes_per_device_round"] for run in runs[side]) / 1024 for side in SIDES],
        ),
        (
            "overhead of a round, s",
            "overhead_ratio",
            [median(value for run in runs[side] for value in run["overheads_s"]) for side in SIDES],
        ),
        (
            "device's peak PSS, MiB",
            "device_pss_ratio",
            [median(peak for run in runs[side] for peak in run["device_pss_peak_bytes"]) / MIB for side in SIDES],
        ),
        (
            f"coordinator's peak PSS, MiB\n{target} devices{followed}",
            "server_pss_ratio",
            [result["servers"][side]["pss_peak_bytes"] / MIB for side in SIDES],
        ),
    ]
    for axes, (title, ratio, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        bars = axes.bar(list(SIDES), values, color=list(SIDES.values()), width=0.6)
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2)
        axes.set_yscale("log")
        axes.margins(y=0.2)
        axes.set_title(f"{title}\n{result[ratio]:.1f} times less", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
