"""The fleet as it is now: one session for each device with a live stream.

A session is the coordinator's end of a device's stream: orders go in, the transport takes them out. It ends once,
with the error that the transport tells the device. A device that opens a second stream replaces the first.

Where there are several coordinators, the stream may be at another one's door: then its session here passes on what it
is given.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from server.coordinator.events import DeviceConnected, DeviceDisconnected, DeviceGone, Event
from server.coordinator.messages import DeviceHello, Heartbeat, Order
from server.errors import ReplacedError, ServerError, SlowDeviceError

MISSED_HEARTBEATS = 3
"""A device that has missed this many is gone."""

_MAX_WAITING_ORDERS = 16
"""A device that leaves more orders unread than this does not read its stream."""


class Session(ABC):
    """One device's live stream."""

    def __init__(self, hello: DeviceHello, now: float, number: int, heartbeat: Heartbeat | None = None) -> None:
        self.hello = hello
        self.number = number
        """Counts the streams of the door where this one is."""
        self.heartbeat = heartbeat or Heartbeat(conditions=hello.conditions)
        self.told = self.heartbeat
        """The one of which the feed was told last."""
        self.connected_at = now
        self.last_seen = now

    @property
    def device_id(self) -> str:
        """The device's lasting name."""
        return self.hello.device_id

    @abstractmethod
    def send(self, order: Order) -> None:
        """Give the device an order."""

    @abstractmethod
    def end(self, error: ServerError) -> None:
        """End the stream; the first reason given counts."""


class LocalSession(Session):
    """A stream at this coordinator's own door."""

    def __init__(self, hello: DeviceHello, now: float, number: int) -> None:
        super().__init__(hello, now, number)
        self.is_known = False
        """Whether other replicas have been told of it."""
        self._orders: asyncio.Queue[Order] = asyncio.Queue(_MAX_WAITING_ORDERS)
        self._end: asyncio.Future[ServerError] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether the stream has not been ended."""
        return not self._end.done()

    def send(self, order: Order) -> None:
        """Queue an order; a device that does not read loses its stream instead of holding up the others."""
        try:
            self._orders.put_nowait(order)
        except asyncio.QueueFull:
            self.end(
                SlowDeviceError(
                    f"device {self.device_id} left {_MAX_WAITING_ORDERS} orders unread; its stream was closed, "
                    "connect again"
                )
            )

    def end(self, error: ServerError) -> None:
        """See ``Session``."""
        if self.is_open:
            self._end.set_result(error)

    async def next_order(self) -> Order:
        """Wait for the next order.

        Raises:
          ServerError: the session has ended, and why.
        """
        if self._end.done():
            raise self._end.result()
        order = asyncio.ensure_future(self._orders.get())
        try:
            await asyncio.wait((order, self._end), return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                raise self._end.result()
            return order.result()
        finally:
            order.cancel()


class Fleet:
    """All live sessions, and what happens to them, told to one listener."""

    def __init__(self, *, heartbeat_interval_s: float, clock: Callable[[], float]) -> None:
        self._grace_s = MISSED_HEARTBEATS * heartbeat_interval_s
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._num_streams = 0
        self._farewells: dict[str, asyncio.TimerHandle] = {}
        self._listener: Callable[[Event], None] = _ignore
        self.quiet_since: float | None = None
        """When the latest device connected."""

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, device_id: str) -> Session | None:
        """Return a device's live session, if it has one."""
        return self._sessions.get(device_id)

    def listen(self, listener: Callable[[Event], None] | None) -> None:
        """Tell ``listener`` from now on, or nobody."""
        self._listener = listener or _ignore

    @property
    def here(self) -> list[LocalSession]:
        """The sessions whose streams are at this coordinator's own door."""
        return [session for session in self._sessions.values() if isinstance(session, LocalSession)]

    def connect(self, hello: DeviceHello) -> LocalSession:
        """Begin a session at this door, ending the one that the device had."""
        self._num_streams += 1
        session = LocalSession(hello, self._clock(), self._num_streams)
        self.adopt(session)
        return session

    def adopt(self, session: Session) -> None:
        """Take a device's newest session in, wherever its stream is; an earlier one that is here ends."""
        earlier = self._sessions.get(session.device_id)
        if isinstance(earlier, LocalSession):  # elsewhere that door ends it, when it hears of this one
            earlier.end(ReplacedError(f"device {session.device_id} opened a newer stream; this one has ended"))
        self._sessions[session.device_id] = session
        self._forget_farewell(session.device_id)
        self.quiet_since = session.connected_at
        self.remind(session)

    def remind(self, session: Session) -> None:
        """Tell the listener of a session again, since what the device was sent may be lost."""
        self._listener(DeviceConnected(session.device_id))

    def disconnect(self, session: Session) -> bool:
        """Note that a stream has ended; the device has the grace of its missed heartbeats to come back.

        Returns:
          Whether the device is without a stream now: False when a newer one had replaced it.
        """
        if self._sessions.get(session.device_id) is not session:
            return False
        del self._sessions[session.device_id]
        self._listener(DeviceDisconnected(session.device_id))
        self.expect(session.device_id, within_s=max(0.0, session.last_seen + self._grace_s - self._clock()))
        return True

    def expect(self, device_id: str, *, within_s: float) -> None:
        """Count a device as gone unless it connects in time."""
        self._forget_farewell(device_id)
        loop = asyncio.get_running_loop()
        self._farewells[device_id] = loop.call_later(within_s, self._give_up_on, device_id)

    def note(self, session: Session, heartbeat: Heartbeat) -> None:
        """Note that a device is alive and what it is doing; for the listener, one that may not work is away."""
        before, session.heartbeat, session.last_seen = session.heartbeat, heartbeat, self._clock()
        if heartbeat.conditions != before.conditions and self._sessions.get(session.device_id) is session:
            kind = DeviceConnected if heartbeat.conditions.reason is None else DeviceDisconnected
            self._listener(kind(session.device_id))

    def send(self, device_id: str, order: Order) -> None:
        """Give an order to a device; nothing happens when it has no stream: it is told when it comes back."""
        session = self._sessions.get(device_id)
        if session is not None:
            session.send(order)

    def end_all(self, error: ServerError) -> None:
        """End every session at this door and wait for nobody any more."""
        for session in self.here:
            session.end(error)
        for device_id in list(self._farewells):
            self._forget_farewell(device_id)

    def _give_up_on(self, device_id: str) -> None:
        self._farewells.pop(device_id, None)
        if device_id not in self._sessions:
            self._listener(DeviceGone(device_id))

    def _forget_farewell(self, device_id: str) -> None:
        timer = self._farewells.pop(device_id, None)
        if timer is not None:
            timer.cancel()


def _ignore(event: Event) -> None:
    del event
