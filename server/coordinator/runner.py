"""Runs one job, round after round, from wherever storage says it stands.

Recovery is the ordinary way in: progress is read from storage at the start of every round, after a restart as well as
after an error.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from bnncore.optimizer import resolve_preset
from bnncore.state import State
from server.coordinator.cohort import why_ineligible
from server.coordinator.collection import Collection
from server.coordinator.disk import Disk
from server.coordinator.evaluation import Evaluator
from server.coordinator.events import Cancelled, DeviceConnected, DeviceGone, Event, StartCollecting
from server.coordinator.memory import why_too_large
from server.coordinator.round import Phase, Round, Step, advance, open_round, resume_round
from server.coordinator.round_runner import RoundParts, RoundRunner
from server.coordinator.rules import RoundRules
from server.coordinator.sessions import Fleet, Session
from server.coordinator.start import load_start
from server.coordinator.versions import InitialState, VersionWriter, steps_to
from server.errors import ServerError
from server.jobs import JobConfig
from server.storage.base import JobRecord, RoundRecord, VersionRecord

_log = logging.getLogger(__name__)

RETURN_GRACE_S = 45.0
"""After a restart devices have this long to come back before they count as gone: more than their longest backoff."""


class RoundMissed(ServerError):
    """A round ended without a model, so the job cannot go on."""


class JobCancelled(ServerError):
    """The job was cancelled."""


@dataclass(frozen=True)
class RunnerParts:
    """What a job is run with."""

    disk: Disk
    fleet: Fleet
    settle_s: float
    initial_state: InitialState
    clock: Callable[[], float]


class JobRunner:
    """One running job."""

    def __init__(self, job: JobRecord, config: JobConfig, parts: RunnerParts) -> None:
        self.job_id = job.job_id
        self.config = config
        self._spec = config.spec
        self._spec_json = job.spec_json
        self._parts = parts
        self._disk = parts.disk
        self._writer = VersionWriter(job.job_id, self._spec, config.down_codec, parts.disk.blobs)
        self._why_too_large = functools.lru_cache(functools.partial(why_too_large, config))  # a plan takes milliseconds
        self._cancel_reason: str | None = None
        self.rounds_committed = 0
        self.active: RoundRunner | None = None
        """The round being played; None between rounds."""

    def post(self, event: Event) -> None:
        """Pass an event on to the round being played; the next round looks at the fleet itself."""
        if isinstance(event, DeviceConnected):
            session = self._parts.fleet.get(event.device_id)
            if session is None:
                return
            if self.why_ineligible(session) is not None:
                event = DeviceGone(event.device_id)  # it is back, but not for this job
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

    def why_ineligible(self, session: Session) -> str | None:
        """Say why a device cannot take part now, or None when it can: its data first, its memory, its conditions."""
        hello = session.hello
        problem = why_ineligible(
            job_classes=self.config.classes,
            job_input_shape=self.config.input_shape,
            device_classes=hello.classes,
            device_input_shape=hello.input_shape,
            device_num_examples=hello.num_examples,
        )
        return (
            problem
            or self._why_too_large(hello.memory_bytes, hello.num_examples, hello.threads)
            or session.heartbeat.conditions.reason
        )

    async def run(self) -> str:
        """Run the job from where it stands to its end.

        Returns:
          Why it ended before its last round; empty when it did not.

        Raises:
          RoundMissed: a round failed in all its attempts.
          JobCancelled: ``cancel`` was called.
        """
        storage = self._disk.storage
        async with Evaluator(self._disk, self.job_id, self.config) as evaluator:
            records = await self._disk.run(storage.list_rounds, self.job_id)
            committed = [record for record in records if record.state == Phase.COMMITTED]
            evaluated = {record.round_number for record in committed if record.accuracy is not None}
            for version in range(1, len(committed) + 1):
                self._evaluate_after(version, evaluator, evaluated)
            if await self._disk.run(storage.get_version, self.job_id, 0) is None:
                state = await self._first_state()
                first = await asyncio.to_thread(self._writer.write, 0, state, time.time())
                await self._disk.run(storage.add_version, first)
            self.rounds_committed = len(committed)
            for number in range(len(committed) + 1, self.config.exchanges + 1):
                self._check_cancelled()
                if reason := await self._reached_target(evaluator):
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
            if record.accuracy is not None and record.accuracy >= target:
                return f"round {record.round_number} reached {record.accuracy:.2f} % of the {target:g} % asked for"
        return ""

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
        versions = await self._disk.run(storage.list_versions, self.job_id)
        if len(versions) < number:
            raise RoundMissed(f"round {number}: model version {number - 1} is missing from the database")
        collection = Collection(self._disk, self.config, self._spec, versions[number - 1])
        await collection.take_over()
        try:
            return await self._collect(record, versions[:number], collection)
        finally:
            collection.release()

    async def _collect(
        self, record: RoundRecord | None, versions: list[VersionRecord], collection: Collection
    ) -> Round:
        storage, number = self._disk.storage, collection.round_number
        steps, from_seed = steps_to(versions)
        is_new = record is None
        if record is None:
            record = RoundRecord(self.job_id, number, Phase.OPEN, attempt=1, opened_at=time.time())
            await self._disk.run(storage.save_round, record)
        else:
            await collection.recover()
        parts = RoundParts(
            config=self.config,
            spec_json=self._spec_json,
            optimizer=resolve_preset(self.config.preset, self.config.optimizer).optimizer.name,
            disk=self._disk,
            fleet=self._parts.fleet,
            writer=self._writer,
            clock=self._parts.clock,
            base=versions[-1],
            steps=steps,
            from_seed=from_seed and self.config.start is None,
            measured=await self._measured(number),
        )
        begin = self._take_up(record, collection)
        if is_new and StartCollecting() in begin[1]:  # nobody had to be waited for: all of its time is the round's
            record = replace(record, collecting_since=record.opened_at)
        self.active = RoundRunner(parts, record, collection, begin)
        if self._cancel_reason is not None:  # while the round was prepared, when nobody could be told
            self.active.post(Cancelled(self._cancel_reason))
        try:
            return await self.active.play()
        finally:
            self.active = None

    async def _measured(self, number: int) -> dict[str, tuple[int, float]]:
        """Return how fast devices were before a round, where the job asks."""
        if self.config.local_seconds is None:
            return {}
        return await self._disk.run(self._disk.storage.measured_steps, self.job_id, number)

    def _take_up(self, record: RoundRecord, collection: Collection) -> Step:
        """Build the round's state machine from what is written down and who is connected now."""
        fleet, now, rules = self._parts.fleet, self._parts.clock(), self._rules(record.round_number)
        connected = frozenset(s.device_id for s in fleet if self.why_ineligible(s) is None)
        accepted = collection.with_status("ACCEPTED")
        refused = collection.with_status("REJECTED", "DECLINED")
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
        )
        for device_id in sorted(connected):
            round_, more = advance(round_, DeviceConnected(device_id), now)
            effects += more
        for device_id in round_.waiting - connected:
            fleet.expect(device_id, within_s=RETURN_GRACE_S)
        return round_, effects

    def _rules(self, number: int) -> RoundRules:
        config = self.config
        return RoundRules(
            round_number=number,
            seed=config.seed,
            min_devices=config.min_devices,
            cohort_size=config.cohort_size,
            quorum=config.quorum,
            deadline_s=config.deadline_s,
            settle_s=self._parts.settle_s,
            max_attempts=config.max_attempts,
            over_select=config.over_select,
            enough=config.enough,
            keeps_late=config.keeps_late(number),
        )
