"""The audit's page of tables and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PICTURED", "plot", "tables"]

PICTURED = 8
"""True images in the picture."""


def tables(outcome: dict[str, Any]) -> str:
    """Write the two tables as Markdown."""
    counts = outcome["images"]
    head = " | ".join(f"{n} image{'s' if n > 1 else ''}" for n in counts)
    lines = [f"| what arrives | {head} |", "| --- |" + " --- |" * len(counts)]
    for row in outcome["inversion"]:
        if row["by_images"].keys() == {str(count) for count in counts}:
            cells = " | ".join(_cell(result) for result in row["by_images"].values())
            lines.append(f"| {row['label']} | {cells} |")
    lines += ["", "| what arrives of many images | |", "| --- | --- |"]
    for row in outcome["inversion"]:
        if len(row["by_images"]) == 1:
            lines += [f"| {row['label']} | {_cell(result)} |" for result in row["by_images"].values()]
    lines += ["", "| what arrives | AUC | TPR at 1 % FPR |", "| --- | --- | --- |"]
    for row in outcome["membership"]:
        lines.append(f"| {row['label']} | {row['auc']:.2f} | {100 * row['tpr']:.1f} % |")
    return "\n".join(lines) + "\n"


def plot(path: Path, true: Any, rebuilt: dict[str, Any]) -> None:
    """Draw the true images, and below them the best guess at each in every setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = {"true images": true, **rebuilt}
    figure, axes = plt.subplots(len(rows), PICTURED, figsize=(9, 0.62 * len(rows)))
    for (label, images), line in zip(rows.items(), axes, strict=True):
        for image, axis in zip(images, line, strict=True):
            axis.imshow(np.reshape(image, (28, 28)), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
        line[0].text(-4, 14, label, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=0.4, right=0.99, top=0.99, bottom=0.01, wspace=0.05, hspace=0.08)
    figure.savefig(path, dpi=72, pil_kwargs={"optimize": True})
    plt.close(figure)


def _cell(result: dict[str, float]) -> str:
    return f"{100 * result['re_identified']:.0f} % · {result['ssim']:.2f} · {result['correlation']:.2f}"
