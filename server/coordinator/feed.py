"""What changes, told to whoever watches: one feed in the process, in memory.

Of several coordinators each has a feed with the events of all (``server.replicas.feed_relay``), in an order and under
ids of its own.

A change is published when it is on disk, never before, so that whoever hears of it can ask for it. The feed keeps the
newest events; a watcher has a place among them. One that falls so far behind that its place is gone, or whose place is
one of an earlier process, is told to fetch anew (``reset``): however many watch and however slowly, the memory is that
of the newest events, and publishing waits for nobody.

For one event loop.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from server.storage.base import DeviceRecord, RoundRecord, UpdateRecord, VersionRecord

EventKind = Literal["job", "round", "update", "device", "model", "reset"]

_KEPT = 1024
"""Newest events that are kept for those who are behind."""


@dataclass(frozen=True)
class FeedEvent:
    """One change."""

    id: str
    """Where it is in the feed, for ``Feed.watch``; unlike that of any event of another process."""
    kind: EventKind
    job_id: str | None
    """None: of no job."""
    data: str
    """A JSON object on one line: the thing's ``id`` and what changed, by the names of the REST API's objects."""


class Feed:
    """Changes, the newest last."""

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._process = secrets.token_hex(4)
        self._events: deque[FeedEvent] = deque(maxlen=kept)
        self._num_published = 0
        self._news = asyncio.Event()
        self.is_closed = False
        self.on_publish: Callable[[FeedEvent], None] = lambda event: None
        """Told what was published here, to tell other coordinators."""

    def close(self) -> None:
        """Tell watchers that nothing more comes, and publish nothing any more."""
        self.is_closed = True
        self._news.set()

    def publish(self, kind: EventKind, thing_id: str, *, job_id: str | None = None, **changes: Any) -> None:
        """Tell that something has changed; what it is now must be on disk.

        Args:
          kind: of the thing.
          thing_id: the thing's id.
          job_id: whose watchers it concerns too.
          changes: JSON values by the REST API's names.
        """
        if not self.is_closed:
            data = json.dumps({"id": thing_id, **changes}, separators=(",", ":"))
            self.on_publish(self._add(kind, job_id, data))

    def take_in(self, kind: EventKind, job_id: str | None, data: str) -> None:
        """Tell what another coordinator has published; arguments as the fields of ``FeedEvent``."""
        if not self.is_closed:
            self._add(kind, job_id, data)

    def reset(self) -> None:
        """Tell all who watch to fetch anew: events of other coordinators may have been lost."""
        self.take_in("reset", None, "{}")

    def _add(self, kind: EventKind, job_id: str | None, data: str) -> FeedEvent:
        self._num_published += 1
        event = FeedEvent(self._id(self._num_published), kind, job_id, data)
        self._events.append(event)
        news, self._news = self._news, asyncio.Event()
        news.set()
        return event

    def publish_round(self, record: RoundRecord) -> None:
        """Tell where a round stands, and with it its members' tasks as they were handed out or ended."""
        self.publish(
            "round",
            f"{record.job_id}/{record.round_number}",
            job_id=record.job_id,
            job=record.job_id,
            round=record.round_number,
            state=record.state,
            attempt=record.attempt,
            devices=len(record.cohort),
            reason=record.reason,
            overhead_s=record.overhead_s,
        )

    def publish_update(self, row: UpdateRecord) -> None:
        """Tell what became of one device's task."""
        self.publish(
            "update",
            f"{row.job_id}/{row.round_number}/{row.device_id}",
            job_id=row.job_id,
            job=row.job_id,
            round=row.round_number,
            device_id=row.device_id,
            status=row.status,
            reason=row.reason,
            num_examples=row.num_examples,
            loss=row.loss,
            seconds=row.seconds,
            exchange_step=row.exchange_step,
        )

    def publish_version(self, record: VersionRecord) -> None:
        """Tell of a model's new version."""
        self.publish(
            "model",
            record.job_id,
            job_id=record.job_id,
            version=record.version,
            weights_digest=record.weights_digest,
            payload_bytes=record.payload_bytes,
        )

    def publish_device(self, record: DeviceRecord, *, is_connected: bool) -> None:
        """Tell that a device came or went."""
        self.publish(
            "device",
            record.device_id,
            connected=is_connected,
            client_version=record.client_version,
            num_examples=record.num_examples,
        )

    def watch(self, after: str | None = None) -> Watcher:
        """Begin to watch.

        Args:
          after: the id of the last event that is known; with None, or one that is not kept any more, the watcher is
            told first to fetch anew.
        """
        process, _, number = (after or "").rpartition("-")
        is_ours = process == self._process and number.isdecimal() and len(number) < 20
        return Watcher(self, int(number) if is_ours else -1)

    # For watchers

    def since(self, number: int) -> tuple[list[FeedEvent], int]:
        """Return the events after one, and the number of the newest; a ``reset`` where some are not kept any more."""
        missed = self._num_published - number
        if number < 0 or not 0 <= missed <= len(self._events):
            reset = FeedEvent(self._id(self._num_published), "reset", None, "{}")
            return [reset], self._num_published
        return list(islice(self._events, len(self._events) - missed, None)), self._num_published

    async def wait(self) -> None:
        """Wait until something is published, or the feed is closed."""
        if not self.is_closed:
            await self._news.wait()

    def _id(self, number: int) -> str:
        return f"{self._process}-{number}"


class Watcher:
    """A place in the feed."""

    def __init__(self, feed: Feed, number: int) -> None:
        self._feed = feed
        self._number = number

    async def next(self, *, within_s: float) -> list[FeedEvent] | None:
        """Wait for what comes next.

        Returns:
          The events, oldest first; none when nothing came in time; None when the feed was closed.
        """
        events, self._number = self._feed.since(self._number)
        if not events and not self._feed.is_closed:
            try:
                async with asyncio.timeout(within_s):
                    await self._feed.wait()
            except TimeoutError:
                return []
            events, self._number = self._feed.since(self._number)
        return events or (None if self._feed.is_closed else [])
