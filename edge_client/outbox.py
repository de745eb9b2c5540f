"""The outbox ledger: every message that ever left this device, for its owner to read. It is a ``chain``.

::

    sending    a payload is about to leave: the digest of its bytes, what it is, and what protects it
    answered   what the coordinator said to it
    reporting  a task's end without an update is about to be told: the digest of the message
    requesting a request to enrol or to leave is about to be sent: what it holds, where it goes, its digest
    talked     what else left in some time: how many messages of which kind, and their bytes

These but the last are on the disk before the first byte leaves, so an upload that a power cut or a broken link ended is
in the ledger too: it stays UNANSWERED. The rest (hellos, heartbeats, requests, what frames a payload) has nothing of
the data in it and comes every few seconds: it is counted, and the counts are written once an hour and at the agent's
end; a power cut loses those of an hour at most.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_client.chain import Chain, Verdict
from edge_client.errors import StateFolderError
from edge_client.records import as_record

__all__ = ["UNANSWERED", "Dispatch", "Outbox", "Privacy", "Report", "Request", "Talk", "utc_now"]

UNANSWERED = "UNANSWERED"
"""Status of a dispatch whose answer never came: some or all of its bytes left the device."""


def utc_now() -> str:
    """Give the time of the device's clock, UTC, ISO 8601 with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of what a device adds to a sum; the fields are those of the wire's DifferentialPrivacy."""

    mechanism: str
    """central, distributed."""
    clip: float
    """Largest L2 norm of what the device adds."""
    noise_multiplier: float
    """Standard deviation of the noise in the sum, in units of ``clip``."""
    delta: float


@dataclass(frozen=True)
class Dispatch:
    """One time that a payload was sent."""

    at: str
    """When it began to leave: UTC, ISO 8601, by the device's clock."""
    kind: str
    """update; or the step of an exchange: keys, shares, masked, reveal."""
    job_id: str
    round_number: int
    task_id: str
    bytes: int
    """Size of the payload."""
    digest: str
    """SHA-256 of the payload."""
    attempt: int = 0
    """Of the exchange; 0 for an update."""
    privacy: Privacy | None = None
    """None: nothing is promised."""
    status: str = UNANSWERED
    """The coordinator's answer: ACCEPTED, DUPLICATE, LATE, REJECTED; or UNANSWERED."""
    reason: str = ""
    """The coordinator's words for LATE and REJECTED."""


@dataclass(frozen=True)
class Report:
    """One time that the coordinator was told that a task came to nothing."""

    at: str
    task_id: str
    outcome: str
    reason: str
    bytes: int
    digest: str
    """SHA-256 of the message."""


@dataclass(frozen=True)
class Request:
    """One time that the coordinator was asked to let this device in, or go; its token and its key are not here."""

    at: str
    purpose: str
    """enrol, leave."""
    to: str
    """``https://HOST:PORT``."""
    holds: str
    """What it consists of."""
    bytes: int
    """Size of its body."""
    digest: str
    """SHA-256 of the certificate request in it."""


@dataclass
class Talk:
    """Messages without a payload, counted."""

    at: str = ""
    """When the first of them left; empty: there are none."""
    messages: dict[str, int] = field(default_factory=dict)
    """How many, by kind: hello, heartbeat, request, header, renewal."""
    bytes: int = 0
    """Of all of them; of a renewal, which goes over HTTPS, those of the request's body."""

    def add(self, kind: str, num_bytes: int, *, messages: int = 1) -> None:
        """Count a message that leaves."""
        self.at = self.at or utc_now()
        self.messages[kind] = self.messages.get(kind, 0) + messages
        self.bytes += num_bytes


Entry = Dispatch | Report | Request | Talk


class Outbox:
    """The ledger in one file. One process appends; any number may read."""

    def __init__(self, path: Path, *, now: Callable[[], str] = utc_now) -> None:
        self._chain = Chain(path)
        self._now = now

    def begin(self) -> Verdict:
        """Look the ledger through before it is gone on with.

        Raises:
          StateFolderError: it was begun by a version of bitfleet that did not chain its lines.
        """
        first = next(self._chain.records(), {})
        if "event" in first and "previous" not in first:
            path = self._chain.path
            raise StateFolderError(
                f"the outbox ledger {path} was begun by a version that did not bind its lines together; keep it under "
                f"another name, for instance: mv {path} {path}.old"
            )
        return self.verify()

    def verify(self, noted: str | None = None) -> Verdict:
        """Check that nothing in the ledger was changed; see ``Chain.verify``."""
        return self._chain.verify(noted)

    def sending(self, dispatch: Dispatch) -> None:
        """Record that a payload is about to leave; it may leave only after this returns.

        Raises:
          OSError: the line could not be made durable; nothing may be sent then.
        """
        line = asdict(dispatch)
        del line["status"], line["reason"]
        if dispatch.privacy is None:
            del line["privacy"]
        self._chain.append({"event": "sending", **line})

    def answered(self, status: str, reason: str = "") -> None:
        """Record the coordinator's answer to what was sent last.

        Raises:
          OSError: the line could not be made durable.
        """
        self._chain.append({"event": "answered", "at": self._now(), "status": status, "reason": reason})

    def reporting(self, report: Report) -> None:
        """Record that the coordinator is about to be told how a task ended.

        Raises:
          OSError: the line could not be made durable; nothing may be sent then.
        """
        self._chain.append({"event": "reporting", **asdict(report)})

    def requesting(self, request: Request) -> None:
        """Record that this device is about to ask to come, or to go.

        Raises:
          OSError: the line could not be made durable; nothing may be sent then.
        """
        self._chain.append({"event": "requesting", **asdict(request)})

    def talked(self, talk: Talk) -> None:
        """Record what else left; ``talk`` counts anew then.

        Raises:
          OSError: the line could not be made durable.
        """
        if talk.messages:
            self._chain.append({"event": "talked", **asdict(talk)})
            talk.at, talk.messages, talk.bytes = "", {}, 0

    def dispatches(self) -> Iterator[Dispatch]:
        """Read what was sent, oldest first."""
        return (entry for entry in self.entries() if isinstance(entry, Dispatch))

    def entries(self) -> Iterator[Entry]:
        """Read the ledger, oldest first. Lines that cannot be read are passed over; ``verify`` names them."""
        last: Dispatch | None = None
        for line in self._chain.records():
            facts = {key: value for key, value in line.items() if key not in ("event", "line", "previous", "torn")}
            event = line.get("event")
            if event == "answered" and last is not None:
                yield replace(last, status=str(line.get("status", UNANSWERED)), reason=str(line.get("reason", "")))
                last = None
            elif event == "sending":
                if last is not None:
                    yield last
                last = _dispatch_of(facts)
            elif (entry := _entry_of(event, facts)) is not None:
                yield entry
        if last is not None:
            yield last


def _dispatch_of(facts: dict[str, Any]) -> Dispatch | None:
    """Read a payload's line; None where the disk has damaged it."""
    privacy = facts.pop("privacy", None)
    try:
        dispatch = as_record(Dispatch, facts)
        return replace(dispatch, privacy=None if privacy is None else as_record(Privacy, privacy))
    except ValueError:
        return None


def _entry_of(event: object, facts: dict[str, Any]) -> Report | Request | Talk | None:
    """Read a line of another event; None where the disk has damaged it, or a later version wrote it."""
    try:
        if event == "reporting":
            return as_record(Report, facts)
        if event == "requesting":
            return as_record(Request, facts)
        if event == "talked":
            messages = facts.pop("messages", None)
            if isinstance(messages, dict) and all(type(number) is int for number in messages.values()):
                return replace(as_record(Talk, facts), messages=messages)
    except ValueError:
        pass
    return None
