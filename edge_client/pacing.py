"""How the owner's rules reach a trainer in the middle of a task: it is stopped and let go on by signals.

SIGSTOP and SIGCONT rather than a word between steps: they hold whatever the trainer does (a step of minutes on a slow
board, reading its data, evaluating), need nothing of it and cannot change a bit of what it computes. A stopped process
never outlives the agent: the kernel sends it SIGKILL when the agent ends (``child.bind_to_parent``), and that needs no
SIGCONT. What a stopped trainer keeps is its memory, so a pause that lasts gives the task back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from edge_client.conditions import Surroundings, obstacles
from edge_client.errors import TaskDeclinedError

__all__ = ["Pace", "Pacer"]

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two looks at what keeps the device from work."""

PERIOD_S = 0.25
"""Of a share of the CPU: for the share of it the trainer runs, then it stands."""


class Pace:
    """One task's: when it stood.

    Attributes:
      pauses: from when to when, by the monotonic clock.
      stands: whether a rule holds it now.
    """

    def __init__(self) -> None:
        self.stands = False
        self.pauses: list[tuple[float, float]] = []

    def seconds(self, began: float, ended: float) -> float:
        """Give the seconds of pauses between two times."""
        return sum(max(0.0, min(last, ended) - max(first, began)) for first, last in self.pauses)


class Pacer:
    """Holds the work while the owner's rules say so.

    Args:
      surroundings: tell what keeps the device from work.
      cpu_share: part of the time that a trainer runs, above 0 and at most 1.
      max_pause_s: seconds that it may be held without a break.
      on_pause: told what holds the work, each time that this changes; an empty list: nothing does.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        cpu_share: float,
        max_pause_s: float,
        on_pause: Callable[[list[str]], None],
    ) -> None:
        self._surroundings = surroundings
        self._share = cpu_share
        self._max_pause_s = max_pause_s
        self._on_pause = on_pause

    async def clear(self) -> None:
        """Wait until nothing keeps the device from work.

        Raises:
          TaskDeclinedError: that takes too long.
        """
        reasons: list[str] = []
        try:
            async with asyncio.timeout(self._max_pause_s):
                while now := obstacles(self._surroundings.read()):
                    if now != reasons:
                        reasons = now
                        logger.info("paused: %s", " and ".join(reasons))
                        self._on_pause(reasons)
                    await asyncio.sleep(CHECK_INTERVAL_S)
        except TimeoutError:
            raise TaskDeclinedError(
                f"the device's owner lets a task be paused for {self._max_pause_s:g} s, and still "
                f"{' and '.join(reasons)}; the task is given back, so that its memory is free"
            ) from None
        finally:
            if reasons:
                self._on_pause([])
        if reasons:
            logger.info("resumed")

    async def hold(self, process: asyncio.subprocess.Process, pace: Pace) -> None:
        """Stop a trainer and let it go on, by the rules, until this is cancelled; then it runs.

        Raises:
          TaskDeclinedError: it stood too long.
        """
        loop = asyncio.get_running_loop()
        checked_at = loop.time()
        try:
            while True:
                if self._share < 1:
                    await asyncio.sleep(PERIOD_S * self._share)
                    _signal(process, signal.SIGSTOP)
                    await asyncio.sleep(PERIOD_S * (1 - self._share))
                    _signal(process, signal.SIGCONT)
                else:
                    await asyncio.sleep(CHECK_INTERVAL_S)
                if loop.time() - checked_at < CHECK_INTERVAL_S:
                    continue
                if obstacles(self._surroundings.read()):
                    await self._stand(process, pace)
                checked_at = loop.time()
        finally:
            _signal(process, signal.SIGCONT)

    async def _stand(self, process: asyncio.subprocess.Process, pace: Pace) -> None:
        began = asyncio.get_running_loop().time()
        _signal(process, signal.SIGSTOP)
        pace.stands = True
        try:
            await self.clear()
        finally:
            pace.stands = False
            pace.pauses.append((began, asyncio.get_running_loop().time()))
        _signal(process, signal.SIGCONT)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)  # nothing where it has ended and was reaped
