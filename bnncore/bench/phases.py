"""What an engine's phases achieved: milliseconds a step, products a second, and the share of the bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnncore.bench.bounds import bound_seconds, bounds_for
from bnncore.bench.counting import PHASES, PhaseWork, add_work
from bnncore.spec import ModelSpec

__all__ = ["DEEP_FAN_IN", "Achieved"]

DEEP_FAN_IN = 1024
"""Fan-in from which a binary layer is reported among the deep ones, whose speed depends on products alone."""


@dataclass(frozen=True)
class Achieved:
    """How measured times become speeds.

    Attributes:
      steps: how many the times are of.
      isa: whose bounds count.
      clock_hz: cycles a second of one core.
      threads: cores at work.
    """

    steps: int
    isa: str
    clock_hz: float
    threads: int

    def phases(self, work: Mapping[str, PhaseWork], seconds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Put measured times and counted work together.

        Args:
          work: of one step, by phase.
          seconds: of all steps, by phase; empty where the engine does not tell.

        Returns:
          By phase ``ms`` a step; and where it has products, ``macs`` a step, ``gmacs_per_s`` and ``share_of_bound``
          (None where the instruction set has no bound), and ``macs_per_byte``.
        """
        bounds = bounds_for(self.isa)
        described: dict[str, dict[str, Any]] = {}
        for name in (name for name in PHASES if name in seconds):
            a_step = seconds[name] / self.steps
            described[name] = {"ms": a_step * 1e3}
            phase = work.get(name, PhaseWork())
            if phase.total_macs and a_step > 0:
                bound = bound_seconds(phase, bounds, self.clock_hz, self.threads)
                described[name] |= {
                    "macs": phase.total_macs,
                    "gmacs_per_s": phase.total_macs / a_step / 1e9,
                    "share_of_bound": None if bound is None else bound / a_step,
                    "macs_per_byte": phase.total_macs / phase.num_bytes,
                }
        return described

    def layers(
        self, spec: ModelSpec, work: Sequence[Mapping[str, PhaseWork]], seconds: Sequence[Mapping[str, float]]
    ) -> dict[str, Any]:
        """Do the same layer by layer.

        Args:
          spec: the network.
          work: of one step, by layer and phase; empty where it is not counted.
          seconds: of all steps, by layer and phase; empty where the engine does not tell.

        Returns:
          ``layers``: ``name``, ``fan_in`` and ``phases`` of each; ``deep_phases``: the phases of all binary layers of
          at least ``DEEP_FAN_IN`` together.
        """
        if not seconds or not work:
            return {"layers": [], "deep_phases": {}}
        layers = [
            {"name": block.linear, "fan_in": block.fan_in, "phases": self.phases(counted, measured)}
            for block, counted, measured in zip(spec.blocks, work, seconds, strict=True)
        ]
        deep = [i for i, block in enumerate(spec.blocks) if not block.is_first and block.fan_in >= DEEP_FAN_IN]
        names = [name for name in PHASES if deep and name in seconds[deep[0]]]
        total = {name: sum(seconds[i][name] for i in deep) for name in names}
        return {"layers": layers, "deep_phases": self.phases(add_work(work[i] for i in deep), total)}
