"""Whether a coordinator can do its work now, and what keeps it from that: what a load balancer goes by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from server.coordinator.disk import Disk

_log = logging.getLogger(__name__)

_KEPT_S = 1.0


class Readiness:
    """Looks at what a coordinator's work needs.

    The database and the store are asked both at once, on threads of their own: that much is written or folded is no
    reason to take work away. What one answered holds for ``_KEPT_S`` for all who ask, and one that hangs is not asked
    again before it answers: however many load balancers look, it is a question a second.

    Attributes:
      conditions: what is known without asking; each returns what is wrong, in words for strangers, or nothing.
    """

    def __init__(self, disk: Disk, *, timeout_s: float = 5.0) -> None:
        self.conditions: dict[str, Callable[[], str]] = {}
        self._parts: dict[str, Callable[[], None]] = {"database": disk.storage.check, "store": disk.blobs.check}
        self._threads = ThreadPoolExecutor(len(self._parts), thread_name_prefix="readiness")
        self._timeout_s = timeout_s
        self._looks: dict[str, asyncio.Task[str]] = {}
        self._told: dict[str, str] = {}

    async def look(self) -> Mapping[str, str]:
        """Return what is wrong with each condition and part; the empty string: nothing."""
        looks = {name: self._look(name) for name in self._parts}
        await asyncio.wait(looks.values(), timeout=self._timeout_s)
        late = f"no answer within {self._timeout_s:g} s"
        reasons = {name: look.result() if look.done() else late for name, look in looks.items()}
        reasons |= {name: condition() for name, condition in self.conditions.items()}
        for name, reason in reasons.items():
            if reason != self._told.get(name, ""):
                _log.log(logging.WARNING if reason else logging.INFO, "event=readiness of=%s problem=%r", name, reason)
                self._told[name] = reason
        return reasons

    def _look(self, name: str) -> asyncio.Task[str]:
        if name not in self._looks:
            loop = asyncio.get_running_loop()
            look = self._looks[name] = loop.create_task(self._ask(name), name=f"readiness of the {name}")
            look.add_done_callback(lambda _: loop.call_later(_KEPT_S, self._looks.pop, name))
        return self._looks[name]

    async def _ask(self, name: str) -> str:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._parts[name])
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is no answer
            if not self._told.get(name):  # its words hold addresses, which are for the log alone
                _log.warning("event=no_answer of=%s error=%r", name, str(error))
            return f"it does not answer ({type(error).__name__}); see the coordinator's log"
        return ""
