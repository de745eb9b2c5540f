"""The rounds' lease: one replica at a time holds it, and plays all rounds.

Who may take it is decided by a session lock of PostgreSQL, for which everybody else waits inside PostgreSQL: the end of
the holder's connection, by whatever cause, frees it at once. Whoever gets the lock makes the fence one higher, by which
what an earlier holder still tries to write fails (``server.storage.leases``).

A holder whose process is stopped keeps its connection. Others that hear nothing of it end it (``end_connections``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.errors import LeaseLostError
from server.replicas.bus import CONNECTION, first_line
from server.replicas.names import application_name
from server.storage.leases import ROUNDS

_log = logging.getLogger(__name__)

_LOCK = (0x62666C74, 1)  # "bflt"
_WAIT_S = 600
"""After which the lock is asked for anew: a statement that waits keeps VACUUM from rows that died since it began."""
_OPTIONS = f"-c statement_timeout=0 -c idle_session_timeout=0 -c lock_timeout={_WAIT_S}s"
_OPTIONS += " -c client_connection_check_interval=2s"  # else one that was killed would wait on, and get the lock
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0

_TAKE = """
INSERT INTO leases (name, holder, fence, backend_pid, since, store, authority)
VALUES (%s, %s, 1, pg_backend_pid(), %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET fence = leases.fence + 1, holder = excluded.holder, backend_pid = excluded.backend_pid,
  since = excluded.since, store = excluded.store, authority = excluded.authority
RETURNING fence
"""

END_CONNECTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()
"""
"""Of a replica: its lease goes, and what it has begun to write."""

HOLDER = f"SELECT holder FROM leases WHERE name = '{ROUNDS}'"


class Lease:
    """One replica's wish to hold the lease; ``async with`` bounds it.

    Args:
      replica_id: this replica's name.
      conninfo: libpq's connection string.
      terms: says where this replica's payloads are, and whose certificates it believes: what all replicas must have.
      on_gain: called with the fence when the lease was got, and cancelled when it is lost meanwhile.
      on_loss: called when it was lost; ``fence`` is None already.

    Attributes:
      fence: while the lease is held.
    """

    def __init__(
        self,
        replica_id: str,
        conninfo: str,
        terms: Callable[[], tuple[str, str]],
        *,
        on_gain: Callable[[int], Awaitable[None]],
        on_loss: Callable[[], Awaitable[None]],
    ) -> None:
        self.fence: int | None = None
        self._id = replica_id
        self._terms = terms
        name = application_name(replica_id)
        options = f"{conninfo_to_dict(conninfo).get('options', '')} {_OPTIONS}"
        self._conninfo = make_conninfo(conninfo, application_name=name, options=options, **CONNECTION)
        self._on_gain = on_gain
        self._on_loss = on_loss
        self._keeper: asyncio.Task[None] | None = None
        self._is_left = False

    async def __aenter__(self) -> Lease:
        self._keeper = asyncio.create_task(self._keep(), name="lease")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_left = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with await AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    pause_s = _FIRST_PAUSE_S
                    await self._wait_for_lock(connection)
                    values = (ROUNDS, self._id, time.time(), *self._terms())
                    row = await (await connection.execute(_TAKE, values)).fetchone()
                    assert row is not None
                    await self._hold(connection, int(row[0]))
            except* (psycopg.Error, OSError, LeaseLostError) as lost:
                _log.warning("event=lease_connection_lost reason=%r", first_line(lost.exceptions[0]))
            except* Exception:  # noqa: BLE001 - whatever it was, it is logged, and connections are made again
                _log.exception("event=lease_failed replica=%s", self._id)
            if self._is_left:  # its cancellation is lost where a connection's loss leaves the group at the same moment
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _wait_for_lock(self, connection: AsyncConnection[Any]) -> None:
        while True:
            try:
                await connection.execute("SELECT pg_advisory_lock(%s, %s)", _LOCK)
                return
            except psycopg.errors.LockNotAvailable:
                continue

    async def _hold(self, connection: AsyncConnection[Any], fence: int) -> None:
        _log.info("event=lease_got replica=%s fence=%d", self._id, fence)
        self.fence = fence
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_watch(connection))
                tasks.create_task(_call(self._on_gain, fence))
        finally:
            self.fence = None
            _log.info("event=lease_ended replica=%s fence=%d", self._id, fence)
            await self._on_loss()


async def _call(function: Callable[[int], Awaitable[None]], fence: int) -> None:
    await function(fence)


async def _watch(connection: AsyncConnection[Any]) -> None:
    """Wait until a connection ends; it does so by raising."""
    async for _ in connection.notifies():
        pass
    raise psycopg.OperationalError("the connection has ended")
