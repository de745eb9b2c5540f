"""The link to the coordinator as the rest of the agent sees it: there is a stream now, or there will be one."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.errors import LinkError
from edge_client.transport import FleetStream

__all__ = ["Link"]

logger = logging.getLogger(__name__)


class Link:
    """Holds the stream while there is one."""

    def __init__(self) -> None:
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
            try:
                await self._stream.send(wire.ConnectRequest(report=report))
            except LinkError as error:
                logger.warning("report lost task=%s error=%s", report.task_id, error)

    async def leave(self) -> None:
        """Leave the coordinator politely, if there is a stream."""
        if self._stream is not None:
            with contextlib.suppress(LinkError):
                await self._stream.leave()
