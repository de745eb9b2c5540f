"""The link to the coordinator as the rest of the agent sees it: there is a stream now, or there will be one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.errors import LinkError
from edge_client.outbox import Outbox, Report, utc_now
from edge_client.transport import FleetStream

__all__ = ["Link"]

logger = logging.getLogger(__name__)


class Link:
    """Holds the stream while there is one.

    Args:
      outbox: the ledger, which a report stands in before it leaves.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._stream: FleetStream | None = None
        self._is_up = asyncio.Event()

    def up(self, stream: FleetStream) -> None:
        """A stream was welcomed."""
        self._stream = stream
        self._is_up.set()

    def down(self) -> None:
        """The stream has ended."""
        self._stream = None
        self._is_up.clear()

    def cut(self) -> None:
        """End the stream, if there is one, so that a new one is begun."""
        if self._stream is not None:
            self._stream.abort()

    async def stream(self) -> FleetStream:
        """Wait for a stream. The agent keeps trying to get one, so this ends when the coordinator is there."""
        while self._stream is None:
            await self._is_up.wait()
        return self._stream

    async def report(self, report: wire.TaskReport) -> None:
        """Tell the coordinator how a task ended, if there is a stream.

        Without one nothing is kept: the coordinator sends the task again when it still counts, and it ends again.
        """
        if self._stream is not None:
            event = wire.ConnectRequest(report=report)
            message = event.SerializeToString()
            outcome = wire.TaskOutcome.Name(report.outcome).removeprefix("TASK_OUTCOME_")
            digest = hashlib.sha256(message).hexdigest()
            try:
                self._outbox.reporting(Report(utc_now(), report.task_id, outcome, report.reason, len(message), digest))
                await self._stream.send(event)
            except (LinkError, OSError) as error:
                logger.warning("report lost task=%s error=%s", report.task_id, error)

    async def leave(self) -> None:
        """Leave the coordinator politely, if there is a stream."""
        if self._stream is not None:
            with contextlib.suppress(LinkError):
                await self._stream.leave()
