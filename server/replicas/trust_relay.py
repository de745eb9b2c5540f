"""Who is let in at one replica is let in at all, and who is shut out at one is shut out at all, at once."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from server.replicas.bus import Body, Bus

_log = logging.getLogger(__name__)

_PAUSE_S = 1.0
"""Before a change that could not be read is read again."""


class Trust(Protocol):
    """What a replica keeps in memory of who may do what; see ``server.identity.trust``."""

    async def reread(self, of: str, name: str) -> None:
        """Read one thing again."""

    async def reread_all(self) -> None:
        """Read everything again."""


class TrustRelay:
    """Has a replica's trust read what changes, within ``async with``; the database tells of it, with the change itself.

    While the replica was without its connections it heard nothing, so it then reads everything again.
    """

    def __init__(self, trust: Trust, bus: Bus) -> None:
        self._trust = trust
        self._bus = bus
        self._reading: set[asyncio.Task[None]] = set()
        self._is_over = False
        bus.on("trust.changed", self._reread)

    async def __aenter__(self) -> TrustRelay:
        self._bus.on_connect(lambda: self._begin(self._trust.reread_all))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def _reread(self, sender: str, body: Body) -> None:
        self._begin(functools.partial(self._trust.reread, str(body["of"]), str(body["name"])))

    def _begin(self, read: Callable[[], Awaitable[None]]) -> None:
        if self._is_over:
            return
        task = asyncio.create_task(self._until_read(read), name="trust")
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _until_read(self, read: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await read()
            except Exception as error:  # noqa: BLE001 - what was revoked must not be missed because the database was busy
                _log.error("event=trust_not_read next_try_s=%g reason=%r", _PAUSE_S, str(error))
                await asyncio.sleep(_PAUSE_S)
