"""One fleet, whichever door its devices came in by.

Every replica keeps a session of every device. That of a stream at another door is a ``RemoteSession``: what it is given
goes there over the bus. So whoever leads has the whole fleet, also whoever leads next.

Which of two streams of a device is the newer one is settled by the bus, on which everybody hears ``device.connect`` in
one order, also who tells it: a door that hears of a stream elsewhere, and has heard its own word on the one here, has
the older one.

What was told while a door was cut off is lost. When it is back, it and the others tell each other all their sessions,
and the lead sends each device its task again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from server.coordinator import Coordinator
from server.coordinator.events import TaskOutcome
from server.coordinator.messages import CancelOrder, DeviceHello, ExchangeOrder, Heartbeat, Order, TaskOrder
from server.coordinator.sessions import LocalSession, Session
from server.errors import NotReadyError, ServerError
from server.replicas.bus import Body, Bus
from server.replicas.members import Members
from server.replicas.wire import error_from_json, error_to_json, from_json, to_json

_log = logging.getLogger(__name__)

_FLUSH_S = 0.25
"""For so long counts of bytes are gathered before the lead is told."""
_KEPT_SPECS = 64
"""Networks of jobs that a door keeps, to put them into tasks: on the bus they would go once for each device."""

_ORDERS: dict[str, type[Order]] = {kind.__name__: kind for kind in (TaskOrder, CancelOrder, ExchangeOrder)}

_Tell = Callable[[str, str, Body], None]


class RemoteSession(Session):
    """A device's stream at another replica's door."""

    def __init__(
        self, door: str, number: int, hello: DeviceHello, heartbeat: Heartbeat, clock: Callable[[], float], tell: _Tell
    ) -> None:
        super().__init__(hello, clock(), number, heartbeat)
        self.door = door
        """The replica's id."""
        self._clock = clock
        self._tell = tell

    def send(self, order: Order) -> None:
        """See ``Session``."""
        told = to_json(order, now=self._clock())
        told.pop("spec_json", None)  # which the door puts in
        self._tell(self.door, "order", {**self._name(), "kind": type(order).__name__, "order": told})

    def end(self, error: ServerError) -> None:
        """See ``Session``."""
        self._tell(self.door, "end", {**self._name(), "error": error_to_json(error)})

    def _name(self) -> Body:
        return {"device_id": self.device_id, "number": self.number}


class SharedFleet:
    """What keeps a coordinator's fleet as all replicas know it, and tells them of its own door; see ``Others``.

    ``async with`` bounds its work on what others tell.
    """

    def __init__(self, coordinator: Coordinator, bus: Bus, members: Members) -> None:
        self._coordinator = coordinator
        self._fleet = coordinator.fleet
        self._bus = bus
        self._members = members
        self._orders: asyncio.Queue[Body] = asyncio.Queue()
        self._specs: dict[str, str] = {}
        self._sent: Counter[tuple[str, str]] = Counter()
        self._downloaded: Counter[tuple[str, str]] = Counter()
        self._flush: asyncio.TimerHandle | None = None
        self._worker: asyncio.Task[None] | None = None
        coordinator.others = self
        bus.on("device.connect", self._hear_connect, echo=True)
        bus.on("device.disconnect", self._hear_disconnect)
        bus.on("device.note", self._hear_note)
        bus.on("device.all", self._hear_all, echo=True)
        bus.on("device.report", self._hear_report)
        bus.on("device.bytes", self._hear_bytes)
        bus.on("beat", self._hear_beat)
        bus.on("resync", lambda sender, _: self._tell_all(sender))
        bus.on("order", lambda _, body: self._orders.put_nowait(body))
        bus.on("end", self._hear_end)
        members.on_gone(self._part_with)
        members.on_cut_off(self._send_away)
        members.on_found(lambda replica_id: bus.tell(replica_id, "resync", {}))

    async def __aenter__(self) -> SharedFleet:
        self._worker = asyncio.create_task(self._pass_orders_on(), name="orders")
        self._bus.on_connect(self._begin_anew)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._flush is not None:
            self._flush.cancel()

    # What is told of this door; see ``Others``

    def connected(self, session: Session) -> None:
        """See ``Others``."""
        self._bus.tell(None, "device.connect", _told(session))

    def disconnected(self, session: Session) -> None:
        """See ``Others``."""
        self._bus.tell(None, "device.disconnect", {"device_id": session.device_id, "number": session.number})

    def noted(self, session: Session) -> None:
        """See ``Others``."""
        body = {"device_id": session.device_id, "number": session.number, "heartbeat": to_json(session.heartbeat)}
        self._bus.tell(None, "device.note", body)

    def reported(self, device_id: str, task_id: str, outcome: TaskOutcome, reason: str) -> None:
        """See ``Others``."""
        if not self._members.is_lead:
            body = {"device_id": device_id, "task_id": task_id, "outcome": outcome.value, "reason": reason}
            self._bus.tell("lead", "device.report", body)

    def sent(self, task_id: str, device_id: str, num_bytes: int) -> None:
        """See ``Others``."""
        self._count(self._sent, (task_id, device_id), num_bytes)

    def downloaded(self, device_id: str, digest: str, num_bytes: int) -> None:
        """See ``Others``."""
        self._count(self._downloaded, (device_id, digest), num_bytes)

    def _count(self, counter: Counter[tuple[str, str]], key: tuple[str, str], num_bytes: int) -> None:
        if self._members.is_lead:  # which has counted them already
            return
        counter[key] += num_bytes
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._tell_bytes)

    def _tell_bytes(self) -> None:
        self._flush = None
        body = {
            name: [[*key, num_bytes] for key, num_bytes in counter.items()]
            for name, counter in (("sent", self._sent), ("downloaded", self._downloaded))
        }
        self._sent.clear()
        self._downloaded.clear()
        if not self._members.is_lead:
            self._bus.tell("lead", "device.bytes", body)

    def _send_away(self) -> None:
        """Let devices try other doors."""
        self._fleet.end_all(NotReadyError("this replica is without its database; connect again"))

    def _begin_anew(self) -> None:
        self._tell_all(None)
        self._bus.tell(None, "resync", {})

    def _tell_all(self, to: str | None) -> None:
        self._bus.tell(to, "device.all", {"sessions": [_told(session) for session in self._fleet.here]})

    # What others tell

    def _hear_connect(self, sender: str, body: Body) -> None:
        here = self._local(body["hello"]["device_id"])
        if sender == self._bus.id:
            self._hear_of(here, body)
        elif here is None or here.is_known:
            self._fleet.adopt(self._remote(sender, body))
        # else its own word comes after this one: it is the newer one

    def _hear_of(self, here: LocalSession | None, told: Body) -> None:
        """Hear this replica's own word on a stream here."""
        if here is not None and here.number == told["number"]:
            here.is_known = True

    def _hear_disconnect(self, sender: str, body: Body) -> None:
        session = self._at(sender, body)
        if session is not None:
            self._fleet.disconnect(session)

    def _hear_note(self, sender: str, body: Body) -> None:
        session = self._at(sender, body)
        if session is not None:
            self._note(session, body["heartbeat"])

    def _hear_all(self, sender: str, body: Body) -> None:
        if sender == self._bus.id:
            for told in body["sessions"]:
                self._hear_of(self._local(told["hello"]["device_id"]), told)
            return
        numbers = {told["number"] for told in body["sessions"]}
        for session in self._sessions_at(sender):
            if session.number not in numbers:
                self._fleet.disconnect(session)
        for told in body["sessions"]:
            here = self._local(told["hello"]["device_id"])
            known = self._at(sender, {"device_id": told["hello"]["device_id"], "number": told["number"]})
            if here is not None:
                self.connected(here)  # of two, this one may be the newer: if it is not, the device comes back
            elif known is not None:
                self._note(known, told["heartbeat"])
                self._fleet.remind(known)
            else:
                self._fleet.adopt(self._remote(sender, told))

    def _hear_report(self, sender: str, body: Body) -> None:
        outcome = TaskOutcome(body["outcome"])
        self._coordinator.end_task(body["device_id"], body["task_id"], outcome, body["reason"])

    def _hear_bytes(self, sender: str, body: Body) -> None:
        for task_id, device_id, num_bytes in body["sent"]:
            self._coordinator.credit_order(task_id, device_id, num_bytes)
        for device_id, digest, num_bytes in body["downloaded"]:
            self._coordinator.credit_download(device_id, digest, num_bytes)

    def _hear_beat(self, sender: str, body: Body) -> None:
        """A door that is there looks after its streams: they are as alive as it is."""
        now = self._coordinator.clock()
        for session in self._sessions_at(sender):
            session.last_seen = now

    def _hear_end(self, sender: str, body: Body) -> None:
        session = self._local(body["device_id"])
        if session is not None and session.number == body["number"]:
            session.end(error_from_json(body["error"]))

    def _part_with(self, replica_id: str) -> None:
        """Its streams went with it; the devices have the time of a lost stream to come in by another door."""
        for session in self._sessions_at(replica_id):
            self._fleet.disconnect(session)

    async def _pass_orders_on(self) -> None:
        """Give devices here what the lead has for them, in its order."""
        while True:
            body = await self._orders.get()
            try:
                order = await self._order(body["kind"], body["order"])
            except Exception as error:  # noqa: BLE001 - the database, mostly: who was cut off is told all again
                _log.warning("event=order_lost device=%s reason=%r", body["device_id"], str(error))
                continue
            session = self._local(body["device_id"])
            if session is not None and session.number == body["number"]:
                session.send(order)

    async def _order(self, kind: str, told: Body) -> Order:
        if kind == TaskOrder.__name__:
            told["spec_json"] = await self._spec(told["job_id"])
        return from_json(_ORDERS[kind], told, now=self._coordinator.clock())

    async def _spec(self, job_id: str) -> str:
        if job_id not in self._specs:
            job = await self._coordinator.jobs.get(job_id)
            while len(self._specs) >= _KEPT_SPECS:
                del self._specs[next(iter(self._specs))]
            self._specs[job_id] = job.spec_json
        return self._specs[job_id]

    # Sessions

    def _remote(self, door: str, told: Body) -> RemoteSession:
        hello, heartbeat = from_json(DeviceHello, told["hello"]), from_json(Heartbeat, told["heartbeat"])
        return RemoteSession(door, told["number"], hello, heartbeat, self._coordinator.clock, self._bus.tell)

    def _local(self, device_id: str) -> LocalSession | None:
        session = self._fleet.get(device_id)
        return session if isinstance(session, LocalSession) else None

    def _at(self, door: str, body: Body) -> RemoteSession | None:
        """Return the session of a device's stream at a door, while it is its newest one."""
        session = self._fleet.get(body["device_id"])
        if isinstance(session, RemoteSession) and (session.door, session.number) == (door, body["number"]):
            return session
        return None

    def _sessions_at(self, door: str) -> Iterable[RemoteSession]:
        return [session for session in self._fleet if isinstance(session, RemoteSession) and session.door == door]

    def _note(self, session: RemoteSession, told: Any) -> None:
        heartbeat = from_json(Heartbeat, told)
        self._fleet.note(session, heartbeat)
        session.told = heartbeat


def _told(session: Session) -> Body:
    return {"number": session.number, "hello": to_json(session.hello), "heartbeat": to_json(session.heartbeat)}
