"""The outbox ledger: every byte of every update that ever left this device, for its owner to read.

One line of JSON an event, only ever appended, each flushed to the disk. ``sending`` is written before the first byte
leaves and ``answered`` after the coordinator's answer, so an upload that a power cut or a broken link ended is in the
ledger too: it stays UNANSWERED.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bnncore.durable import sync_folder

__all__ = ["UNANSWERED", "Dispatch", "Outbox", "utc_now"]

UNANSWERED = "UNANSWERED"
"""Status of a dispatch whose answer never came: some or all of its bytes left the device."""


def utc_now() -> str:
    """Give the time of the device's clock, UTC, ISO 8601 with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Dispatch:
    """One time that an update was sent."""

    at: str
    """When it began to leave: UTC, ISO 8601, by the device's clock."""
    job_id: str
    round_number: int
    task_id: str
    bytes: int
    """Size of the payload."""
    digest: str
    """SHA-256 of the payload."""
    status: str = UNANSWERED
    """The coordinator's answer: ACCEPTED, DUPLICATE, LATE, REJECTED; or UNANSWERED."""
    reason: str = ""
    """The coordinator's words for LATE and REJECTED."""


class Outbox:
    """The ledger in one file. One process appends; any number may read."""

    def __init__(self, path: Path, *, now: Callable[[], str] = utc_now) -> None:
        self._path = path
        self._now = now

    def sending(self, *, job_id: str, round_number: int, task_id: str, num_bytes: int, digest: str) -> None:
        """Record that an update is about to leave; it may leave only after this returns.

        Raises:
          OSError: the line could not be made durable; nothing may be sent then.
        """
        dispatch = Dispatch(self._now(), job_id, round_number, task_id, num_bytes, digest)
        line = asdict(dispatch)
        del line["status"], line["reason"]
        self._append({"event": "sending", **line})

    def answered(self, status: str, reason: str = "") -> None:
        """Record the coordinator's answer to what was sent last.

        Raises:
          OSError: the line could not be made durable.
        """
        self._append({"event": "answered", "at": self._now(), "status": status, "reason": reason})

    def dispatches(self) -> Iterator[Dispatch]:
        """Read the ledger, oldest first. Lines that a power cut left unfinished are passed over."""
        last: Dispatch | None = None
        for line in self._lines():
            if line.get("event") == "answered" and last is not None:
                yield replace(last, status=str(line["status"]), reason=str(line["reason"]))
                last = None
            elif line.get("event") == "sending":
                if last is not None:
                    yield last
                last = Dispatch(**{key: value for key, value in line.items() if key != "event"})
        if last is not None:
            yield last

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with open(self._path, encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict):
                    yield line

    def _append(self, line: dict[str, Any]) -> None:
        is_new = not self._path.exists()
        with open(self._path, "ab+") as file:
            text = json.dumps(line) + "\n"
            if not self._ends_a_line(file.fileno()):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self._path.parent)

    @staticmethod
    def _ends_a_line(descriptor: int) -> bool:
        size = os.fstat(descriptor).st_size
        return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
