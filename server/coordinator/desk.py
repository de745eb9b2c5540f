"""Where it is decided what becomes of an update: at the rounds that this process plays.

An update comes from this process's own intake, or from that of another replica, which has kept its payload already.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

from bnncore.errors import IncompatibleError
from server.coordinator.admission import Room
from server.coordinator.aggregation import is_mergeable
from server.coordinator.disk import Disk
from server.coordinator.events import ExchangeStep, SubmitStatus
from server.coordinator.job_state import JobState
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.round_runner import RoundRunner
from server.coordinator.runner import JobRunner
from server.coordinator.upload import Upload, decode_update
from server.errors import NotReadyError, PayloadLostError, TooManyRequestsError
from server.jobs import JobConfig
from server.storage.base import UpdateRecord, VersionRecord
from server.storage.payloads import BlobWriter
from server.strategies import Update

_FETCHED_BYTES = 32 << 20
"""Payload bytes of updates that were kept elsewhere and are being folded in here."""


class Desk:
    """The rounds that are played here, for whoever brings them an update; see ``Rounds``.

    Args:
      disk: storage and payloads.
      running: the jobs that are running, by id, as they are at any time.
      max_update_bytes: most bytes of an update.
      max_refusals: updates of one device in one round that are refused, before no more of them are read.
    """

    def __init__(
        self, disk: Disk, running: Mapping[str, JobRunner], *, max_update_bytes: int, max_refusals: int
    ) -> None:
        self._disk = disk
        self._running = running
        self._max_update_bytes = max_update_bytes
        self._max_refusals = max_refusals
        self._refusals: WeakKeyDictionary[RoundRunner, Counter[str]] = WeakKeyDictionary()
        """Of the rounds that are played, by device."""
        self._fetching = Room(_FETCHED_BYTES)

    async def judge(self, header: UpdateHeader) -> SubmitAnswer | PlayedRound:
        """See ``Rounds``."""
        runner = self._running.get(header.job_id)
        if runner is None:
            return await self._judge_stopped(header)
        active = runner.active
        if active is None:
            raise NotReadyError("the job's next round is being prepared; send the update again in a moment")
        self._check_refusals(active, header.device_id)
        round_ = PlayedRound(self, active, runner.config, header)
        answer = await active.judge_header(header)
        if answer is None and not 1 <= header.total_bytes <= self._max_update_bytes:
            reason = f"an update must have 1 to {self._max_update_bytes} bytes, this one has {header.total_bytes}"
            answer = SubmitAnswer(SubmitStatus.REJECTED, reason)
        if answer is None:
            return round_
        if answer.status is SubmitStatus.REJECTED:
            return await round_.refuse(answer.reason)
        return await self.last_word(active, header, answer)

    async def _judge_stopped(self, header: UpdateHeader) -> SubmitAnswer:
        """Judge an update of a job that is not running."""
        job = await self._disk.run(self._disk.storage.get_job, header.job_id)
        if job is None:
            return SubmitAnswer(SubmitStatus.REJECTED, f"there is no job {header.job_id!r} here")
        if job.state == JobState.RUNNING:  # after a restart, before the job is taken up again
            raise NotReadyError("the job's next round is being prepared; send the update again in a moment")
        late = SubmitAnswer(SubmitStatus.LATE, f"job {header.job_id} is {job.state} and takes no updates")
        return await self._recall(header, late)

    def _check_refusals(self, active: RoundRunner, device_id: str) -> None:
        if self._refusals.get(active, Counter())[device_id] >= self._max_refusals:
            raise TooManyRequestsError(
                f"{self._max_refusals} updates of device {device_id} were refused in round {active.round_number}; no "
                "more of its are read in this round"
            )

    def count_refusal(self, active: RoundRunner, device_id: str) -> None:
        """Count an update that could not be taken."""
        self._refusals.setdefault(active, Counter())[device_id] += 1

    async def offer_kept(self, round_: PlayedRound, keeper: str) -> SubmitAnswer:
        """Offer an update whose payload another replica, the keeper, has decoded, checked and kept.

        The keeper adds it up where the job's updates can be added up apart; otherwise it is fetched and folded in here.

        Raises:
          NotReadyError: it was not counted now, or the payload cannot be read; sending it again is right.
        """
        header = round_.header
        if is_mergeable(round_.config):
            return await round_.offer(Upload(header, folded_by=keeper))
        async with self._fetching.take(header.total_bytes):
            try:
                data = await asyncio.to_thread(self._disk.blobs.get, header.update_digest)
            except PayloadLostError as error:
                raise NotReadyError(f"the update cannot be read back, send it again: {error}") from error
            try:
                update = await asyncio.to_thread(round_.decode, data)
            except IncompatibleError as error:
                return await round_.refuse(str(error))
            return await round_.offer(Upload(header, payload=data, update=update))

    async def last_word(self, active: RoundRunner, header: UpdateHeader, answer: SubmitAnswer) -> SubmitAnswer:
        """Turn a round's answer into what the device is told: an update that comes late may have been counted."""
        is_open_step = not active.closed.is_set() and header.step is not None  # the round itself keeps what becomes
        if answer.status is not SubmitStatus.LATE or (is_open_step and header.round_number == active.round_number):
            return answer
        if active.task_round(header.device_id) == header.round_number:
            await active.closed.wait()  # its commit writes all rows of the round: ours comes after
        return await self._recall(header, answer)

    async def _recall(self, header: UpdateHeader, late: SubmitAnswer) -> SubmitAnswer:
        """Answer an update of a closed round: DUPLICATE when it was counted then, LATE (written down) otherwise."""
        storage = self._disk.storage
        row = await self._disk.run(storage.get_update, header.job_id, header.round_number, header.device_id)
        while row is not None and row.status == "CARRIED":  # the word on it was said in a later round
            row = await self._disk.run(storage.get_update, header.job_id, row.round_number + 1, header.device_id)
        if row is not None and row.status == "ACCEPTED":
            return SubmitAnswer(SubmitStatus.DUPLICATE)
        if header.step not in (None, ExchangeStep.KEYS) or (row is not None and row.exchange_step):
            return late  # what the round says of the device stays as it is
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
        self._disk.feed.publish_update(row)
        return late


class PlayedRound:
    """A round that is played here and wants an update; see ``OpenRound``."""

    def __init__(self, desk: Desk, active: RoundRunner, config: JobConfig, header: UpdateHeader) -> None:
        self._desk = desk
        self._active = active
        self.config = config
        self.header = header

    @property
    def base(self) -> VersionRecord:
        """The version that the round starts from."""
        return self._active.base

    def count(self, *, up: int) -> None:
        """See ``OpenRound``."""
        self._active.count(self.header.device_id, up=up)

    def read(self, payload: BlobWriter) -> Update | None:
        """See ``OpenRound``."""
        return self.decode(payload.read())

    def decode(self, data: bytes | memoryview) -> Update | None:
        """Decode and check a payload; None where it is a step of an exchange. Blocking.

        Raises:
          IncompatibleError: it is not valid.
        """
        if self.header.step is None:
            return decode_update(self.config, self.header.round_number, data)
        if self.header.step is ExchangeStep.KEYS:
            self._active.check_keys(self.header, bytes(data))
        return None

    async def offer(self, upload: Upload) -> SubmitAnswer:
        """See ``OpenRound``."""
        return await self._desk.last_word(self._active, self.header, await self._active.offer(upload))

    async def refuse(self, reason: str) -> SubmitAnswer:
        """See ``OpenRound``."""
        self._desk.count_refusal(self._active, self.header.device_id)
        answer = await self._active.refuse(self.header, reason)
        return await self._desk.last_word(self._active, self.header, answer)
