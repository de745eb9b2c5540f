"""Runs one job, round after round, from wherever storage says it stands.

Recovery is the ordinary way in: progress is read from storage at the start of every round, after a restart as well as
after an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from bnncore.optimizer import resolve_preset
from bnncore.state import State
from server.coordinator.collection import Collection
from server.coordinator.combining import Arithmetic
from server.coordinator.disk import Disk
from server.coordinator.dispatch import Dispatcher
from server.coordinator.eligibility import Eligibility
from server.coordinator.evaluation import Evaluator, OpenEvaluation, open_evaluation
from server.coordinator.events import Cancelled, DeviceConnected, DeviceGone, Event, StartCollecting
from server.coordinator.partial_sums import NoPartialSums, PartialSums
from server.coordinator.remembered import Remembered, recall
from server.coordinator.round import Phase, Round, Step, advance, open_round, resume_round, resume_unmasking
from server.coordinator.round_parts import RoundParts
from server.coordinator.round_runner import RoundRunner
from server.coordinator.rules import RoundRules, most_devices
from server.coordinator.salvage import check_version, without_lost_steps
from server.coordinator.sessions import Fleet
from server.coordinator.space import Space
from server.coordinator.start import load_start
from server.coordinator.versions import MOST_STEPS, InitialState, VersionWriter, steps_to
from server.errors import NoRoomError, ServerError
from server.jobs import JobConfig
from server.limits import Limits
from server.storage.base import JobRecord, RoundRecord, VersionRecord

_log = logging.getLogger(__name__)

RETURN_GRACE_S = 45.0
"""After a restart devices have this long to come back before they count as gone: more than their longest backoff."""

_VERSION_BYTES = 20
"""Most bytes that a version takes for each value of its model: the full state (4), payload (4), step (4), and what the
strategy remembers (8)."""
_LOOK_FOR_ROOM_S = 1.0


class RoundMissed(ServerError):
    """A round ended without a model, so the job cannot go on."""


class JobCancelled(ServerError):
    """The job was cancelled."""


@dataclass(frozen=True)
class RunnerParts:
    """What a job is run with."""

    disk: Disk
    space: Space
    fleet: Fleet
    dispatcher: Dispatcher
    limits: Limits
    initial_state: InitialState
    arithmetic: Arithmetic
    clock: Callable[[], float]
    open_evaluation: OpenEvaluation = open_evaluation
    partial_sums: PartialSums = field(default_factory=NoPartialSums)


class JobRunner:
    """One running job."""

    def __init__(self, job: JobRecord, config: JobConfig, parts: RunnerParts) -> None:
        self.job_id = job.job_id
        self.config = config
        self._spec = config.spec
        self._spec_json = job.spec_json
        self._parts = parts
        self._disk = parts.disk
        self._writer = VersionWriter(job.job_id, self._spec, config.down_codec, parts.disk.blobs, config.local_names)
        self.eligibility = Eligibility(config)
        self._cancel_reason: str | None = None
        self.rounds_committed = 0
        self.overheads_s: list[float] = []
        """Of the rounds that were committed since the job was taken up, where it is known."""
        self.active: RoundRunner | None = None
        """The round being played; None between rounds."""
        self.waits_for = ""
        """Why no round is played, where the job can do nothing about it."""

    def post(self, event: Event) -> None:
        """Pass an event on to the round being played; the next round looks at the fleet itself."""
        if isinstance(event, DeviceConnected):
            session = self._parts.fleet.get(event.device_id)
            if session is None:
                return
            if self.eligibility.why_not(session) is not None:
                event = DeviceGone(event.device_id)  # it is back, but not for this job
                self._parts.dispatcher.release(self.job_id, event.device_id)
        if self.active is not None:
            self.active.post(event)

    def cancel(self, reason: str) -> None:
        """End the job; ``run`` raises JobCancelled soon after."""
        self._cancel_reason = reason
        self.post(Cancelled(reason))

    def dismiss(self, reason: str) -> None:
        """Tell the devices that the open round is not waited for now; the caller ends ``run``."""
        if self.active is not None:
            self.active.dismiss_devices(reason)

    async def run(self) -> str:
        """Run the job from where it stands to its end.

        Returns:
          Why it ended before its last round; empty when it did not.

        Raises:
          RoundMissed: a round failed in all its attempts.
          PayloadLostError: the disk has lost what the round starts from; run again, the job goes on from what is whole.
          JobCancelled: ``cancel`` was called.
        """
        storage = self._disk.storage
        async with Evaluator(self._disk, self.job_id, self.config, self._parts.open_evaluation) as evaluator:
            records = await self._disk.run(storage.list_rounds, self.job_id)
            committed = [record for record in records if record.state == Phase.COMMITTED]
            evaluated = {record.round_number for record in committed if record.accuracy is not None}
            for version in range(1, len(committed) + 1):
                self._evaluate_after(version, evaluator, evaluated)
            if await self._disk.run(storage.get_version, self.job_id, 0) is None:
                with await self._wait_for_room():
                    state = await self._first_state()
                    first = await asyncio.to_thread(self._writer.write, 0, state, time.time())
                    await self._disk.run(storage.add_version, first)
                    self._disk.feed.publish_version(first)
            self.rounds_committed = len(committed)
            for number in range(len(committed) + 1, self.config.exchanges + 1):
                self._check_cancelled()
                if reason := await self._reached_target(evaluator) or await self._spent_budget(number - 1):
                    return reason
                round_ = await self._play(number)
                self._check_cancelled()
                if round_.phase is Phase.FAILED:
                    if number > self.config.rounds:  # the model is trained; only its statistics are a round old
                        _log.warning("event=closing_round_missed job=%s reason=%r", self.job_id, round_.reason)
                        evaluator.submit(number - 1)
                        break
                    raise RoundMissed(f"round {number}: {round_.reason}")
                self.rounds_committed = number
                self._evaluate_after(number, evaluator)
            await evaluator.drain()
        self._check_cancelled()
        return ""

    async def _first_state(self) -> State:
        if self.config.start is not None:
            return await load_start(self._disk, self.config, self.config.start)
        return await asyncio.to_thread(self._parts.initial_state, self.config)

    async def _reached_target(self, evaluator: Evaluator) -> str:
        """Say in which round the target accuracy was reached; empty: in none yet, or there is no target."""
        target = self.config.target_accuracy
        if target is None:
            return ""
        await evaluator.drain()  # so that where the job ends does not depend on how fast versions are evaluated
        for record in await self._disk.run(self._disk.storage.list_rounds, self.job_id):
            accuracy = record.local_accuracy if self.config.target == "local" else record.accuracy
            if accuracy is not None and accuracy >= target:
                return f"round {record.round_number} reached {accuracy:.2f} % of the {target:g} % asked for"
        return ""

    async def _spent_budget(self, sums_seen: int) -> str:
        """Say that one more round would tell more of a device than the job may; empty: it would not."""
        if self.config.privacy is None:
            return ""
        return await asyncio.to_thread(self.config.privacy.why_spent, sums_seen)

    def _evaluate_after(self, number: int, evaluator: Evaluator, evaluated: Container[int] = ()) -> None:
        """Submit the versions whose weights and statistics are known once round ``number`` is committed."""
        versions = [number]
        if self.config.statistics_batches:  # a round brings the statistics of the version that it starts from
            versions = [number - 1] if number < self.config.exchanges else [number - 1, number]
        for version in versions:
            if version >= 1 and version not in evaluated:
                evaluator.submit(version)

    def _check_cancelled(self) -> None:
        if self._cancel_reason is not None:
            raise JobCancelled(self._cancel_reason)

    async def _play(self, number: int) -> Round:
        """Play one round from where it stands to its end."""
        storage = self._disk.storage
        record = await self._disk.run(storage.get_round, self.job_id, number)
        versions = await self._disk.run(storage.versions_before, self.job_id, number, MOST_STEPS + 1)
        wanted = range(max(0, number - MOST_STEPS - 1), number)
        if missing := sorted(set(wanted) - {version.version for version in versions}):
            raise RoundMissed(f"round {number}: model versions {missing} are missing from the database")
        with await self._wait_for_room():
            await check_version(self._disk, versions[-1])
            versions = await without_lost_steps(self._disk, versions)
            parts = self._parts
            collection = Collection(
                *(self._disk, parts.space, self.config, self._spec, versions[-1], parts.partial_sums)
            )
            await collection.take_over()
            try:
                return await self._collect(record, versions, collection)
            finally:
                collection.release()

    async def _wait_for_room(self) -> AbstractContextManager[None]:
        """Wait until there is room for what a round leaves behind; returns a context that keeps it."""
        num_bytes = _VERSION_BYTES * self._spec.num_values
        try:
            while True:
                self._check_cancelled()
                try:
                    return await self._parts.space.make_room(num_bytes)
                except NoRoomError as error:
                    if not self.waits_for:
                        _log.warning("event=job_waits_for_room job=%s reason=%r", self.job_id, str(error))
                    self.waits_for = str(error)
                    await asyncio.sleep(_LOOK_FOR_ROOM_S)
        finally:
            self.waits_for = ""

    async def _collect(
        self, record: RoundRecord | None, versions: list[VersionRecord], collection: Collection
    ) -> Round:
        storage, number = self._disk.storage, collection.round_number
        steps, from_seed = steps_to(versions)
        is_new = record is None
        if record is None:
            record = RoundRecord(self.job_id, number, Phase.OPEN, attempt=1, opened_at=time.time())
            await self._disk.run(storage.save_round, record)
            self._disk.feed.publish_round(record)
        else:
            await collection.recover()
        parts = RoundParts(
            config=self.config,
            spec_json=self._spec_json,
            optimizer=resolve_preset(self.config.preset, self.config.optimizer).optimizer.name,
            disk=self._disk,
            dispatcher=self._parts.dispatcher,
            writer=self._writer,
            clock=self._parts.clock,
            base=versions[-1],
            steps=steps,
            from_seed=from_seed and self.config.start is None,
            measured=await self._measured(number),
            remembered=await self._remembered(versions[-1], number),
            arithmetic=self._parts.arithmetic,
        )
        begin = self._take_up(record, collection)
        if is_new and StartCollecting() in begin[1]:  # nobody had to be waited for: all of its time is the round's
            record = replace(record, collecting_since=record.opened_at)
        self.active = RoundRunner(parts, record, collection, begin)
        if self._cancel_reason is not None:  # while the round was prepared, when nobody could be told
            self.active.post(Cancelled(self._cancel_reason))
        try:
            round_ = await self.active.play()
            self._parts.partial_sums.drop(self.job_id, record.round_number)
            if self.active.overhead_s is not None:
                self.overheads_s.append(self.active.overhead_s)
            return round_
        finally:
            self.active = None

    async def _remembered(self, base: VersionRecord, number: int) -> Remembered:
        """Return what the round before left for one in which weights are told as whole numbers."""
        if self.config.secure_aggregation is None or self.config.is_closing(number):
            return Remembered()
        return await asyncio.to_thread(recall, self._disk.blobs, base)

    async def _measured(self, number: int) -> dict[str, tuple[int, float]]:
        """Return how fast devices were before a round, where the job asks."""
        if self.config.local_seconds is None:
            return {}
        return await self._disk.run(self._disk.storage.measured_steps, self.job_id, number)

    def _take_up(self, record: RoundRecord, collection: Collection) -> Step:
        """Build the round's state machine from what is written down and who is connected now."""
        fleet, now, rules = self._parts.fleet, self._parts.clock(), self._rules(record.round_number)
        connected = frozenset(s.device_id for s in fleet if self.eligibility.why_not(s) is None)
        accepted = collection.with_status("ACCEPTED")
        refused, spent = collection.with_status("REJECTED", "DECLINED"), collection.with_status("LOST")
        cohort = frozenset(record.cohort)
        carried, last_call = frozenset(collection.carried), collection.last_call
        if record.state == Phase.FAILED:
            raise RoundMissed(f"round {record.round_number}: {record.reason}")
        if record.state == Phase.OPEN:
            return open_round(
                rules,
                now=now,
                connected=connected,
                quiet_since=fleet.quiet_since,
                attempt=record.attempt,
                cohort=cohort,
                accepted=accepted,
                refused=refused,
                carried=carried,
                last_call=last_call,
                exchange=record.exchange or 1,
                trained=collection.trained,
                spent=spent,
            )
        if record.state == Phase.UNMASKING:
            for device_id in accepted - connected:
                fleet.expect(device_id, within_s=RETURN_GRACE_S)
            return resume_unmasking(
                rules,
                attempt=record.attempt,
                cohort=cohort,
                accepted=accepted,
                refused=refused,
                exchange=record.exchange,
                connected=connected,
                spent=spent,
            )
        round_, effects = resume_round(
            rules,
            now=now,
            attempt=record.attempt,
            cohort=cohort,
            accepted=accepted,
            refused=refused,
            carried=carried,
            last_call=last_call,
            exchange=record.exchange or 1,
            spent=spent,
        )
        for device_id in sorted(connected):
            round_, more = advance(round_, DeviceConnected(device_id), now)
            effects += more
        for device_id in round_.waiting - connected:
            fleet.expect(device_id, within_s=RETURN_GRACE_S)
        return round_, effects

    def _rules(self, number: int) -> RoundRules:
        config, secure, limits = self.config, self.config.secure_aggregation, self._parts.limits
        return RoundRules(
            round_number=number,
            seed=config.seed,
            min_devices=config.min_devices,
            cohort_size=config.cohort_size or most_devices(secure, limits),
            quorum=config.quorum,
            deadline_s=config.deadline_s,
            settle_s=limits.settle_s,
            max_attempts=config.max_attempts,
            over_select=config.over_select,
            enough=config.enough,
            keeps_late=config.keeps_late(number),
            min_members=0 if secure is None else secure.min_members,
        )
