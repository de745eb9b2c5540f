"""Results of ``bitfleet bench`` as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnncore.bench.phases import DEEP_FAN_IN
from bnncore.cli.output import format_bytes

__all__ = ["bench_table", "boards_table", "describe_other"]

_BUSY = 0.5
"""Load average from which another program must have been at work."""
_PHASES = {
    "forward": "forward",
    "recompute": "recompute",
    "grad_w": "weight gradient",
    "grad_x": "input gradient",
    "rest": "all else",
}


def describe_other(result: Mapping[str, Any]) -> str:
    """Name the other side: ``torch, fused Adam``, ``standard``."""
    other = result["against"]
    variant = result[other].get("variant")
    return f"{other}, {variant}" if variant else str(other)


def bench_table(result: Mapping[str, Any]) -> str:
    """Write a result of ``bnncore.bench.compare.compare`` as lines."""
    heading = (
        f"{result['model']}, batch {result['batch_size']}, preset {result['preset']} ({result['optimizer']}), "
        f"{result['isa']}, {result['threads']} thread(s) at {result['machine']['clock_hz'] / 1e9:.2f} GHz"
        + (", products kept" if result["keep_products"] else "")
    )
    sides = {"bitfleet": result["bitfleet"]}
    if "against" in result:
        sides[describe_other(result)] = result[result["against"]]
    width = max(18, *(len(name) + 2 for name in sides))
    lines = [heading, ""]
    lines.append(f"{'':<{width}}{'step':>12}{'p10':>12}{'p90':>12}{'memory':>12}{'process':>12}")
    for name, side in sides.items():
        times = "".join(f"{_ms(side[key]):>12}" for key in ("step_ms_median", "step_ms_p10", "step_ms_p90"))
        memory = "".join(f"{format_bytes(side[key]):>12}" for key in ("peak_bytes", "process_peak_bytes"))
        lines.append(f"{name:<{width}}{times}{memory}")
    lines += _phase_lines(result["bitfleet"])
    if "against" in result:
        lines += ["", *_comparison_lines(result)]
    lines.append(_energy_line(result["energy"]))
    load = result["machine"]["load_average_before"]
    if load >= _BUSY:
        lines.append(
            f"the machine was busy before (load average {load:.1f}): the figures are rough, most of all with threads, "
            "which wait for each other. Run it again when nothing else does"
        )
    return "\n".join(lines)


def boards_table(result: Mapping[str, Any]) -> str:
    """Write a result of ``bnncore.bench.boards.model_boards`` as lines."""
    heading = f"{result['model']}, batch {result['batch_size']}, four cores"
    lines = [
        f"{heading}: MODELLED from counted work and published rates, not measured",
        "",
        f"{'board':<20}{'seconds':>10}{'joules':>10}{'net joules':>12}",
    ]
    for name, board in result["boards"].items():
        lines.append(f"{name:<20}{board['seconds']:>10.3g}{board['joules']:>10.3g}{board['net_joules']:>12.3g}")
    if paper := result["paper"]:
        lines.append(f"{'paper, on a 3B+':<20}{paper['seconds']:>10.3g}{paper['joules']:>10.3g}   (measured)")
    lines += ["", "net: above what the idle board takes. " + result["assumptions"]]
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def _phase_lines(side: Mapping[str, Any]) -> list[str]:
    if not side["phases"]:
        return []
    deep = {f"{_PHASES[name]}, K >= {DEEP_FAN_IN}": phase for name, phase in side["deep_phases"].items()}
    rows = {_PHASES[name]: phase for name, phase in side["phases"].items()} | deep
    width = max(18, *(len(name) + 2 for name in rows))
    lines = ["", f"{'phase':<{width}}{'ms':>12}{'GMAC/s':>12}{'of bound':>12}"]
    for name, phase in rows.items():
        speed = f"{phase['gmacs_per_s']:.0f}" if "gmacs_per_s" in phase else ""
        share = phase.get("share_of_bound")
        lines.append(
            f"{name:<{width}}{phase['ms']:>12.3f}{speed:>12}{'' if share is None else f'{100 * share:.0f} %':>12}"
        )
    return lines


def _comparison_lines(result: Mapping[str, Any]) -> list[str]:
    other = result[result["against"]]
    speedup, memory = result["speedup"], result["memory_ratio"]
    compared = "times faster than" if speedup >= 1 else "times as fast as"
    leanest = f" than {result['against']} at its leanest" if "variants" in other else ""
    spread = (
        f"median of {len(result['ratios'])} pairs; p10 {result['speedup_p10']:.2f}, p90 {result['speedup_p90']:.2f}"
    )
    lines = [
        f"{speedup:.2f} {compared} {describe_other(result)} ({spread})",
        f"{memory:.3g} times less memory to train{leanest} (the whole process: {result['process_memory_ratio']:.3g})",
    ]
    for name, tried in other.get("variants", {}).items():
        found = tried.get("left_out") or f"{_ms(tried['step_ms_min'])} at best, {format_bytes(tried['peak_bytes'])}"
        lines.append(f"  tried torch, {name}: {found}")
    return lines


def _energy_line(energy: Mapping[str, Any]) -> str:
    if energy["modelled"] is None:
        line = "energy a step: not modelled"
    else:
        modelled = {name: side["total_j"] for name, side in energy["modelled"].items() if name != "source"}
        text = ", ".join(f"{name} {joules * 1e3:.3g} mJ" for name, joules in modelled.items())
        line = f"energy a step, modelled ({energy['modelled']['source']}): {text}"
    if energy["measured"] is None:
        return f"{line}; not measured: {energy['measured_by']}"
    text = ", ".join(f"{name} {joules * 1e3:.3g} mJ" for name, joules in energy["measured"].items())
    return f"{line}; measured ({energy['measured_by']}): {text}"
