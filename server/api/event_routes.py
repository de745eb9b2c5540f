"""The stream of what changes: server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse

from server.api.access import Access, origin_of
from server.coordinator.admission import Places
from server.coordinator.feed import Feed, Watcher
from server.errors import ForbiddenError, NotReadyError, UnauthenticatedError
from server.limits import ConnectionLimits

HEARTBEAT_S = 15.0
"""Seconds of silence after which a comment is sent: whoever reads knows that the coordinator is there."""
_RETRY_MS = 2000
"""After which a browser connects again."""

_EXAMPLE = """retry: 2000

id: 5f3a9c01-41
event: reset
data: {}

id: 5f3a9c01-42
event: round
data: {"id":"digits-1f2e3d4c/3","job":"digits-1f2e3d4c","round":3,"state":"COMMITTED","devices":2}

: alive
"""

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events until either side ends the stream",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    }
}


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


def create_event_router(feed: Feed, access: Access, limits: ConnectionLimits) -> APIRouter:
    """Build the route of events; whoever may read may watch."""
    router = APIRouter(prefix="/api/v1", dependencies=[Depends(access.needs("read"))])
    most = limits.max_event_streams
    places = Places("streams of events", in_all=most, of_one=max(1, most // 2))

    async def place(request: Request) -> AsyncIterator[None]:
        with places.hold(origin_of(request)):
            yield  # until the stream has ended

    @router.get("/events", response_class=EventStream, responses=_ANSWERS, dependencies=[Depends(place)])
    async def watch(
        request: Request,
        job: Annotated[str | None, Query(description="Only what concerns this job", max_length=200)] = None,
        last_event_id: Annotated[str | None, Header(max_length=100)] = None,
    ) -> EventStream:
        """What changes, from now on or from after the ``Last-Event-ID``.

        Each event names a kind (``job``, ``round``, ``update``, ``device``, ``model``) and has one JSON object: the
        thing's ``id`` and what changed, under the names of the other answers. ``reset`` means: fetch anew; it comes
        first, unless everything after the ``Last-Event-ID`` is still known, and to whoever falls too far behind.
        A comment comes every 15 s. 503 when too many streams are open, or the coordinator is stopping.
        """
        if feed.is_closed:
            raise NotReadyError("the coordinator is stopping; connect again in a moment")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return EventStream(
            _texts(feed.watch(last_event_id), job, lambda: access.admit(request, "read")), headers=headers
        )

    return router


async def _texts(watcher: Watcher, job_id: str | None, check: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """Yield a stream's text until the feed is closed, or ``check`` says that its reader may read no longer."""
    clock = asyncio.get_running_loop().time
    yield f"retry: {_RETRY_MS}\n\n"
    silent_until = clock() + HEARTBEAT_S
    while (events := await watcher.next(within_s=max(0.0, silent_until - clock()))) is not None:
        try:
            await check()  # the key may have been revoked, or the session be over
        except (UnauthenticatedError, ForbiddenError):
            return
        wanted = [event for event in events if job_id is None or event.job_id == job_id or event.kind == "reset"]
        if wanted or clock() >= silent_until:
            yield (
                "".join(f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n" for event in wanted)
                or ": alive\n\n"
            )
            silent_until = clock() + HEARTBEAT_S
