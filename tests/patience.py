"""How long tests wait: until what they wait for has happened, and as long as a machine may stand still if it does not.

Whether a test passes must not depend on how fast the machine is, so there is one limit for everything that is waited
for: it is long, because it only turns a hang into a failure. Where a short time is itself what is tested, the test
says so and holds on a machine that stalls as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

LIMIT_S = 180.0
"""The limit of every wait, connection, request and process of a test; pytest's own, of a whole test, is longer."""


async def patiently(event: Awaitable[_T]) -> _T:
    """Await what must come to an end; fails when it has not by the limit."""
    return await asyncio.wait_for(event, LIMIT_S)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fails when it does not by the limit."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - conditions here have no event to wait for
            await asyncio.sleep(0.01)


def wait_for(what: str, probe: Callable[[], _T | None], timeout_s: float = LIMIT_S) -> _T:
    """Call ``probe`` until it gives something true; fails with ``what`` was waited for.

    Args:
      what: for the message.
      probe: what gives something true once the wait is over.
      timeout_s: a limit of its own, for what takes minutes even where nothing is amiss.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.05)  # most ask a coordinator, which has better things to do on the same processors
    raise AssertionError(f"waited {timeout_s} s for {what}")
