"""Whole federations side by side: accuracy, bits a weight, memory and time of every row below.

    python -m benchmarks.federation --out build/federation --data DIR

Runs ``bitfleet-server simulate`` for every row and seed, one after the other, and keeps each result as JSON in --out;
what is there already is not run again. Then draws accuracy by round and writes the table from all that is there.
``--rows`` names some of the rows, an empty list none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bnncore.cli.output import format_bytes

TEN = "--devices 10 --cohort 10 --rounds 30 --local-steps 60"
FLOAT = "--up float32 --down float32 --statistics 20"
ONEBIT = "--recipe onebit"
FLIPS = "--recipe onebit --up flips --down flips"
TWENTY = "--devices 20 --cohort 20 --rounds 20 --local-steps 30 --alpha inf"
THOUSAND = "--devices 1000 --cohort 100 --rounds 20 --local-steps 30 --alpha 0.5"


@dataclass(frozen=True)
class Row:
    """One federation, simulated once for each seed."""

    name: str
    options: str
    panel: str
    """The plot that it is drawn in."""

    def command(self, seed: int) -> list[str]:
        return ["simulate", "--dataset", "mnist", "--model", "mlp", *self.options.split(), "--seed", str(seed)]


_FLEETS = {
    "iid": (f"{TEN} --alpha inf", "ten devices, alike"),
    "0.5": (f"{TEN} --alpha 0.5", "ten devices, alpha 0.5"),
    "absent": (f"{TEN} --alpha 0.5 --absent 0.3", "alpha 0.5, 30 % absent"),
}
_HOW = {"float32": FLOAT, "onebit": ONEBIT, "flips": FLIPS}
_STRATEGIES = ("fedavg", "median", "trimmed_mean", "multikrum", "signvote")

ROWS = [
    *(
        Row(f"{how}-{fleet}", f"{options} {how_options}", panel)
        for fleet, (options, panel) in _FLEETS.items()
        for how, how_options in _HOW.items()
    ),
    Row("clean", TWENTY, "twenty devices, four hostile"),
    *(
        Row(
            f"{attack}-{strategy}",
            f"{TWENTY} --attackers 4 --attack {attack} --strategy {strategy}",
            "twenty devices, four hostile",
        )
        for attack in ("negate", "scale")
        for strategy in _STRATEGIES
    ),
    Row("thousand", f"{THOUSAND} --recipe onebit", "a thousand devices"),
]

Results = dict[Row, dict[int, dict[str, Any]]]
"""By row and seed."""


def run(row: Row, seed: int, out: Path, data: Path | None, threads: int | None) -> None:
    """Run one row with one seed and keep its result; one that is there already is kept as it is."""
    path = out / f"{row.name}.{seed}.json"
    if path.exists():
        return
    command = [sys.executable, "-m", "server", *row.command(seed), "--json", str(path)]
    command += [] if data is None else ["--data", str(data)]
    command += [] if threads is None else ["--threads", str(threads)]
    print(f"{row.name}: {' '.join(row.command(seed))}", flush=True)
    subprocess.run(command, check=True)


def read(out: Path) -> Results:
    """Give the results that are there."""
    found = {
        row: {
            int(path.suffixes[-2][1:]): json.loads(path.read_text()) for path in sorted(out.glob(f"{row.name}.?.json"))
        }
        for row in ROWS
    }
    return {row: results for row, results in found.items() if results}


def table(results: Results) -> str:
    """Write the results as a table for a page."""
    lines = [
        "| row | accuracy after the last round by seed, % | mean | bits a weight down / up | updates | peak RSS | s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, by_seed in results.items():
        accuracies = [result["accuracy"] for result in by_seed.values()]
        any_one = by_seed[min(by_seed)]
        lines.append(
            f"| `{row.name}` | {' '.join(f'{accuracy:.2f}' for accuracy in accuracies)} | **{mean(accuracies):.2f}** "
            f"| {any_one['bits_per_weight_down']:.3f} / {any_one['bits_per_weight_up']:.3f} "
            f"| {any_one['updates']} of {any_one['cohort'] * any_one['rounds']} "
            f"| {format_bytes(any_one['rss_peak_bytes'])} | {any_one['seconds']:.0f} |"
        )
    commands = [
        f"{row.name:<20} bitfleet-server {' '.join(row.command(min(by_seed)))}" for row, by_seed in results.items()
    ]
    return "\n".join([*lines, "", "```text", *commands, "```", ""])


def plot(results: Results, path: Path) -> None:
    """Draw accuracy by round, a panel for each kind of fleet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row.panel for row in results))
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row, by_seed in results.items():
            if row.panel == panel:
                rounds = zip(*(result["accuracy_by_round"] for result in by_seed.values()), strict=True)
                accuracies = [mean(of_round) for of_round in rounds]
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
    parser.add_argument(
        "--seeds", default="0,1,2", metavar="N,...", help="of every row (0,1,2); `thousand` takes the first"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder (the variable BITFLEET_DATA)")
    parser.add_argument("--threads", type=int, metavar="N", help="devices that train at once (all processors)")
    args = parser.parse_args()
    chosen = [name for name in args.rows.split(",") if name]
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown rows {sorted(unknown)}; known: {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        for row in ROWS:
            if row.name in chosen and (row.name != "thousand" or seed == seeds[0]):
                run(row, seed, args.out, args.data, args.threads)
    results = read(args.out)
    if results:
        (args.out / "federation.json").write_text(
            json.dumps({row.name: {"options": row.options, "by_seed": r} for row, r in results.items()}, indent=1)
        )
        (args.out / "federation.md").write_text(table(results))
        plot(results, args.out / "federation.png")
        print(table(results))


if __name__ == "__main__":
    main()
