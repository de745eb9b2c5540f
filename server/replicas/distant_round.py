"""A round that another replica plays, as this replica's intake sees it: all that is decided is asked of the lead.

The heavy part stays here. An update is received, decoded, checked and kept here; the lead says whether it counts; then
it is added up here, where the job's updates can be added up apart, and the device is told. Whatever is lost on the way,
the device sends again, and what was accepted is in the lead's rows and in the object store.
"""

from __future__ import annotations

import asyncio
import logging

from server.coordinator.aggregation import is_mergeable
from server.coordinator.disk import Disk
from server.coordinator.events import SubmitStatus
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.partial_sums import Part
from server.coordinator.upload import Upload, decode_update, keep
from server.errors import NotReadyError, PayloadLostError
from server.jobs import JobConfig
from server.replicas.bus import Body, Bus
from server.replicas.partials import Partial, Partials
from server.replicas.wire import from_json, to_json
from server.storage.base import VersionRecord
from server.storage.payloads import BlobWriter
from server.strategies import Update

_log = logging.getLogger(__name__)

JUDGE, OFFER, REFUSE = "update.judge", "update.offer", "update.refuse"
"""Questions to the lead."""
_OFFER_S = 60.0
"""The lead may have to fetch the payload, and to write many others down first."""
_KNOWN_JOBS = 256


class DistantRounds:
    """The rounds that the lead plays; see ``Rounds``.

    Args:
      bus: to the lead.
      disk: storage and payloads.
      partials: where updates are added up.
    """

    def __init__(self, bus: Bus, disk: Disk, partials: Partials) -> None:
        self._bus = bus
        self._disk = disk
        self._partials = partials
        self._configs: dict[str, JobConfig] = {}

    async def judge(self, header: UpdateHeader) -> SubmitAnswer | DistantRound:
        """See ``Rounds``; what the lead has not judged yet it judges when it is offered."""
        if (known := self._partials.that_lets_in(header)) is not None:
            return DistantRound(self._bus, self._disk, known.config, header, known)
        told = await self._bus.ask("lead", JUDGE, {"header": to_json(header)})
        if "answer" in told:
            return from_json(SubmitAnswer, told["answer"])
        config, base = await self._config_of(header.job_id), from_json(VersionRecord, told["base"])
        partial = self._partials.of(config, base) if is_mergeable(config) else None
        return DistantRound(self._bus, self._disk, config, header, partial)

    async def _config_of(self, job_id: str) -> JobConfig:
        """Return a job's configuration, which never changes."""
        config = self._configs.get(job_id)
        if config is None:
            job = await self._disk.run(self._disk.storage.get_job, job_id)
            if job is None:
                raise NotReadyError(f"job {job_id} cannot be read here yet; send the update again in a moment")
            config = await asyncio.to_thread(JobConfig.from_json, job.config_json)
            if len(self._configs) >= _KNOWN_JOBS:
                del self._configs[next(iter(self._configs))]
            self._configs[job_id] = config
        return config


class DistantRound:
    """A round that wants an update; see ``OpenRound``.

    Args:
      bus: to the lead.
      disk: storage and payloads.
      config: the job's.
      header: what the device says of the update.
      partial: where it is added up here; None: the lead folds it from its payload.
    """

    def __init__(self, bus: Bus, disk: Disk, config: JobConfig, header: UpdateHeader, partial: Partial | None) -> None:
        self._bus = bus
        self._disk = disk
        self._config = config
        self._header = header
        self._partial = partial
        self._up_bytes = 0

    def count(self, *, up: int) -> None:
        """See ``OpenRound``; told with the update."""
        self._up_bytes += up

    def read(self, payload: BlobWriter) -> Update | None:
        """See ``OpenRound``; of steps of an exchange the lead checks the bytes."""
        if self._header.step is not None:
            return None
        update = decode_update(self._config, self._header.round_number, payload.read())
        if self._partial is None:
            return None
        try:
            self._partial.check(update, self._header.num_examples)
        except PayloadLostError as error:  # what the round starts from: the lead will find out too
            raise NotReadyError(f"the update cannot be checked now, send it again: {error}") from error
        return update

    async def offer(self, upload: Upload) -> SubmitAnswer:
        """See ``OpenRound``."""
        header = self._header
        with self._disk.claimed({header.update_digest}):
            await asyncio.to_thread(keep, self._disk, [upload])
            if self._partial is None or upload.update is None:
                return await self._ask(OFFER)
            with self._partial.expecting(header.device_id):
                answer = await self._ask(OFFER)
                if answer.status is SubmitStatus.ACCEPTED:
                    await self._fold(self._partial, upload.update)
                return answer

    async def _fold(self, partial: Partial, update: Update) -> None:
        """Add an accepted update up; when that fails, the lead will find it missing and fold it from its payload."""
        part = Part(self._header.update_digest, self._header.num_examples)
        try:
            await asyncio.to_thread(partial.fold, self._header.device_id, part, update)
        except Exception:  # noqa: BLE001 - the update is accepted and kept, whatever happened here
            _log.exception("event=fold_failed job=%s device=%s", self._header.job_id, self._header.device_id)

    async def refuse(self, reason: str) -> SubmitAnswer:
        """See ``OpenRound``."""
        return await self._ask(REFUSE, reason=reason)

    async def _ask(self, kind: str, **more: object) -> SubmitAnswer:
        up_bytes, self._up_bytes = self._up_bytes, 0
        body: Body = {"header": to_json(self._header), "up_bytes": up_bytes, **more}
        return from_json(SubmitAnswer, (await self._bus.ask("lead", kind, body, timeout_s=_OFFER_S))["answer"])
