"""Checks of what a device learns from and with: its data, its engine, and which networks it can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnncore.cli.output import format_bytes
from edge_client.doctor.checks import Check, Mark, ask_child

__all__ = ["DATA_S", "ENGINE_S", "check_data", "check_networks", "measure_engine"]

DATA_S = 120.0
ENGINE_S = 60.0
SLOW_STEP_S = 60.0

_SHOWN_CLASSES = 8
_SHOWN_REASONS = 3


def check_data(dataset: str | None, data: Path | None) -> Check:
    """Count the samples by class, and find what cannot be read."""
    arguments = [*(["--dataset", dataset] if dataset else []), *(["--data", str(data)] if data else [])]
    facts = ask_child("data", DATA_S, *arguments)
    counts: dict[str, int] = facts["counts"] or {}
    text = f"{facts['name']}: {facts['num_examples']} samples in {len(facts['classes'])} classes"
    if counts:
        shown = [f"{name} {count}" for name, count in list(counts.items())[:_SHOWN_CLASSES]]
        more = len(counts) - len(shown)
        text += f" ({', '.join(shown)}{f', {more} more' if more > 0 else ''})"
    if facts["broken"]:
        first = "; ".join(facts["reasons"][:_SHOWN_REASONS])
        text += f"; {facts['broken']} could not be read: {first}"
        return Check("data", Mark.NOTE, text, "repair these files or take them out; they are left out", facts)
    if empty := [name for name, count in counts.items() if count == 0]:
        return Check("data", Mark.NOTE, text, f"there is nothing of {', '.join(empty)}", facts)
    return Check("data", Mark.OK, text, "", facts)


def measure_engine(threads: int) -> tuple[Check, dict[str, Any]]:
    """Train on noise for a few seconds; gives what it says of each network too."""
    facts = ask_child("engine", ENGINE_S, "--threads", str(threads))
    measured = [
        f"{name} {1e3 * network['step_seconds']:.1f} ms"
        for name, network in facts["networks"].items()
        if network["is_measured"]
    ]
    text = f"{facts['isa']}; a step of {facts['batch_size']} samples: {', '.join(measured)}"
    networks: dict[str, Any] = facts.pop("networks")
    if facts["isa"] == "portable":
        return Check("engine", Mark.NOTE, text, "no kernels for this processor: it works, and is slow", facts), networks
    return Check("engine", Mark.OK, text, "", facts), networks


def check_networks(networks: dict[str, Any], memory: int) -> Check:
    """Say which networks of the zoo fit here."""
    lines: list[str] = []
    fits: list[str] = []
    for name, network in networks.items():
        needed, seconds = network["memory_bytes"], network["step_seconds"]
        is_slow = seconds is not None and seconds > SLOW_STEP_S
        verdict = "too large" if needed > memory else "slow" if is_slow else "fits"
        fits += [name] if needed <= memory and not is_slow else []
        about = "a step" if network["is_measured"] else "a step, about"
        time = "" if seconds is None else f", {about} {_seconds(seconds)}"
        lines.append(f"{name:<10} {verdict:<9} {format_bytes(needed)}{time}")
    text = "\n".join(lines)
    facts = {"networks": networks, "fits": fits, "memory_bytes": memory}
    if not fits:
        return Check("networks", Mark.NOTE, text, "give it more memory (--memory-budget), or smaller networks", facts)
    return Check("networks", Mark.OK, text, "", facts)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
