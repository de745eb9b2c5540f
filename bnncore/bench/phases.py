"""What an engine's phases achieved: milliseconds a step, products a second, and the share of the bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnncore.bench.bounds import bound_seconds, bounds_for
from bnncore.bench.counting import PHASES, PhaseWork

__all__ = ["describe_phases"]


def describe_phases(
    work: Mapping[str, PhaseWork],
    seconds: Mapping[str, float],
    *,
    steps: int,
    isa: str,
    clock_hz: float,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Put measured times and counted work together.

    Args:
      work: of one step, by phase.
      seconds: of all steps, by phase; empty where the engine does not tell.
      steps: how many there were.
      isa: whose bounds count.
      clock_hz: cycles a second of one core.
      threads: cores at work.

    Returns:
      By phase ``ms`` a step; and where it has products, ``macs`` a step, ``gmacs_per_s`` and ``share_of_bound`` (None
      where the instruction set has no bound), and ``macs_per_byte``.
    """
    bounds = bounds_for(isa)
    described: dict[str, dict[str, Any]] = {}
    for name in (name for name in PHASES if name in seconds):
        a_step = seconds[name] / steps
        described[name] = {"ms": a_step * 1e3}
        phase = work.get(name, PhaseWork())
        if phase.total_macs and a_step > 0:
            bound = bound_seconds(phase, bounds, clock_hz, threads)
            described[name] |= {
                "macs": phase.total_macs,
                "gmacs_per_s": phase.total_macs / a_step / 1e9,
                "share_of_bound": None if bound is None else bound / a_step,
                "macs_per_byte": phase.total_macs / phase.num_bytes,
            }
    return described
