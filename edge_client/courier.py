"""Moves payloads: a model down into the cache, what a task came to up. Goes on, over reconnects, until it is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.durable import WRITTEN
from edge_client.backoff import backoff
from edge_client.daily_use import DailyUse
from edge_client.errors import LinkError, TaskFailedError, one_line
from edge_client.link import Link
from edge_client.model_cache import ModelCache
from edge_client.outbox import Outbox
from edge_client.parcel import Parcel
from edge_client.transport import FleetStream, Transport

__all__ = ["Courier", "status_name"]

logger = logging.getLogger(__name__)

MAX_FAULTS = 5
"""Errors of the coordinator's own, in a row, after which the same request is not made again."""

LEAST_PIECE_BYTES = 1024
"""Pieces of a download may be this small on average, and no smaller: each costs the device work."""

LEDGER_RETRY_S = 30.0
"""Between two tries to write what is about to leave into the ledger: before that nothing leaves."""

_SPARE_PIECES = 16

_T = TypeVar("_T")


def status_name(answer: wire.SubmitUpdateResponse) -> str:
    """Name a coordinator's answer as people read it: ACCEPTED, DUPLICATE, LATE, REJECTED; UNKNOWN for any other."""
    if answer.status not in wire.SubmitStatus.values():
        return "UNKNOWN"
    return wire.SubmitStatus.Name(answer.status).removeprefix("SUBMIT_STATUS_")


class Courier:
    """Carries payloads of one device over one transport, within its owner's daily budgets."""

    def __init__(self, transport: Transport, link: Link, outbox: Outbox, device_id: str, use: DailyUse) -> None:
        self._transport = transport
        self._link = link
        self._outbox = outbox
        self._device_id = device_id
        self._use = use

    async def fetch(self, cache: ModelCache, digest: str, total_bytes: int, url: str = "") -> tuple[Path, int]:
        """Bring the payload of a model or a step into its cache; an unfinished download goes on where it stopped.

        Args:
          cache: where it belongs.
          digest: SHA-256 in lower-case hex.
          total_bytes: its announced size.
          url: where it can be read past the coordinator, which is tried first and once; empty: nowhere.

        Returns:
          The payload's file, checked against the digest, and the bytes that were downloaded for it now.

        Raises:
          TaskFailedError: the coordinator does not have it, or sends other bytes than the digest names, twice.
          TaskDeclinedError: it is more than the device's owner lets come in a day.
          OSError: the disk refused; nothing unfinished is left on it.
        """
        received = 0

        def count(num_bytes: int) -> None:
            nonlocal received
            received += num_bytes

        def from_coordinator(offset: int) -> AsyncGenerator[bytes, None]:
            return self._transport.download(self._device_id, digest, offset)

        if url:
            try:
                await self._download(cache, digest, total_bytes, count, lambda at: self._transport.read_url(url, at))
            except (LinkError, TaskFailedError) as error:
                logger.warning("downloading from the coordinator instead: %s digest=%s", error, digest)
            else:
                path = cache.complete(digest)
                if path is not None:
                    return path, received
                logger.warning("what the object store has does not have its digest digest=%s", digest)
        for _ in range(2):
            await self._persist(
                "download", lambda stream: self._download(cache, digest, total_bytes, count, from_coordinator)
            )
            path = cache.complete(digest)
            if path is not None:
                return path, received
            logger.warning("download does not have its digest digest=%s", digest)
        raise TaskFailedError("the model's bytes do not have the digest that the task names, downloaded twice")

    async def deliver(self, parcel: Parcel) -> wire.SubmitUpdateResponse:
        """Send a payload until there is an answer. Each sending is in the ledger before it begins.

        Raises:
          TaskFailedError: it cannot be delivered: too large, or the coordinator fails on it again and again.
          TaskDeclinedError: it is more than the device's owner lets leave in a day.
        """
        while True:
            try:
                return await self._persist("upload", lambda stream: self._submit(parcel, stream))
            except OSError as error:
                logger.error("the outbox ledger cannot be written, so the %s waits: %s", parcel.kind, error)
                await asyncio.sleep(LEDGER_RETRY_S)

    async def _download(
        self,
        cache: ModelCache,
        digest: str,
        total: int,
        count: Callable[[int], None],
        pieces_from: Callable[[int], AsyncGenerator[bytes, None]],
    ) -> None:
        if cache.partial_bytes(digest) > total:
            cache.discard_partial(digest)
        first = offset = cache.partial_bytes(digest)
        pieces_left = _SPARE_PIECES + (total - offset) // LEAST_PIECE_BYTES
        try:
            with cache.open_partial(digest) as file:
                pieces = pieces_from(offset)
                async with contextlib.aclosing(pieces):
                    while offset < total:
                        piece = await anext(pieces, b"")
                        if not piece:
                            raise LinkError(f"the download ended after {offset} of {total} bytes")
                        offset += len(piece)
                        count(len(piece))
                        self._use.take_down(len(piece))
                        if offset > total:
                            raise TaskFailedError(f"the model is longer than the {total} bytes announced")
                        pieces_left -= 1
                        if pieces_left < 0:
                            raise TaskFailedError(f"the model comes in pieces of less than {LEAST_PIECE_BYTES} bytes")
                        file.write(piece)
        except (OSError, TaskFailedError):
            cache.discard_partial(digest)
            raise
        finally:
            WRITTEN.add(offset - first)

    async def _submit(self, parcel: Parcel, stream: FleetStream) -> wire.SubmitUpdateResponse:
        limit, num_bytes = stream.welcome.max_update_bytes, parcel.header.total_bytes
        if limit and num_bytes > limit:
            raise TaskFailedError(f"the {parcel.kind} has {num_bytes} bytes, the coordinator takes at most {limit}")
        self._use.check_up(num_bytes)
        self._outbox.sending(parcel.dispatch())
        self._use.take_up(num_bytes)
        try:
            answer = await self._transport.submit(parcel.header, parcel.path, stream.chunk_bytes)
        except TaskFailedError as error:
            answer = wire.SubmitUpdateResponse(status=wire.SUBMIT_STATUS_REJECTED, reason=str(error))
        answer.reason = one_line(answer.reason)
        try:
            self._outbox.answered(status_name(answer), answer.reason)
        except OSError as error:
            logger.error("the answer cannot be written into the outbox ledger: %s", error)
        return answer

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
