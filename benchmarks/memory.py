"""Peak memory of training, measured beside what was planned, for the paper's networks and all presets.

For each network and preset a process of its own trains a few steps, and another one does all but train; what lies
between their peak resident sizes (VmHWM of each) is what training took. Run it with

    python -m benchmarks.memory --json build/memory.json --plot build/memory.png

and the residual network, whose step in float32 takes long, with

    python -m benchmarks.memory --models resnete18 --batch-size 32 --presets standard,bitfleet --steps 1 --repeats 1

The samples are random numbers in the networks' usual shapes, of ten classes: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.data import write_idx
from bnncore.memory import count_layers, paper_memory, standard_memory
from bnncore.optimizer import Preset, resolve_preset
from bnncore.zoo import ZOO, build

MIB = 1 << 20
CLASSES = 10
PRESETS = "standard:adam,paper:adam,bitfleet:latent8m,bitfleet:latent8,bitfleet:bop"
"""PRESET:OPTIMIZER, the largest first: the others are compared with it."""


def make_samples(folder: Path, shape: tuple[int, ...], count: int) -> None:
    """Write random samples of one shape as an idx folder."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        samples = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        write_idx(folder, samples, np.arange(count) % CLASSES, split, classes=[str(i) for i in range(CLASSES)])


def train(model: str, preset: str, optimizer: str, data: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Run ``bitfleet train`` in a process of its own; give what it reports."""
    command = [sys.executable, "-m", "bnncore.cli", "train", "--model", model, "--data", str(data)]
    command += ["--preset", preset, "--optimizer", optimizer, "--batch-size", str(batch_size)]
    command += ["--max-steps", str(steps), "--json", "-"]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(model: str, presets: list[Preset], batch_size: int, repeats: int, steps: int) -> list[dict[str, Any]]:
    """Measure one network under every preset; give a row for each, in MiB."""
    spec = build(model, classes=CLASSES)
    counts = count_layers(spec)
    published = {
        "standard": standard_memory(counts, batch_size).total_bytes / MIB,
        "paper": paper_memory(counts, batch_size).total_bytes / MIB,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_samples(Path(folder), spec.input_shape, batch_size * max(2, steps))
        for preset, optimizer in ((preset.name, preset.optimizer.name) for preset in presets):
            trained = [train(model, preset, optimizer, Path(folder), batch_size, steps) for _ in range(repeats)]
            idle = [train(model, preset, optimizer, Path(folder), batch_size, 0) for _ in range(repeats)]
            peaks = [statistics.median(run["rss_peak_bytes"] for run in runs) for runs in (trained, idle)]
            rows.append(
                {
                    "model": model,
                    "preset": preset,
                    "optimizer": optimizer,
                    "batch_size": batch_size,
                    "preset_digest": trained[0]["preset_digest"],
                    "published_model_mib": published.get(preset),
                    "planned_mib": trained[0]["plan_peak_bytes"] / MIB,
                    "measured_mib": (peaks[0] - peaks[1]) / MIB,
                    "whole_process_mib": peaks[0] / MIB,
                }
            )
            rows[-1]["times_less_than_standard"] = rows[0]["measured_mib"] / rows[-1]["measured_mib"]
            print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    model = "" if row["published_model_mib"] is None else f"{row['published_model_mib']:.2f}"
    return (
        f"{row['model']:<10}{row['preset']:<10}{row['optimizer']:<10}{model:>9}{row['planned_mib']:>10.2f}"
        f"{row['measured_mib']:>10.2f}{row['times_less_than_standard']:>8.1f}{row['whole_process_mib']:>10.1f}"
    )


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw the measured peaks, one panel a network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.6 * len(models), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, model in zip(np.atleast_1d(figure.subplots(1, len(models))), models, strict=True):
        chosen = [row for row in rows if row["model"] == model]
        names = [f"{row['preset']}\n{row['optimizer']}" for row in chosen]
        bars = axes.bar(names, [row["measured_mib"] for row in chosen], color="#4477aa", width=0.65)
        axes.bar_label(bars, [f"{row['measured_mib']:.3g}" for row in chosen], padding=2)
        axes.plot(names, [row["planned_mib"] for row in chosen], "_", color="#ee6677", markersize=26, label="planned")
        axes.set_title(f"{model}, batch {chosen[0]['batch_size']}")
        axes.set_ylabel("MiB of training, measured")
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnv,binarynet", help="networks of the zoo (default: the paper's)")
    parser.add_argument("--presets", default=PRESETS, help=f"PRESET or PRESET:OPTIMIZER (default: {PRESETS})")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts (default: 3)")
    parser.add_argument("--steps", type=int, default=2, help="steps of each run (default: 2)")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    unknown = set(args.models.split(",")) - set(ZOO)
    if unknown:
        parser.error(f"unknown models {sorted(unknown)}; known: {sorted(ZOO)}")
    named = [name.partition(":") for name in args.presets.split(",")]
    presets = [resolve_preset(name, optimizer or None) for name, _, optimizer in named]
    print(
        f"{'model':<10}{'preset':<10}{'optimizer':<10}{'published':>9}{'planned':>10}{'measured':>10}{'less':>8}{'process':>10}"
    )
    rows = [
        row
        for model in args.models.split(",")
        for row in measure(model, presets, args.batch_size, args.repeats, args.steps)
    ]
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows}, indent=1))
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
