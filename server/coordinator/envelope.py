"""What passes through a round's mailbox: events, and for what a device sends the answer that it waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from server.coordinator.events import SubmitStatus
from server.coordinator.exchange import ExchangeEvent
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.upload import Upload
from server.errors import NotReadyError

_log = logging.getLogger(__name__)

_WRITTEN_AT_ONCE = 16
"""Accepted uploads that are made durable by the same flushes and one transaction."""


@dataclass
class Envelope:
    """An event, and for an upload what comes with it and who waits for the answer."""

    event: ExchangeEvent
    header: UpdateHeader | None = None
    upload: Upload | None = None
    reason: str = ""
    answer: asyncio.Future[SubmitAnswer] | None = None

    def reply(self, answer: SubmitAnswer) -> None:
        """Answer whoever waits."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Let whoever waits try again, or not, by the error."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class Unwritten:
    """Accepted uploads by device that are folded in, but neither durable nor answered.

    Args:
      write: makes uploads durable, all at once.
      what: they are, for the log.
    """

    def __init__(self, write: Callable[[Sequence[Upload]], Awaitable[None]], what: str) -> None:
        self._write = write
        self._what = what
        self._envelopes: dict[str, Envelope] = {}

    def __len__(self) -> int:
        return len(self._envelopes)

    def __contains__(self, device_id: str) -> bool:
        return device_id in self._envelopes

    @property
    def are_many(self) -> bool:
        """Whether there are as many as are written at once."""
        return len(self) >= _WRITTEN_AT_ONCE

    def add(self, device_id: str, envelope: Envelope) -> None:
        """Add an upload that was accepted."""
        self._envelopes[device_id] = envelope

    async def write(self) -> None:
        """Make all durable, then answer them."""
        if not self._envelopes:
            return
        await self._write([envelope.upload for envelope in self._envelopes.values() if envelope.upload is not None])
        for device_id, envelope in self._envelopes.items():
            header = envelope.header
            if header is not None:
                _log.info(
                    "event=%s_accepted job=%s round=%d device=%s",
                    (header.step or self._what).lower(), header.job_id, header.round_number, device_id,
                )  # fmt: skip
            envelope.reply(SubmitAnswer(SubmitStatus.ACCEPTED))
        self._envelopes.clear()

    def fail(self) -> None:
        """Let the devices send again: it could not be written."""
        for envelope in self._envelopes.values():
            envelope.fail(NotReadyError("the update could not be written down; send it again"))
