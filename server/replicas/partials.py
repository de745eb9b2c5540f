"""What this replica has added up of rounds that another one plays: one sum for each job's open round.

Sums merge exactly, so the lead may take this one in, or fold the same updates from their payloads instead: it depends
on nothing but which updates are in it, which is told with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from server.coordinator.aggregation import Aggregation
from server.coordinator.disk import Disk
from server.coordinator.job_state import JobState
from server.coordinator.messages import UpdateHeader
from server.coordinator.partial_sums import Part, PartialSum
from server.jobs import JobConfig
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore
from server.strategies import Update

_UNASKED_BYTES = 256 << 10
"""Most bytes of an update that may be read before the lead has judged its header: reading them costs less."""
_SETTLE_S = 3.0
"""How long a sum that is asked for waits for updates that are just being accepted."""


class Partial:
    """The sum of a round's updates that came in here.

    Args:
      config: the job's.
      base: the version that the round starts from.
      blobs: where that is read.
    """

    def __init__(self, config: JobConfig, base: VersionRecord, blobs: BlobStore) -> None:
        self.base = base
        self.config = config
        self._blobs = blobs
        self._aggregation = Aggregation(config, config.spec, blobs, base)
        self._parts: dict[str, Part] = {}
        self._came: set[str] = set()
        """Devices that were let in unasked."""
        self._lock = threading.Lock()
        self._expected = Counter[str]()
        self._changed = asyncio.Event()

    def is_of(self, base: VersionRecord) -> bool:
        """Say whether this is the sum of the round that starts from a version."""
        return (self.base.version, self.base.payload_digest) == (base.version, base.payload_digest)

    def lets_in(self, header: UpdateHeader) -> bool:
        """Say whether an update may be read before the lead is asked, which judges it when it is offered.

        That is so for a small one, the first of its device here, by whose header it is one of this round.
        """
        is_of = (header.round_number, header.model_digest) == (self.base.version + 1, self.base.payload_digest)
        is_small = header.step is None and 1 <= header.total_bytes <= _UNASKED_BYTES
        if not (is_of and is_small) or header.device_id in self._came:
            return False
        self._came.add(header.device_id)
        return True

    def check(self, update: Update, weight: int) -> None:
        """Check an update that is to be added; raises PayloadError. Blocking."""
        with self._lock:
            self._aggregation.check(update, weight)

    def fold(self, device_id: str, part: Part, update: Update) -> None:
        """Add a device's update, which was checked and is accepted. Blocking.

        When its earlier one is in the sum, the round has taken that back: the sum begins anew, and the lead finds what
        was in it in the payloads.
        """
        with self._lock:
            if device_id in self._parts:
                self._aggregation = Aggregation(self.config, self.config.spec, self._blobs, self.base)
                self._parts.clear()
            self._aggregation.add(device_id, update, part.weight, self.base)
            self._parts[device_id] = part

    @contextlib.contextmanager
    def expecting(self, device_id: str) -> Iterator[None]:
        """Let whoever asks for the sum wait for the end of the block, where an update is accepted and folded."""
        self._expected[device_id] += 1
        try:
            yield
        finally:
            self._expected[device_id] -= 1
            self._expected += Counter()  # forget those that are at 0
            self._changed.set()

    async def give(self, num_updates: int) -> PartialSum:
        """Write the sum down as it is when it has so many updates, or no more are expected; it goes on after that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while self._expected and len(self._parts) < num_updates:
                    self._changed.clear()
                    await self._changed.wait()
        return await asyncio.to_thread(self._write)

    def _write(self) -> PartialSum:
        with self._lock:
            data, parts = self._aggregation.to_bytes(), dict(self._parts)
        return PartialSum(self._blobs.put(data), parts)


class Partials:
    """The sums of all open rounds: of each job that of its newest, so memory is O(model) for a job.

    Args:
      disk: storage and payloads.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._by_job: dict[str, Partial] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def of(self, config: JobConfig, base: VersionRecord) -> Partial:
        """Return the sum of the round that starts from a version; that of an earlier round is forgotten."""
        partial = self._by_job.get(base.job_id)
        if partial is None or not partial.is_of(base):
            partial = self._by_job[base.job_id] = Partial(config, base, self._disk.blobs)
        return partial

    def that_lets_in(self, header: UpdateHeader) -> Partial | None:
        """Return the sum of an update's round when the update may be read before the lead is asked."""
        partial = self._by_job.get(header.job_id)
        return partial if partial is not None and partial.lets_in(header) else None

    async def give(self, base: VersionRecord, num_updates: int) -> PartialSum | None:
        """Write down the sum of the round that starts from a version; None: there is none.

        Args:
          base: the version.
          num_updates: how many updates it should hold.
        """
        partial = self._by_job.get(base.job_id)
        return None if partial is None or not partial.is_of(base) else await partial.give(num_updates)

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        """Forget the sum of a round that is over, or of whichever round of a job."""
        partial = self._by_job.get(job_id)
        if partial is not None and round_number in (None, partial.base.version + 1):
            del self._by_job[job_id]

    async def drop_ended(self) -> None:
        """Forget what is over, as storage says; for when others may have told so while they could not be heard."""
        storage = self._disk.storage
        for job_id, partial in list(self._by_job.items()):
            job = await self._disk.run(storage.get_job, job_id)
            next_version = await self._disk.run(storage.get_version, job_id, partial.base.version + 1)
            if job is None or JobState(job.state).is_over or next_version is not None:
                self.drop(job_id, partial.base.version + 1)
