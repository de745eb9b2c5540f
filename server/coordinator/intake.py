"""Takes updates in: judged by their header, streamed to disk, decoded, offered to their round.

Memory does not grow with the number of devices that send at once: only so many uploads are received together, while
the transport's flow control holds the others back; an update lies on disk, not in memory, before it is decoded; and
decoded updates that wait for their round take a bounded number of bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from bnncore.errors import IncompatibleError
from server.coordinator.admission import Room, Turn, Turns
from server.coordinator.disk import Disk
from server.coordinator.events import ExchangeStep, SubmitStatus
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.open_round import OpenRound, Rounds
from server.coordinator.space import Space
from server.coordinator.upload import Upload
from server.errors import InvalidRequestError, NotReadyError, UpdateRejected
from server.storage.payloads import BlobWriter
from server.strategies import Update

_log = logging.getLogger(__name__)

_RECEIVED_BYTES = 16 << 20
"""What uploads that are received together may have in memory."""
_WRITTEN_BYTES = 1 << 20
"""What of one upload is gathered before a thread writes it: one call for several chunks."""
_DECODED_BYTES = 32 << 20
"""Payload bytes of updates that are being decoded, folded and made durable."""
_TURN_S = 10.0
"""Seconds after which an upload that is still coming lets those go first that wait to begin."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an update's payload."""

    offset: int
    data: bytes
    wire_bytes: int
    """Serialised size of the message that carried it."""


@dataclass
class Traffic:
    """Serialised bytes and updates since the start, for metrics."""

    down_bytes: int = 0
    up_bytes: int = 0
    updates: Counter[str] = field(default_factory=Counter)
    steps: Counter[tuple[ExchangeStep, SubmitStatus]] = field(default_factory=Counter)
    """Of exchanges, keys included."""
    joules: dict[str, float] = field(default_factory=dict)
    """Of accepted updates, by where they were read."""


class Intake:
    """The way in for updates."""

    def __init__(
        self,
        disk: Disk,
        space: Space,
        *,
        max_chunk_bytes: int,
        max_chunks: int,
        traffic: Traffic,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._space = space
        self._max_chunks = max_chunks
        self._traffic = traffic
        held_bytes = _WRITTEN_BYTES + 2 * max_chunk_bytes  # gathered, the chunk that is one too many, and one arriving
        self._receiving = Turns(max(1, _RECEIVED_BYTES // held_bytes), _TURN_S, clock)
        self._decoding = Room(_DECODED_BYTES)
        self._under_way = 0
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._is_closed = False

    async def close(self) -> None:
        """Take no new update, and wait for the word on those that are on their way."""
        self._is_closed = True
        await self._is_quiet.wait()

    async def submit(
        self, rounds: Rounds, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]
    ) -> SubmitAnswer:
        """Take one update in; returns when it is durable, or refused.

        Args:
          rounds: where the one is found that the update is for.
          header: what the device says of the update.
          header_bytes: serialised size of the header's message.
          chunks: the payload's pieces as they arrive.

        Raises:
          InvalidRequestError: the stream is malformed: pieces out of order, or the end before ``total_bytes``.
          NotReadyError: the update was not counted now, or there is no room for it; sending it again is right.
          TooManyRequestsError: too many of the device's updates were refused in this round.
        """
        if self._is_closed:
            raise NotReadyError("the coordinator is stopping; send the update again in a moment")
        self._under_way += 1
        self._is_quiet.clear()
        try:
            return await self._submit(rounds, header, header_bytes, chunks)
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._is_quiet.set()

    async def _submit(
        self, rounds: Rounds, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]
    ) -> SubmitAnswer:
        verdict = await rounds.judge(header)
        if isinstance(verdict, SubmitAnswer):
            answer = verdict
        else:
            verdict.count(up=header_bytes)
            with await self._space.make_room(header.total_bytes):
                answer = await self._receive(verdict, header, chunks)
        self._traffic.up_bytes += header_bytes
        if header.step is None:
            self._traffic.updates[answer.status] += 1
            if answer.status is SubmitStatus.ACCEPTED and header.joules is not None:
                joules = self._traffic.joules
                joules[header.joules_source] = joules.get(header.joules_source, 0.0) + header.joules
        else:
            self._traffic.steps[header.step, answer.status] += 1
        if answer.status in (SubmitStatus.LATE, SubmitStatus.REJECTED):
            _log.warning(
                "event=update_refused job=%s round=%d device=%s status=%s reason=%r",
                header.job_id, header.round_number, header.device_id, answer.status, answer.reason,
            )  # fmt: skip
        return answer

    async def _receive(self, round_: OpenRound, header: UpdateHeader, chunks: AsyncIterator[Chunk]) -> SubmitAnswer:
        writer = self._disk.blobs.writer()
        try:
            try:
                async with self._receiving.turn() as turn:
                    await self._write_chunks(round_, header, chunks, writer, turn)
                async with self._decoding.take(header.total_bytes):
                    update = await asyncio.to_thread(_read, round_, header, writer)
                    return await _to_the_end(round_.offer(Upload(header, writer, update)))
            except UpdateRejected as error:
                return await round_.refuse(str(error))
        finally:
            # Shielded: a call that was cancelled may be cancelled again while it cleans up.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, writer.discard))

    async def _write_chunks(
        self, round_: OpenRound, header: UpdateHeader, chunks: AsyncIterator[Chunk], writer: BlobWriter, turn: Turn
    ) -> None:
        pieces: list[bytes] = []
        received = wire_bytes = num_chunks = 0
        try:
            async for chunk in chunks:
                wire_bytes += chunk.wire_bytes
                num_chunks += 1
                if not chunk.data:
                    raise InvalidRequestError("a chunk must not be empty")
                if num_chunks > self._max_chunks:
                    raise InvalidRequestError(f"an update must come in at most {self._max_chunks} chunks")
                if chunk.offset != received:
                    raise InvalidRequestError(f"the next chunk must start at byte {received}, got {chunk.offset}")
                received += len(chunk.data)
                if received > header.total_bytes:
                    raise UpdateRejected(
                        f"the header announced {header.total_bytes} bytes, the chunks hold at least {received}"
                    )
                pieces.append(chunk.data)
                del chunk
                if received - writer.size >= _WRITTEN_BYTES or turn.is_over:
                    await asyncio.to_thread(_write, writer, pieces)
                    await turn.give_way()
        finally:
            round_.count(up=wire_bytes)
            self._traffic.up_bytes += wire_bytes
        if received != header.total_bytes:
            raise InvalidRequestError(
                f"the header announced {header.total_bytes} bytes, the stream ended after {received}; send it again"
            )
        await asyncio.to_thread(_write, writer, pieces)


async def _to_the_end(offer: Coroutine[Any, Any, SubmitAnswer]) -> SubmitAnswer:
    """Wait for the round's word even when the call is cancelled: it may be keeping the payload at this moment."""
    task = asyncio.ensure_future(offer)
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # of a call that was cancelled nobody else asks, and asyncio would log it as forgotten


def _write(writer: BlobWriter, pieces: list[bytes]) -> None:
    """Append pieces to a payload, and let go of them."""
    for piece in pieces:
        writer.write(piece)
    pieces.clear()


def _read(round_: OpenRound, header: UpdateHeader, writer: BlobWriter) -> Update | None:
    """Check a whole payload's digest, decode it and flush it to the disk; None where it is a step of an exchange."""
    if writer.digest != header.update_digest:
        raise UpdateRejected(f"the payload has digest {writer.digest}, the header announced {header.update_digest}")
    try:
        update = round_.read(writer)
    except IncompatibleError as error:
        raise UpdateRejected(str(error)) from error
    writer.flush()
    return update
