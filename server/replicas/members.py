"""Which replicas are there, and which of them leads.

Every replica tells all others that it is there, every ``BEAT_S`` seconds. One of which nothing was heard for
``SILENT_S`` is gone, earlier where PostgreSQL knows no connection of its any more. One that was gone and beats again,
or was never known, is asked for what others are to keep of it.

One that is silent for ``HELD_S`` loses its connections, as its process may have been stopped: with them goes the lease,
if it led, and what it has not read, which PostgreSQL would keep for it.

Every replica hears itself too. While it does not, it hears nobody, and judges nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from server.errors import NotReadyError
from server.replicas.bus import Body, Bus
from server.replicas.lease import END_CONNECTIONS, HOLDER
from server.replicas.names import application_name
from server.replicas.wire import from_json, to_json

_log = logging.getLogger(__name__)

BEAT_S = 2.0
DOUBTED_S = 3.0
"""After which PostgreSQL is asked for the replica's connections."""
SILENT_S = 6.0
HELD_S = 10.0
CUT_OFF_S = 60.0
"""After which a replica without its database is of no use to its devices."""

CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()
"""


@dataclass(frozen=True)
class Member:
    """What a replica says of itself."""

    replica_id: str
    num_streams: int = 0
    """Devices' streams that are open there."""
    fence: int | None = None
    """Of the lease, where it leads."""
    store: str = ""
    """Where its payloads are; empty: in a folder of its own."""
    authority: str = ""
    """The fingerprint of whose certificates it believes; empty: it asks for none."""
    version: str = ""
    """Of bitfleet."""
    heard_at: float = field(default=0.0, compare=False)
    """On the monotonic clock of who heard it."""

    @property
    def is_lead(self) -> bool:
        """Whether it says that it leads; of two that do, the one with the higher fence does."""
        return self.fence is not None


class Members:
    """Who is there, as this replica knows; ``async with`` tells others of it.

    Args:
      bus: what connects the replicas.
      describe: says what this one is at the moment.
    """

    def __init__(self, bus: Bus, describe: Callable[[], Member]) -> None:
        self._bus = bus
        self._describe = describe
        self._own = describe()
        self._others: dict[str, Member] = {}
        self._silent: dict[str, float] = {}
        """When those were heard of last that went without a word, until their connections are ended."""
        self._lead_heard_at = self._connected_at = self._heard_itself_at = time.monotonic()
        self._changed: list[Callable[[], None]] = []
        self._gone: list[Callable[[str], None]] = []
        self._found: list[Callable[[str], None]] = []
        self._cut_off: list[Callable[[], None]] = []
        self._told: tuple[frozenset[str], str | None] = (frozenset(), None)
        self._ticker: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        bus.find_lead = lambda: self.lead_id
        bus.on("beat", self._hear, echo=True)
        bus.on("leave", lambda sender, _: self._part_with(sender, "it left", logging.INFO))

    async def __aenter__(self) -> Members:
        self._lead_heard_at = self._connected_at = self._heard_itself_at = time.monotonic()  # before, nobody listened
        self._bus.on_connect(self.beat)
        self._ticker = asyncio.create_task(self._tick(), name="members")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._bus.tell(None, "leave", {})

    @property
    def alive(self) -> Mapping[str, Member]:
        """All that are there, this one among them, by id; each as it was at its last beat."""
        return {**self._others, self._own.replica_id: self._own}

    @property
    def lead_id(self) -> str | None:
        """The one that leads; None while nobody does."""
        leads = [(member.fence, member.replica_id) for member in self.alive.values() if member.fence is not None]
        return max(leads)[1] if leads else None

    @property
    def is_lead(self) -> bool:
        """Whether this one leads."""
        return self.lead_id == self._bus.id

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever one came or went, or the lead is another one."""
        self._changed.append(callback)

    def on_gone(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the id of each replica that is gone."""
        self._gone.append(callback)

    def on_found(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the id of each replica that was not known."""
        self._found.append(callback)

    def on_cut_off(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when this replica has been without its database for long."""
        self._cut_off.append(callback)

    def beat(self) -> None:
        """Tell others now that this one is there, and what it is."""
        self._own = replace(self._describe(), heard_at=time.monotonic())
        self._bus.tell(None, "beat", to_json(self._own))
        self._tell_changes()

    async def wait_for_lead(self) -> None:
        """Wait until there is one."""
        while self.lead_id is None:
            await self._news.wait()

    def _hear(self, sender: str, body: Body) -> None:
        if sender == self._bus.id:
            self._heard_itself_at = time.monotonic()
            return
        is_new = sender not in self._others
        self._silent.pop(sender, None)
        self._others[sender] = replace(from_json(Member, body), replica_id=sender, heard_at=time.monotonic())
        if is_new:
            _log.info("event=replica_found replica=%s", sender)
            self.beat()  # it does not know this one either
            for callback in self._found:
                callback(sender)
        self._tell_changes()

    def _part_with(self, replica_id: str, reason: str, level: int = logging.WARNING) -> None:
        if self._others.pop(replica_id, None) is None:
            return
        _log.log(level, "event=replica_gone replica=%s reason=%r", replica_id, reason)
        self._bus.forget(replica_id)
        for callback in self._gone:
            callback(replica_id)
        self._tell_changes()

    def _tell_changes(self) -> None:
        now = (frozenset(self._others), self.lead_id)
        if now != self._told:
            if now[1] != self._told[1]:
                _log.info("event=lead replica=%s", now[1])
                if (earlier := self._told[1]) is not None:  # it may have ended before it answered
                    self._bus.fail_questions(f"replica {earlier} does not lead any more; try again", to=earlier)
            self._told = now
            news, self._news = self._news, asyncio.Event()
            news.set()
            for callback in self._changed:
                callback()

    async def _tick(self) -> None:
        wakes_at = time.monotonic()
        while True:
            wakes_at += BEAT_S
            await asyncio.sleep(wakes_at - time.monotonic())
            late_s, wakes_at = time.monotonic() - wakes_at, time.monotonic()
            try:
                self.beat()
                if late_s > BEAT_S:
                    self._excuse_all(late_s)
                await self._look_around()
            except NotReadyError:
                continue  # without the database nothing is known of anybody
            except Exception:  # noqa: BLE001 - whatever it was, it is logged, and this one goes on beating
                _log.exception("event=look_around_failed replica=%s", self._bus.id)

    def _excuse_all(self, late_s: float) -> None:
        """This process did not run for a while: that others were not heard is not their fault."""
        now = time.monotonic()
        self._others = {name: replace(member, heard_at=now) for name, member in self._others.items()}
        self._lead_heard_at = now
        self._silent.clear()
        if late_s > SILENT_S:
            _log.warning("event=replica_was_stopped seconds=%.1f", late_s)
            self._bus.connect_again()  # for others it was gone, and what they told it is old

    async def _look_around(self) -> None:
        now = time.monotonic()
        if not self._bus.is_connected:
            self._excuse_all(0.0)
            self._heard_itself_at = now
            if now - self._connected_at > CUT_OFF_S:
                self._connected_at = now
                for callback in self._cut_off:
                    callback()
            return
        self._connected_at = now
        if (deaf_s := now - self._heard_itself_at) > DOUBTED_S:
            self._excuse_all(0.0)
            if deaf_s > HELD_S:
                _log.warning("event=replica_is_deaf replica=%s seconds=%.0f", self._bus.id, deaf_s)
                self._heard_itself_at = now
                self._bus.connect_again()
            return
        if (lead := self.lead_id) is not None and now - self.alive[lead].heard_at < DOUBTED_S:
            self._lead_heard_at = now
        for name, member in list(self._others.items()):
            silent_s = now - member.heard_at
            if silent_s > SILENT_S:
                self._silent[name] = member.heard_at
                self._part_with(name, f"nothing was heard of it for {silent_s:.0f} s")
            elif silent_s > DOUBTED_S:
                ((connections,),) = await self._bus.query(CONNECTIONS, (application_name(name),))
                if connections == 0:
                    self._part_with(name, "it has no connection to the database any more")
        held = [name for name, heard_at in self._silent.items() if now - heard_at > HELD_S]
        if now - self._lead_heard_at > HELD_S:
            self._lead_heard_at = now
            held += [holder for (holder,) in await self._bus.query(HOLDER) if holder not in self.alive]
        for name in dict.fromkeys(held):
            self._silent.pop(name, None)
            ended = await self._bus.query(END_CONNECTIONS, (application_name(name),))
            _log.warning("event=silent_replica_ended replica=%s connections=%d", name, len(ended))
