"""One of several coordinators over one database: it finds the others, and leads when its turn comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import make_url

from bnncore.errors import BitfleetError
from server.coordinator import Coordinator
from server.errors import LeaseLostError
from server.replicas.bus import Bus
from server.replicas.distant_jobs import DistantJobs
from server.replicas.feed_relay import FeedRelay
from server.replicas.fleet import SharedFleet
from server.replicas.lease import Lease
from server.replicas.members import Member, Members
from server.replicas.terms import check_terms
from server.replicas.trust_relay import Trust, TrustRelay
from server.replicas.updates import Updates
from server.storage.refusal import is_refusal
from server.storage.sql import SqlStorage

_log = logging.getLogger(__name__)

_FIRST_LEAD_S = 30.0
"""How long a replica waits at its start for one that leads; the database's locks may take as long."""
_PAUSE_S = 1.0
"""Between two tries to begin to lead while the disk or the database refuses."""


def conninfo_of(url: str) -> str:
    """Turn SQLAlchemy's URL of a PostgreSQL database into libpq's connection string."""
    parts = make_url(url)
    return make_conninfo(**{**parts.translate_connect_args(database="dbname", username="user"), **parts.query})


class Replica:
    """A coordinator among others; ``async with`` bounds its life among them.

    Args:
      coordinator: this process's own, that was not started.
      storage: what it writes to.
      replica_id: names it, and its connections to the database.
      url: SQLAlchemy's URL of the database.
      store: where the payloads are, as all replicas name it; empty: in a folder of its own, so that there can be no
        other replica.
      version: of bitfleet.

    Attributes:
      bus: for messages to others.
      members: who they are.
      updates: how they share the work on updates.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        storage: SqlStorage,
        replica_id: str,
        url: str,
        *,
        store: str,
        version: str,
    ) -> None:
        self.id = replica_id
        self._coordinator = coordinator
        self._storage = storage
        self._store = store
        self._version = version
        self._fence: int | None = None
        """While this one leads."""
        self._trust: TrustRelay | None = None
        self._authority = ""
        conninfo = conninfo_of(url)
        self.bus = Bus(replica_id, conninfo)
        self.members = Members(self.bus, self._describe)
        self._fleet = SharedFleet(coordinator, self.bus, self.members)
        self.updates = Updates(coordinator, self.bus, lambda name: name in self.members.alive)
        self._feed = FeedRelay(coordinator.disk.feed, self.bus, self.members)
        coordinator.fleet_jobs = DistantJobs(coordinator, self.bus, self.members)
        self._lease = Lease(
            replica_id, conninfo, lambda: (store, self._authority), on_gain=self._lead, on_loss=self._follow
        )
        self._life = contextlib.AsyncExitStack()
        storage.fence = 0  # nobody's: only the lead may write what is the lead's
        coordinator.readiness.conditions["lead"] = self._why_not_ready

    def share_trust(self, trust: Trust, authority: str) -> None:
        """Have this one's trust be that of all replicas; comes before ``async with``.

        Args:
          trust: what is kept of it in memory.
          authority: the fingerprint of whose certificates it believes.
        """
        self._trust = TrustRelay(trust, self.bus)
        self._authority = authority

    async def __aenter__(self) -> Replica:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.bus)
            await stack.enter_async_context(self._fleet)
            if self._trust is not None:
                await stack.enter_async_context(self._trust)
            await stack.enter_async_context(self.members)
            await check_terms(self.bus, self.members, self._describe())
            await stack.enter_async_context(self._lease)
            with contextlib.suppress(TimeoutError):  # it goes on, and is not ready
                async with asyncio.timeout(_FIRST_LEAD_S):
                    await self.members.wait_for_lead()
            await check_terms(self.bus, self.members, self._describe())  # of two that came at once, one leads
            self._life = stack.pop_all()
        _log.info("event=replica replica=%s lead=%s", self.id, self.members.lead_id)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._life.aclose()

    def _describe(self) -> Member:
        return Member(
            self.id,
            num_streams=len(self._coordinator.fleet.here),
            fence=self._fence,
            store=self._store,
            authority=self._authority,
            version=self._version,
        )

    def _why_not_ready(self) -> str:
        return "" if self.members.lead_id is not None else "no replica leads: one is starting, or the database is away"

    async def _lead(self, fence: int) -> None:
        self._storage.fence = fence
        while self._fence is None:
            try:
                await self._coordinator.lead()
                self._fence = fence
            except LeaseLostError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, someone has to lead
                if is_refusal(error) or isinstance(error, BitfleetError):
                    _log.error("event=cannot_lead replica=%s next_try_s=%g reason=%r", self.id, _PAUSE_S, str(error))
                else:
                    _log.exception("event=cannot_lead replica=%s next_try_s=%g", self.id, _PAUSE_S)
                await asyncio.sleep(_PAUSE_S)
        self.members.beat()

    async def _follow(self) -> None:
        self._storage.fence, self._fence = 0, None
        self.members.beat()
        await self._coordinator.follow()
