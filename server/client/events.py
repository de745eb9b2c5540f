"""The stream of events, read as it comes, over whatever interrupts it (WHATWG HTML, 9.2)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from bnncore.errors import UnreachableError
from server.client.connection import Connection, RequestError

_SILENCE_S = 45.0
"""Three heartbeats of the stream: whoever says nothing for so long is gone."""
_PAUSE_S = 2.0


@dataclass(frozen=True)
class FleetEvent:
    """Something has changed."""

    kind: str
    """``job``, ``round``, ``update``, ``device`` or ``model``; ``reset``: fetch anew, some changes were missed."""
    data: dict[str, Any]
    """The thing's ``id`` and what changed; empty for ``reset``."""
    event_id: str


def read_events(lines: Iterable[str]) -> Iterator[FleetEvent]:
    """Yield the events of a stream's lines; comments and fields without a meaning here are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                yield FleetEvent(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


def follow(connection: Connection, job: str | None, patience_s: float) -> Iterator[FleetEvent]:
    """Yield events without end; a stream that breaks off is taken up where it did.

    Args:
      connection: to the coordinator.
      job: only what concerns this job.
      patience_s: seconds without an answer after which it is given up.

    Raises:
      UnreachableError: there was no answer for so long.
      RequestError: the coordinator refused.
    """
    known, since = "", time.monotonic()
    while True:
        headers = {"Last-Event-ID": known} if known else {}
        params = {} if job is None else {"job": job}
        try:
            with connection.stream(
                "/events", params=params, headers=headers, timeout=httpx.Timeout(_SILENCE_S)
            ) as response:
                try:
                    for event in read_events(response.iter_lines()):
                        known = event.event_id
                        yield event
                finally:
                    since = time.monotonic()  # it was there until now, however long nothing has changed
        except (UnreachableError, RequestError) as error:
            is_passing = isinstance(error, UnreachableError) or error.status == 503
            if not is_passing or time.monotonic() - since >= patience_s:
                raise
        time.sleep(_PAUSE_S)
