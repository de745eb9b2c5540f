"""What a task costs the device while its trainer runs: memory at its peak, and energy."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from bnncore.energy import Meter
from edge_client.pacing import Pace
from edge_client.pss import pss_bytes, tree_pss_bytes

__all__ = ["Cost"]

logger = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 1.0
"""Between two measurements while a trainer runs."""


class Cost:
    """One task's: sampled, and completed by what the trainer knows of itself.

    Args:
      meter: of energy; None: there is none, and the trainer's model stands for it.
      pace: whether the trainer stands: what the board takes then is not the training's.
    """

    def __init__(self, meter: Meter | None, pace: Pace) -> None:
        self._meter = meter
        self._pace = pace
        self._peak_bytes = 0
        self._joules = 0.0
        self._measuring = asyncio.Lock()

    async def sample(self) -> None:
        """Measure until cancelled."""
        await self._measure()
        self._joules = 0.0  # what the meter has counted since the last task is no part of this one
        while True:
            self._peak_bytes = max(self._peak_bytes, tree_pss_bytes(os.getpid()))
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            await self._measure()

    async def end(self, result: dict[str, Any]) -> None:
        """Measure a last time, and complete what the trainer said of a task that it has done."""
        await self._measure()
        trainers = int(result.get("peak_pss_bytes", 0))
        result["peak_pss_bytes"] = max(self._peak_bytes, pss_bytes(os.getpid()) + trainers)
        joules, source = float(result.pop("modelled_joules", 0.0)), "model"
        if self._meter is not None and self._joules > 0:
            joules, source = self._joules, self._meter.source
        result["joules"], result["joules_source"] = joules, source if joules > 0 else ""

    async def _measure(self) -> None:
        if self._meter is None:
            return
        try:
            async with self._measuring:
                joules = await asyncio.to_thread(self._meter.take)
        except (OSError, ValueError) as error:
            logger.warning("the energy meter does not answer; energy is modelled from now on: %s", error)
            self._meter, self._joules = None, 0.0
            return
        if not self._pace.stands:
            self._joules += joules
