"""How fast and how small a training step is: every measured figure of docs/performance.md, in one program.

    python -m benchmarks.performance --out build/bench --page docs/performance.md

Runs ``bitfleet bench`` for every case below, one after the other, and keeps each result as JSON in --out; with --page,
what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in that page is written anew from them, and pictures are
copied into results/ beside it. ``--cases`` names some of the cases (the others keep what an earlier run left in --out),
an empty list none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnncore.bench.boards import model_boards
from bnncore.bench.phases import DEEP_FAN_IN
from bnncore.cli.output import format_bytes
from bnncore.optimizer import resolve_preset
from bnncore.zoo import build

MODELS = ("mlp", "cnv", "binarynet")
PHASES = {"forward": "forward", "recompute": "recompute", "grad_w": "dW", "grad_x": "dX", "rest": "rest"}
PROTOTYPE_MS = {("mlp", 100): 26.3, ("mlp", 200): 40.3, ("binarynet", 40): 7700.0}
"""The paper's own C++ prototype, CBLAS build, Algorithm 2, built and timed on a Zen 4 at 3.65 GHz, one thread."""


@dataclass(frozen=True)
class Case:
    """One run of ``bitfleet bench``."""

    model: str
    threads: int = 1
    isa: str | None = None
    batch_size: int = 100
    against: str | None = "torch"
    keeps: bool = False
    draws: bool = False

    @property
    def name(self) -> str:
        parts = [self.model, f"b{self.batch_size}", f"t{self.threads}", self.isa, self.against]
        parts += ["kept"] * self.keeps
        return "-".join(part for part in parts if part)

    @property
    def title(self) -> str:
        return f"{self.model}, products kept" if self.keeps else self.model

    def command(self) -> list[str]:
        words = ["bench", "--model", self.model, "--batch-size", str(self.batch_size)]
        words += ["--threads", str(self.threads)] + ["--keep-products"] * self.keeps
        return words + (["--against", self.against] if self.against else [])


CASES = [
    *(Case(model, draws=True) for model in MODELS),
    *(Case(model, threads=2) for model in MODELS),
    *(Case("mlp", threads=threads, keeps=True) for threads in (1, 2)),
    *(Case(model, isa="avx2") for model in MODELS),
    *(Case(model, against=other) for model in MODELS for other in ("standard", "paper")),
    Case("mlp", isa="portable", against=None),
    Case("mlp", batch_size=200, against=None),
    Case("binarynet", batch_size=40, against=None),
]


def run(case: Case, out: Path) -> None:
    """Measure one case in a process of its own."""
    print(f"bitfleet {' '.join(case.command())}", "" if case.isa is None else f"(BITFLEET_ISA={case.isa})", flush=True)
    command = [sys.executable, "-m", "bnncore.cli", *case.command(), "--json", str(out / f"{case.name}.json")]
    if case.draws:
        command += ["--plot", str(out / f"{case.name}.png")]
    environment = os.environ | ({} if case.isa is None else {"BITFLEET_ISA": case.isa})
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def read(out: Path) -> dict[Case, dict[str, Any]]:
    """Give the results that are there."""
    paths = {case: out / f"{case.name}.json" for case in CASES}
    return {case: json.loads(path.read_text()) for case, path in paths.items() if path.exists()}


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(*lines: str) -> str:
    head, *rest = lines
    return "\n".join([head, row(*["---"] * (head.count("|") - 1)), *rest])


def short(number: float) -> str:
    """Write three digits, and all of those before the point."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def ms(side: dict[str, Any]) -> str:
    """Median and spread: 3.12 (3.05 to 3.30)."""
    median, low, high = (short(side[key]) for key in ("step_ms_median", "step_ms_p10", "step_ms_p90"))
    return f"{median} ({low} to {high})"


def speed_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "threads", "ISA", "bitfleet, ms", "PyTorch, ms", "its fastest way", "**times faster**")]
    for case, result in results.items():
        if case.against == "torch":
            cells = [case.title, str(case.threads), result["isa"], ms(result["bitfleet"]), ms(result["torch"])]
            spread = f"({result['speedup_p10']:.2f} to {result['speedup_p90']:.2f})"
            lines.append(row(*cells, result["torch"]["variant"], f"**{result['speedup']:.2f}** {spread}"))
    return table(*lines)


def memory_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "bitfleet", "PyTorch, at least", "**times less**", "whole process", "PyTorch's")]
    for case, result in results.items():
        if case.against == "torch" and case.threads == 1 and case.isa is None:
            ours, theirs = result["bitfleet"], result["torch"]
            tried = [v["peak_bytes"] for v in theirs["variants"].values() if "peak_bytes" in v]
            cells = [case.title, format_bytes(ours["peak_bytes"]), format_bytes(min([theirs["peak_bytes"], *tried]))]
            processes = [format_bytes(side["process_peak_bytes"]) for side in (ours, theirs)]
            lines.append(row(*cells, f"**{result['memory_ratio']:.3g}**", *processes))
    return table(*lines)


def phases_table(results: dict[Case, dict[str, Any]]) -> str:
    titles = [*(f"{title}, ms" for title in PHASES.values()), "GMAC/s (share of the bound)"]
    lines = [row("network", "ISA", *titles, f"binary layers, K ≥ {DEEP_FAN_IN:,}")]
    for case, result in results.items():
        ours = result["bitfleet"]
        phases = ours["phases"]
        if case.against == "torch" and case.threads == 1 and phases:
            times = [f"{phases[name]['ms']:.3g}" if name in phases else "" for name in PHASES]
            lines.append(row(case.title, result["isa"], *times, rates(phases), rates(ours["deep_phases"])))
    return table(*lines)


def rates(phases: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{PHASES[name]} {rate(phase)}" for name, phase in phases.items() if "gmacs_per_s" in phase)


def rate(phase: dict[str, Any]) -> str:
    share = phase["share_of_bound"]
    return f"{phase['gmacs_per_s']:.0f}" + ("" if share is None else f" ({100 * share:.0f} %)")


def variants_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "threads", "PyTorch's ways, fastest step in ms")]
    for case, result in results.items():
        if case.against == "torch" and case.isa is None:
            tried = result["torch"]["variants"]
            cells = [
                f"{n} {short(v['step_ms_min'])}" if "step_ms_min" in v else f"{n}: left out" for n, v in tried.items()
            ]
            lines.append(row(case.model, str(case.threads), ", ".join(cells)))
    return table(*lines)


def presets_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "against", "bitfleet, ms", "the other, ms", "**times faster**", "times less memory")]
    for case, result in results.items():
        if case.against in ("standard", "paper"):
            cells = [case.title, case.against, ms(result["bitfleet"]), ms(result[case.against])]
            lines.append(row(*cells, f"**{result['speedup']:.2f}**", f"{result['memory_ratio']:.3g}"))
    return table(*lines)


def prototype_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "batch", "ISA", "bitfleet, ms", "the paper's prototype, ms", "times")]
    chosen = [
        case for case in results if case.threads == 1 and (case.against is None or case == Case("mlp", draws=True))
    ]
    for case in chosen:
        prototype = PROTOTYPE_MS.get((case.model, case.batch_size))
        if prototype is not None:
            side = results[case]["bitfleet"]
            cells = [case.model, str(case.batch_size), results[case]["isa"], ms(side), f"{prototype:g}"]
            lines.append(row(*cells, f"{prototype / side['step_ms_median']:.1f}"))
    return table(*lines)


def energy_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network", "bitfleet: products, bytes", "standard: products, bytes", "times less", "measured")]
    for case, result in results.items():
        if case.against == "torch" and case.threads == 1 and case.isa is None:
            modelled, measured = result["energy"]["modelled"], result["energy"]["measured"]
            cells = [
                f"{short(m['total_j'] * 1e3)} mJ: {short(m['compute_j'] * 1e3)}, {short(m['memory_j'] * 1e3)}"
                for m in (modelled["bitfleet"], modelled["torch"])
            ]
            found = (
                "no counters" if measured is None else ", ".join(f"{n} {j * 1e3:.3g} mJ" for n, j in measured.items())
            )
            times = modelled["torch"]["total_j"] / modelled["bitfleet"]["total_j"]
            lines.append(row(case.title, *cells, f"{times:.1f}", found))
    return table(*lines)


def boards_table(results: dict[Case, dict[str, Any]]) -> str:
    lines = [row("network, batch", "board", "s a batch", "J", "J above idle")]
    for model, batch_size in (("mlp", 200), ("binarynet", 40)):
        result = model_boards(build(model), batch_size, resolve_preset())
        for name, board in result["boards"].items():
            joules = [f"{board[key]:.2g}" for key in ("joules", "net_joules")]
            lines.append(row(f"{model}, {batch_size}", f"{name}, modelled", f"{board['seconds']:.2g}", *joules))
        paper = result["paper"]
        lines.append(
            row(
                f"{model}, {batch_size}",
                "3B+, the paper, **measured**",
                str(paper["seconds"]),
                "",
                str(paper["joules"]),
            )
        )
    return table(*lines)


def pictures(results: dict[Case, dict[str, Any]]) -> str:
    return "\n\n".join(f"![{case.model}]({picture_of(case)})" for case in results if case.draws)


def picture_of(case: Case) -> str:
    """Where a case's picture lies, as the page says it."""
    return f"results/bench-{case.model}.png"


def machine_line(results: dict[Case, dict[str, Any]]) -> str:
    if not results:
        return ""
    machines = [result["machine"] for result in results.values()]
    clocks = sorted(machine["clock_hz"] for machine in machines)
    busiest = max(machine["load_average_before"] for machine in machines)
    digests = sorted({result["preset_digest"][:12] for result in results.values()})
    return (
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {machines[0]['cpus']} cores at {clocks[0] / 1e9:.2f} to "
        f"{clocks[-1] / 1e9:.2f} GHz (measured), load average before a run at most {busiest:.1f}, "
        f"preset digest {', '.join(digests)}."
    )


TABLES: dict[str, Callable[[dict[Case, dict[str, Any]]], str]] = {
    "machine": machine_line,
    "speed": speed_table,
    "memory": memory_table,
    "phases": phases_table,
    "pictures": pictures,
    "variants": variants_table,
    "presets": presets_table,
    "prototype": prototype_table,
    "energy": energy_table,
    "boards": boards_table,
}


def fill(page: str, results: dict[Case, dict[str, Any]]) -> str:
    """Write what stands between the marks anew; what no mark names stays as it is."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        page = pattern.sub(rf"\g<1>{make(results)}\n\g<2>", page)
    return page


def main() -> None:
    """Run the cases and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE.md")
    parser.add_argument("--cases", default=",".join(names), metavar="NAME,...", help=f"default: {','.join(names)}")
    args = parser.parse_args()
    chosen = [name for name in args.cases.split(",") if name]
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown cases {sorted(unknown)}; known: {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if case.name in chosen:
            run(case, args.out)
    if args.page:
        (args.page.parent / "results").mkdir(exist_ok=True)
        for case in read(args.out):
            if case.draws:
                shutil.copyfile(args.out / f"{case.name}.png", args.page.parent / picture_of(case))
        args.page.write_text(fill(args.page.read_text(), read(args.out)))


if __name__ == "__main__":
    main()
