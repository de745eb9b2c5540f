"""What changes anywhere, told to whoever watches at this replica, and the other way round."""

from __future__ import annotations

import asyncio

from server.coordinator.feed import Feed, FeedEvent
from server.replicas.bus import Body, Bus
from server.replicas.members import Members


class FeedRelay:
    """Carries the events that are published at one replica into the feeds of all.

    An event that was on its way is lost with the connection or the replica that it came from; then watchers are told to
    fetch anew.
    """

    def __init__(self, feed: Feed, bus: Bus, members: Members) -> None:
        self._feed = feed
        self._bus = bus
        self._waiting: list[FeedEvent] = []
        self._was_connected = False
        bus.on("feed", self._take_in)
        bus.on_connect(self._begin_anew)
        members.on_gone(lambda replica_id: feed.reset())
        feed.on_publish = self._pass_on

    def _begin_anew(self) -> None:
        if self._was_connected:  # what was told here, and there, while it was cut off is lost on the others
            self._feed.reset()
            self._bus.tell(None, "feed", {"events": [["reset", None, "{}"]]})
        self._was_connected = True

    def _pass_on(self, event: FeedEvent) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._tell)  # with all that is published in this turn of the loop
        self._waiting.append(event)

    def _tell(self) -> None:
        events, self._waiting = self._waiting, []
        self._bus.tell(None, "feed", {"events": [[event.kind, event.job_id, event.data] for event in events]})

    def _take_in(self, sender: str, body: Body) -> None:
        for kind, job_id, data in body["events"]:
            self._feed.take_in(kind, job_id, data)
