"""URLs at which devices read the payloads that their tasks name from the object store, past the coordinator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from server.coordinator.messages import TaskOrder
from server.storage.payloads import BlobStore

_GOOD_S = 900.0
"""For which a URL is signed. A device that comes later gets the payload from the coordinator."""
_SHARED_S = 300.0
"""For which tasks get the same URL: signing takes a millisecond, and a cohort starts from one model."""


class PayloadUrls:
    """Signs URLs, and keeps them while they are new. For one event loop.

    A URL names one payload and lets whoever has it read that, for a quarter of an hour. It is given to no device but
    those whose task names the payload.
    """

    def __init__(self, blobs: BlobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._blobs = blobs
        self._clock = clock
        self._signed: dict[str, tuple[float, str]] = {}
        """By digest, with when it was signed; the oldest first."""

    async def of_task(self, order: TaskOrder) -> dict[str, str]:
        """Return the URLs of a task's model and of the steps to it, by digest."""
        now = self._clock()
        while self._signed and next(iter(self._signed.values()))[0] < now - _SHARED_S:
            del self._signed[next(iter(self._signed))]
        wanted = {order.model_digest, *(step.digest for step in order.steps)}
        if new := wanted - self._signed.keys():
            # Elsewhere, since credentials that a machine's role gives may have to be asked for.
            for digest, url in (await asyncio.to_thread(self._sign, sorted(new))).items():
                self._signed.setdefault(digest, (now, url))
        return {digest: self._signed[digest][1] for digest in wanted if digest in self._signed}

    def _sign(self, digests: list[str]) -> dict[str, str]:
        urls = {digest: self._blobs.url_for(digest, _GOOD_S) for digest in digests}
        return {digest: url for digest, url in urls.items() if url is not None}
