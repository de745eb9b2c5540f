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
from dataclasses import dataclass, field, replace
from typing import Any

from bnncore.codec import PayloadKind, get_codec
from bnncore.errors import IncompatibleError
from bnncore.spec import ModelSpec
from server.coordinator.admission import Room, Turn, Turns
from server.coordinator.collection import Upload
from server.coordinator.disk import Disk
from server.coordinator.events import SubmitStatus
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.queue import JobState
from server.coordinator.round_runner import RoundRunner
from server.coordinator.runner import JobRunner
from server.errors import InvalidRequestError, NotReadyError, UpdateRejected
from server.storage.base import BlobWriter, UpdateRecord
from server.strategies import Update

_log = logging.getLogger(__name__)

_RECEIVED_BYTES = 16 << 20
"""What uploads that are received together may have in memory: for each a chunk as it arrives and one being written."""
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


class Intake:
    """The way in for updates."""

    def __init__(
        self,
        disk: Disk,
        *,
        max_update_bytes: int,
        max_chunk_bytes: int,
        traffic: Traffic,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._max_update_bytes = max_update_bytes
        self._traffic = traffic
        self._receiving = Turns(max(1, _RECEIVED_BYTES // (2 * max_chunk_bytes)), _TURN_S, clock)
        self._decoding = Room(_DECODED_BYTES)

    async def submit(
        self, runner: JobRunner | None, header: UpdateHeader, header_bytes: int, chunks: AsyncIterator[Chunk]
    ) -> SubmitAnswer:
        """Take one update in; returns when it is durable, or refused.

        Args:
          runner: of the job that is running, if any.
          header: what the device says of the update.
          header_bytes: serialised size of the header's message.
          chunks: the payload's pieces as they arrive.

        Raises:
          InvalidRequestError: the stream is malformed: pieces out of order, or the end before ``total_bytes``.
          NotReadyError: the update was not counted now; sending it again is right.
        """
        active = runner.active if runner is not None and runner.job_id == header.job_id else None
        answer = await self._judge(runner, active, header)
        if answer is None and runner is not None and active is not None:
            active.count(header.device_id, up=header_bytes)
            answer = await self._receive(active, runner.config.spec, header, chunks)
        if answer is None:
            raise NotReadyError("the job's next round is being prepared; send the update again in a moment")
        if answer.status is SubmitStatus.LATE:
            if active is not None and active.task_round(header.device_id) == header.round_number:
                await active.closed.wait()  # its commit writes all rows of the round: ours comes after
            answer = await self._recall(header, answer)
        self._traffic.up_bytes += header_bytes
        self._traffic.updates[answer.status] += 1
        if answer.status in (SubmitStatus.LATE, SubmitStatus.REJECTED):
            _log.warning(
                "event=update_refused job=%s round=%d device=%s status=%s reason=%r",
                header.job_id, header.round_number, header.device_id, answer.status, answer.reason,
            )  # fmt: skip
        return answer

    async def _judge(
        self, runner: JobRunner | None, active: RoundRunner | None, header: UpdateHeader
    ) -> SubmitAnswer | None:
        if active is not None:
            answer = await active.judge_header(header)
            if answer is None and not 1 <= header.total_bytes <= self._max_update_bytes:
                answer = SubmitAnswer(
                    SubmitStatus.REJECTED,
                    f"an update must have 1 to {self._max_update_bytes} bytes, this one has {header.total_bytes}",
                )
            if answer is not None and answer.status is SubmitStatus.REJECTED:
                return await active.refuse(header, answer.reason)
            return answer
        if runner is not None and runner.job_id == header.job_id:
            return None
        job = await self._disk.run(self._disk.storage.get_job, header.job_id)
        if job is None:
            return SubmitAnswer(SubmitStatus.REJECTED, f"there is no job {header.job_id!r} here")
        if runner is None and job.state == JobState.RUNNING:
            return None  # after a restart, before the job is taken up again
        return SubmitAnswer(SubmitStatus.LATE, f"job {header.job_id} is {job.state} and takes no updates")

    async def _receive(
        self, active: RoundRunner, spec: ModelSpec, header: UpdateHeader, chunks: AsyncIterator[Chunk]
    ) -> SubmitAnswer:
        writer = self._disk.blobs.writer()
        try:
            try:
                async with self._receiving.turn() as turn:
                    await self._write_chunks(active, header, chunks, writer, turn)
                async with self._decoding.take(header.total_bytes):
                    update = await asyncio.to_thread(_decode, spec, active.update_kind, header, writer)
                    return await _to_the_end(active.offer(Upload(header, writer, update)))
            except UpdateRejected as error:
                return await active.refuse(header, str(error))
        finally:
            # Shielded: a call that was cancelled may be cancelled again while it cleans up.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, writer.discard))

    async def _write_chunks(
        self, active: RoundRunner, header: UpdateHeader, chunks: AsyncIterator[Chunk], writer: BlobWriter, turn: Turn
    ) -> None:
        async for chunk in chunks:
            active.count(header.device_id, up=chunk.wire_bytes)
            self._traffic.up_bytes += chunk.wire_bytes
            if chunk.offset != writer.size:
                raise InvalidRequestError(f"the next chunk must start at byte {writer.size}, got {chunk.offset}")
            if writer.size + len(chunk.data) > header.total_bytes:
                raise UpdateRejected(
                    f"the header announced {header.total_bytes} bytes, the chunks hold at least "
                    f"{writer.size + len(chunk.data)}"
                )
            await asyncio.to_thread(writer.write, chunk.data)
            del chunk
            await turn.give_way()
        if writer.size != header.total_bytes:
            raise InvalidRequestError(
                f"the header announced {header.total_bytes} bytes, the stream ended after {writer.size}; send it again"
            )

    async def _recall(self, header: UpdateHeader, late: SubmitAnswer) -> SubmitAnswer:
        """Answer an update of a closed round: DUPLICATE when it was counted then, LATE (written down) otherwise."""
        storage = self._disk.storage
        row = await self._disk.run(storage.get_update, header.job_id, header.round_number, header.device_id)
        while row is not None and row.status == "CARRIED":  # the word on it was said in a later round
            row = await self._disk.run(storage.get_update, header.job_id, row.round_number + 1, header.device_id)
        if row is not None and row.status == "ACCEPTED":
            return SubmitAnswer(SubmitStatus.DUPLICATE)
        if await self._disk.run(storage.get_round, header.job_id, header.round_number) is None:
            reason = f"job {header.job_id} has no round {header.round_number}"
            return SubmitAnswer(SubmitStatus.REJECTED, reason)
        row = row or UpdateRecord(header.job_id, header.round_number, header.device_id, "LATE")
        row = replace(
            row,
            status="LATE",
            reason=late.reason,
            num_examples=header.num_examples,
            seconds=header.seconds,
            received_at=time.time(),
        )
        await self._disk.run(storage.record_updates, [row])
        return late


async def _to_the_end(offer: Coroutine[Any, Any, SubmitAnswer]) -> SubmitAnswer:
    """Wait for the round's word even when the call is cancelled: it may be keeping the payload at this moment."""
    task = asyncio.ensure_future(offer)
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})


def _decode(spec: ModelSpec, kind: PayloadKind, header: UpdateHeader, writer: BlobWriter) -> Update:
    """Check a whole payload's digest, decode it and flush it to the disk."""
    if writer.digest != header.update_digest:
        raise UpdateRejected(f"the payload has digest {writer.digest}, the header announced {header.update_digest}")
    try:
        update = get_codec(header.codec).decode(spec, writer.read(), kind=kind)
    except IncompatibleError as error:
        raise UpdateRejected(str(error)) from error
    writer.flush()
    return update
