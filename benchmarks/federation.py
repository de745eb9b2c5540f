"""Whole federations side by side: accuracy, bits a weight, memory and time of every row below.

    python -m benchmarks.federation --out build/federation --data DIR

Runs ``bitfleet-server simulate`` for every row, one after the other, and keeps each result as JSON in --out; then
draws accuracy by round and writes the table from all that is there. ``--rows`` names some of the rows (the others keep
what an earlier run left), an empty list none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnncore.cli.output import format_bytes

TEN = "--devices 10 --cohort 10 --rounds 30 --local-steps 60"
POISONED = "--devices 20 --cohort 20 --rounds 20 --local-steps 30 --alpha 0.5 --attackers 4 --attack scale"
THOUSAND = "--devices 1000 --cohort 100 --rounds 20 --local-steps 30 --alpha 0.5"


@dataclass(frozen=True)
class Row:
    """One simulation."""

    name: str
    options: str
    panel: str
    """The plot that it is drawn in."""

    def command(self) -> list[str]:
        return ["simulate", "--dataset", "mnist", "--model", "mlp", *self.options.split(), "--seed", "0"]


ROWS = [
    Row("fedavg-iid", f"{TEN} --alpha inf", "ten devices, alike"),
    Row("onebit-iid", f"{TEN} --alpha inf --recipe onebit", "ten devices, alike"),
    Row("fedavg-0.5", f"{TEN} --alpha 0.5", "ten devices, alpha 0.5"),
    Row("onebit-0.5", f"{TEN} --alpha 0.5 --recipe onebit", "ten devices, alpha 0.5"),
    Row("fedavg-absent", f"{TEN} --alpha 0.5 --absent 0.3", "ten devices, alpha 0.5"),
    Row("onebit-absent", f"{TEN} --alpha 0.5 --absent 0.3 --recipe onebit", "ten devices, alpha 0.5"),
    *(
        Row(f"poisoned-{strategy}", f"{POISONED} --strategy {strategy}", "twenty devices, four hostile")
        for strategy in ("fedavg", "median", "trimmed_mean", "krum", "multikrum", "signvote")
    ),
    Row("thousand", THOUSAND, "a thousand devices"),
]


def run(row: Row, out: Path, data: Path | None, threads: int | None) -> None:
    """Run one row and keep its result."""
    path = out / f"{row.name}.json"
    command = [sys.executable, "-m", "server", *row.command(), "--json", str(path)]
    command += [] if data is None else ["--data", str(data)]
    command += [] if threads is None else ["--threads", str(threads)]
    print(f"{row.name}: {' '.join(row.command())}", flush=True)
    subprocess.run(command, check=True)


def read(out: Path) -> dict[Row, dict[str, Any]]:
    """Give the results that are there."""
    paths = {row: out / f"{row.name}.json" for row in ROWS}
    return {row: json.loads(path.read_text()) for row, path in paths.items() if path.exists()}


def table(results: dict[Row, dict[str, Any]]) -> str:
    """Write the results as a table for a page."""
    lines = [
        "| row | accuracy, last round (best) | bits a weight down / up | updates | peak RSS | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row, result in results.items():
        best = max(result["accuracy_by_round"])
        lines.append(
            f"| `{row.name}` | **{result['accuracy']:.2f} %** ({best:.2f} %) "
            f"| {result['bits_per_weight_down']:.3f} / {result['bits_per_weight_up']:.3f} "
            f"| {result['updates']} of {result['cohort'] * result['rounds']} "
            f"| {format_bytes(result['rss_peak_bytes'])} | {result['seconds']:.0f} |"
        )
    commands = [f"{row.name:<22} bitfleet-server {' '.join(row.command())}" for row in results]
    return "\n".join([*lines, "", "```text", *commands, "```", ""])


def plot(results: dict[Row, dict[str, Any]], path: Path) -> None:
    """Draw accuracy by round, a panel for each kind of fleet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row.panel for row in results))
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row, result in results.items():
            if row.panel == panel:
                accuracies = result["accuracy_by_round"]
                axes.plot(range(1, len(accuracies) + 1), accuracies, label=row.name)
        axes.set_title(panel)
        axes.set_xlabel("round")
        axes.set_ylabel("accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the rows, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--out", type=Path, default=Path("build/federation"), metavar="DIR")
    parser.add_argument("--rows", default=",".join(names), metavar="NAME,...", help=f"default: {','.join(names)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder (the variable BITFLEET_DATA)")
    parser.add_argument("--threads", type=int, metavar="N", help="devices that train at once (all processors)")
    args = parser.parse_args()
    chosen = [name for name in args.rows.split(",") if name]
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown rows {sorted(unknown)}; known: {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        if row.name in chosen:
            run(row, args.out, args.data, args.threads)
    results = read(args.out)
    if results:
        (args.out / "federation.json").write_text(
            json.dumps({row.name: {"command": " ".join(row.command()), **r} for row, r in results.items()}, indent=1)
        )
        (args.out / "federation.md").write_text(table(results))
        plot(results, args.out / "federation.png")
        print(table(results))


if __name__ == "__main__":
    main()
