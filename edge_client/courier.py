"""Moves payloads: a model down into the cache, the pending update up. Goes on, over reconnects, until it is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.backoff import backoff
from edge_client.errors import LinkError, TaskFailedError
from edge_client.link import Link
from edge_client.model_cache import ModelCache
from edge_client.state_dir import PendingUpdate, StateDir
from edge_client.transport import FleetStream, Transport

__all__ = ["Courier", "status_name"]

logger = logging.getLogger(__name__)

MAX_FAULTS = 5
"""Errors of the coordinator's own, in a row, after which the same request is not made again."""

_T = TypeVar("_T")


def status_name(answer: wire.SubmitUpdateResponse) -> str:
    """Name a coordinator's answer as people read it: ACCEPTED, DUPLICATE, LATE, REJECTED."""
    return wire.SubmitStatus.Name(answer.status).removeprefix("SUBMIT_STATUS_")


class Courier:
    """Carries payloads of one device over one transport."""

    def __init__(self, transport: Transport, link: Link, state: StateDir, device_id: str) -> None:
        self._transport = transport
        self._link = link
        self._state = state
        self._device_id = device_id

    async def fetch(self, cache: ModelCache, digest: str, total_bytes: int) -> tuple[Path, int]:
        """Bring the payload of a model or a step into its cache; an unfinished download goes on where it stopped.

        Args:
          cache: where it belongs.
          digest: SHA-256 in lower-case hex.
          total_bytes: its announced size.

        Returns:
          The payload's file, checked against the digest, and the bytes that were downloaded for it now.

        Raises:
          TaskFailedError: the coordinator does not have it, or sends other bytes than the digest names, twice.
          OSError: the disk refused; nothing unfinished is left on it.
        """
        received = 0

        def count(num_bytes: int) -> None:
            nonlocal received
            received += num_bytes

        for _ in range(2):
            await self._persist("download", lambda stream: self._download(cache, digest, total_bytes, count))
            path = cache.complete(digest)
            if path is not None:
                return path, received
            logger.warning("download does not have its digest digest=%s", digest)
        raise TaskFailedError("the model's bytes do not have the digest that the task names, downloaded twice")

    async def deliver(self, update: PendingUpdate) -> wire.SubmitUpdateResponse:
        """Send the pending update until there is an answer. Each sending is in the ledger before it begins.

        Raises:
          TaskFailedError: it cannot be delivered: too large, or the coordinator fails on it again and again.
          OSError: the ledger cannot be written, so nothing was sent.
        """
        return await self._persist("upload", lambda stream: self._submit(update, stream))

    async def _download(self, cache: ModelCache, digest: str, total: int, count: Callable[[int], None]) -> None:
        if cache.partial_bytes(digest) > total:
            cache.discard_partial(digest)
        offset = cache.partial_bytes(digest)
        try:
            with cache.open_partial(digest) as file:
                pieces = self._transport.download(self._device_id, digest, offset)
                async with contextlib.aclosing(pieces):
                    while offset < total:
                        piece = await anext(pieces, b"")
                        if not piece:
                            raise LinkError(f"the download ended after {offset} of {total} bytes")
                        offset += len(piece)
                        count(len(piece))
                        if offset > total:
                            raise TaskFailedError(f"the model is longer than the {total} bytes announced")
                        file.write(piece)
        except (OSError, TaskFailedError):
            cache.discard_partial(digest)
            raise

    async def _submit(self, update: PendingUpdate, stream: FleetStream) -> wire.SubmitUpdateResponse:
        limit = stream.welcome.max_update_bytes
        if limit and update.total_bytes > limit:
            raise TaskFailedError(f"the update has {update.total_bytes} bytes, the coordinator takes at most {limit}")
        outbox = self._state.outbox
        outbox.sending(
            job_id=update.job_id,
            round_number=update.round_number,
            task_id=update.task_id,
            num_bytes=update.total_bytes,
            digest=update.update_digest,
        )
        try:
            answer = await self._transport.submit(self._header(update), self._state.pending_file, stream.chunk_bytes)
        except TaskFailedError as error:
            answer = wire.SubmitUpdateResponse(status=wire.SUBMIT_STATUS_REJECTED, reason=str(error))
        try:
            outbox.answered(status_name(answer), answer.reason)
        except OSError as error:
            logger.error("the answer cannot be written into the outbox ledger: %s", error)
        return answer

    def _header(self, update: PendingUpdate) -> wire.UpdateHeader:
        return wire.UpdateHeader(
            device_id=self._device_id,
            task_id=update.task_id,
            job_id=update.job_id,
            round_number=update.round_number,
            model_digest=update.model_digest,
            update_digest=update.update_digest,
            total_bytes=update.total_bytes,
            num_examples=update.num_examples,
            codec=update.codec,
            metrics=wire.UpdateMetrics(
                loss=update.loss,
                accuracy=update.accuracy,
                steps=update.steps,
                seconds=update.seconds,
                peak_pss_bytes=update.peak_pss_bytes,
                downloaded_bytes=update.downloaded_bytes,
                training_seconds=update.training_seconds,
            ),
        )

    async def _persist(self, what: str, attempt: Callable[[FleetStream], Awaitable[_T]]) -> _T:
        faults = 0
        for delay_s in backoff():
            stream = await self._link.stream()
            try:
                return await attempt(stream)
            except LinkError as error:
                faults = faults + 1 if error.is_coordinators_fault else 0
                if faults == MAX_FAULTS:
                    raise TaskFailedError(f"the {what} failed {faults} times at the coordinator: {error}") from error
                logger.warning("%s broke, next try in %.1f s error=%s", what, delay_s, error)
                await asyncio.sleep(delay_s)
        raise AssertionError("a backoff never ends")
