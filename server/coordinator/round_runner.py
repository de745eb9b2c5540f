"""Plays one round: feeds events to the state machine one at a time and carries out the effects.

Everything that touches the round passes through one mailbox, so an update, a deadline and a lost device never meet
halfway. What takes long (receiving and decoding an update) happens before the mailbox; what is in it is short.

What was not written down did not happen: an error in the middle of an effect ends this object, and a new one takes the
round up again from storage, exactly as after ``kill -9``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bnncore.codec import PayloadKind
from bnncore.errors import PayloadError
from server.coordinator.collection import Collection, Upload
from server.coordinator.disk import Disk
from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    CancelTasks,
    Committed,
    Effect,
    Event,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    SubmitStatus,
    TaskEnded,
    TimePassed,
    UpdateOffered,
    UpdateRefused,
)
from server.coordinator.messages import CancelOrder, ModelStep, SubmitAnswer, TaskOrder, UpdateHeader, task_id_of
from server.coordinator.round import Phase, Round, Step, advance
from server.coordinator.sessions import Fleet
from server.coordinator.versions import VersionWriter
from server.errors import NotReadyError
from server.jobs import JobConfig
from server.storage.base import RoundRecord, UpdateRecord, VersionRecord

_log = logging.getLogger(__name__)

_WRITTEN_AT_ONCE = 16
"""Accepted updates that are made durable by the same flushes and one transaction."""


@dataclass
class _Envelope:
    """An event, and for an update what comes with it and who waits for the answer."""

    event: Event
    header: UpdateHeader | None = None
    upload: Upload | None = None
    reason: str = ""
    answer: asyncio.Future[SubmitAnswer] | None = None

    def reply(self, answer: SubmitAnswer) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True)
class RoundParts:
    """What a round is played with."""

    config: JobConfig
    spec_json: str
    optimizer: str
    disk: Disk
    fleet: Fleet
    writer: VersionWriter
    clock: Callable[[], float]
    base: VersionRecord
    """The version that the round starts from."""
    steps: tuple[ModelStep, ...] = ()
    """The newest steps to it."""
    from_seed: bool = True
    """Whether the steps, or the version itself where there are none, begin at the job's initial model."""
    measured: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """``Storage.measured_steps`` before this round; of a carried device that is what it was before its task."""


class RoundRunner:
    """One round being played."""

    def __init__(self, parts: RoundParts, record: RoundRecord, collection: Collection, begin: Step) -> None:
        self._parts = parts
        self._config = parts.config
        self._record = record
        self._collection = collection
        self._round, self._first_effects = begin
        self._mailbox: asyncio.Queue[_Envelope] = asyncio.Queue()
        self._unwritten: dict[str, _Envelope] = {}
        """Accepted updates by device that are folded in, but neither durable nor answered."""
        self.closed = asyncio.Event()
        """Set when this runner has ended and all it had to write is written."""

    @property
    def round_number(self) -> int:
        """The round's number, counted from 1."""
        return self._record.round_number

    @property
    def base(self) -> VersionRecord:
        """The version that the round starts from."""
        return self._parts.base

    @property
    def update_kind(self) -> PayloadKind:
        """The kind of the round's updates."""
        return self._config.update_form(self.round_number)[1]

    def leads_to_base(self, digest: str) -> bool:
        """Say whether a payload is that of the version that the round starts from, or of a step to it."""
        return digest == self.base.payload_digest or any(step.digest == digest for step in self._parts.steps)

    # What others may ask while the round is played

    def post(self, event: Event) -> None:
        """Queue an event about a device or the job."""
        self._mailbox.put_nowait(_Envelope(event))

    def count(self, device_id: str, *, down: int = 0, up: int = 0) -> None:
        """Count serialised bytes to or from a device."""
        self._collection.count(device_id, down=down, up=up)

    def task_round(self, device_id: str) -> int:
        """Return the round whose task a device has: this one, or the one from which it was carried into this one."""
        return self._collection.base_of(device_id).version + 1

    def dismiss_devices(self, reason: str) -> None:
        """Tell the members that may still deliver to stop; nothing is written down."""
        self._cancel_tasks(sorted(self._round.waiting), reason)

    async def judge_header(self, header: UpdateHeader) -> SubmitAnswer | None:
        """Judge an update by its header: an answer when its bytes need not be read, None when they are wanted.

        Raises:
          NotReadyError: the round has just closed, and the next one will take the update.
        """
        number = self.task_round(header.device_id)
        if header.round_number < number:
            reason = f"round {header.round_number} has closed; the open round is {self.round_number}"
            return SubmitAnswer(SubmitStatus.LATE, reason)
        _, effects = advance(self._round, UpdateOffered(header.device_id), self._parts.clock())
        verdict = next((effect for effect in effects if isinstance(effect, AnswerUpdate)), None)
        if verdict is None:
            raise NotReadyError(f"round {self.round_number} has closed; send the update to the next one in a moment")
        if header.round_number == number and verdict.status in (SubmitStatus.DUPLICATE, SubmitStatus.LATE):
            if header.device_id in self._unwritten:  # a duplicate of what is not durable: the answer waits for that
                return await self._ask(_Envelope(UpdateOffered(header.device_id)))
            return SubmitAnswer(verdict.status, verdict.reason)
        problem = self._problem_with(header) or verdict.reason
        return SubmitAnswer(SubmitStatus.REJECTED, problem) if problem else None

    def _problem_with(self, header: UpdateHeader) -> str:
        base = self._collection.base_of(header.device_id)
        number = base.version + 1
        if header.round_number != number:
            return f"round {header.round_number} has not begun; the open round is {number}"
        if header.task_id != task_id_of(header.job_id, number, header.device_id):
            return f"task_id {header.task_id!r} is not the task of device {header.device_id} in round {number}"
        if header.model_digest != base.payload_digest:
            return f"round {number} starts from model {base.payload_digest}, the update from {header.model_digest}"
        codec, _ = self._config.update_form(number)
        if header.codec != codec:
            return f"codec must be {codec!r}, got {header.codec!r}"
        return ""

    async def offer(self, upload: Upload) -> SubmitAnswer:
        """Offer a whole and valid update; returns when it is durable, or refused."""
        return await self._ask(_Envelope(UpdateOffered(upload.header.device_id), upload.header, upload))

    async def refuse(self, header: UpdateHeader, reason: str) -> SubmitAnswer:
        """Refuse an invalid update, and write that down."""
        return await self._ask(_Envelope(UpdateRefused(header.device_id), header, reason=reason))

    async def _ask(self, envelope: _Envelope) -> SubmitAnswer:
        envelope.answer = asyncio.get_running_loop().create_future()
        if self.closed.is_set():
            self._dismiss(envelope)
        else:
            self._mailbox.put_nowait(envelope)
        return await envelope.answer

    def _dismiss(self, envelope: _Envelope) -> None:
        """Answer who came too late: LATE when the round has ended, "try again" when another one takes the update."""
        is_late = isinstance(envelope.event, UpdateOffered) and envelope.event.device_id in self._round.late
        if self._round.is_over and not is_late:
            envelope.reply(SubmitAnswer(SubmitStatus.LATE, f"round {self.round_number} has closed"))
        else:
            envelope.fail(NotReadyError("the round is being taken up again; send the update again in a moment"))

    # Playing

    async def play(self) -> Round:
        """Play the round to its end, and return it COMMITTED or FAILED."""
        try:
            await self._carry_out(self._round, self._first_effects, _Envelope(TimePassed()))
            while not self._round.is_over:
                envelope = await self._next_envelope()
                try:
                    await self._handle(envelope)
                    if self._mailbox.empty() or len(self._unwritten) >= _WRITTEN_AT_ONCE:
                        await self._write_accepted()
                except BaseException:
                    envelope.fail(NotReadyError("the update could not be written down; send it again"))
                    raise
            return self._round
        finally:
            self.closed.set()
            for envelope in self._unwritten.values():
                envelope.fail(NotReadyError("the update could not be written down; send it again"))
            while not self._mailbox.empty():
                self._dismiss(self._mailbox.get_nowait())

    async def _next_envelope(self) -> _Envelope:
        wake_at = self._round.wake_at
        delay = None if wake_at is None else max(0.0, wake_at - self._parts.clock())
        try:
            async with asyncio.timeout(delay):
                return await self._mailbox.get()
        except TimeoutError:
            return _Envelope(TimePassed())

    async def _handle(self, envelope: _Envelope) -> None:
        now = self._parts.clock()
        step = advance(self._round, envelope.event, now)
        if envelope.upload is not None and _accepts(step):
            try:
                await self._collection.fold(envelope.upload)
            except PayloadError as error:  # decided before anything was written: refuse it instead
                envelope.reason = str(error)
                envelope.event = UpdateRefused(envelope.upload.header.device_id)
                step = advance(self._round, envelope.event, now)
        await self._note(envelope)
        await self._carry_out(*step, envelope)

    async def _note(self, envelope: _Envelope) -> None:
        """Write down tasks that ended without an update; what was accepted stays accepted."""
        match envelope.event:
            case UpdateRefused(device_id):
                if device_id not in self._round.accepted:
                    await self._collection.note(device_id, "REJECTED", envelope.reason, envelope.header)
                envelope.reply(SubmitAnswer(SubmitStatus.REJECTED, envelope.reason))
            case TaskEnded(device_id, outcome, reason):
                if device_id in self._round.waiting:
                    await self._collection.note(device_id, outcome, reason)

    async def _carry_out(self, round_: Round, effects: tuple[Effect, ...], envelope: _Envelope) -> None:
        self._round = round_
        for effect in effects:
            match effect:
                case AnswerUpdate(device_id, SubmitStatus.ACCEPTED) if envelope.upload is not None:
                    self._unwritten[device_id] = envelope
                    continue
            await self._write_accepted()  # what follows an acceptance must not come before it
            match effect:
                case StartCollecting():
                    await self._start_collecting()
                case SendTask(device_id):
                    self._parts.fleet.send(device_id, self._task_for(device_id))
                case CancelTasks(device_ids, reason):
                    self._cancel_tasks(device_ids, reason)
                case AnswerUpdate(_, status, reason):
                    envelope.reply(SubmitAnswer(status, reason))
                case Aggregate():
                    await self._aggregate()
                case Reopen(reason):
                    self._log("quorum_missed", reason=repr(reason))
                    await self._save(state=Phase.OPEN, attempt=round_.attempt, reason=reason, **self._stop_clock())
                case Fail(reason):
                    self._log("round_failed", reason=repr(reason))
                    await self._save(self._collection.close(), state=Phase.FAILED, reason=reason)

    async def _write_accepted(self) -> None:
        """Make the updates that were accepted durable, all at once, then answer them."""
        if not self._unwritten:
            return
        envelopes = self._unwritten.values()
        await self._collection.accept([envelope.upload for envelope in envelopes if envelope.upload is not None])
        for device_id, envelope in self._unwritten.items():
            self._log("update_accepted", device=device_id)
            envelope.reply(SubmitAnswer(SubmitStatus.ACCEPTED))
        self._unwritten.clear()

    async def _start_collecting(self) -> None:
        round_ = self._round
        rows = self._collection.assigned(round_.cohort - round_.accepted)
        cohort = tuple(sorted(round_.cohort))
        since = self._record.collecting_since or time.time()
        changes = {"attempt": round_.attempt, "cohort": cohort, "reason": "", "collecting_since": since}
        await self._save(rows, state=Phase.COLLECTING, **changes)
        self._log("round_collecting", attempt=round_.attempt, cohort=len(cohort), quorum=round_.quorum)

    def _task_for(self, device_id: str) -> TaskOrder:
        config, base = self._config, self._collection.base_of(device_id)
        number = base.version + 1
        # Who is still at a task of an earlier round has that round's model.
        steps, from_seed = self._parts.steps, self._parts.from_seed
        if base != self.base:
            steps, from_seed = (), base.version == 0 and config.start is None
        return TaskOrder(
            task_id=task_id_of(base.job_id, number, device_id),
            job_id=base.job_id,
            round_number=number,
            model_digest=base.payload_digest,
            model_bytes=base.payload_bytes,
            initial_seed=config.seed if from_seed else None,
            spec_json=self._parts.spec_json,
            preset=config.preset,
            optimizer=self._parts.optimizer,
            batch_size=config.batch_size,
            local_steps=0 if config.is_closing(number) else config.local_steps_at(self._parts.measured.get(device_id)),
            step_scale=config.step_scale(number),
            seed=config.seed,
            down_codec=config.down_codec,
            up_codec=config.update_form(number)[0],
            classes=tuple(config.classes),
            deadline_at=self._deadline_of(number),
            proximal_mu=config.proximal_mu,
            statistics_batches=config.statistics_batches,
            steps=steps,
        )

    def _deadline_of(self, number: int) -> float:
        """Return when the last round that takes an update of round ``number`` closes at the latest."""
        config, closes_at = self._config, self._round.wake_at
        later = min(number + config.late_rounds, config.rounds) - self.round_number
        return (self._parts.clock() if closes_at is None else closes_at) + max(0, later) * config.deadline_s

    def _cancel_tasks(self, device_ids: Iterable[str], reason: str) -> None:
        for device_id in device_ids:
            task_id = task_id_of(self.base.job_id, self.task_round(device_id), device_id)
            self._parts.fleet.send(device_id, CancelOrder(task_id, reason))

    async def _aggregate(self) -> None:
        """Make the next version: payloads first, then one transaction, then the updates' payloads go."""
        parts, disk = self._parts, self._parts.disk
        state, memory_digest = await self._collection.finish()
        write = parts.writer.write_statistics if self._config.is_closing(self.round_number) else parts.writer.write
        version = await asyncio.to_thread(write, self.round_number, state, time.time(), base=self.base)
        version = replace(version, memory_digest=memory_digest)
        rows = self._collection.close(self._round.late)
        clock = self._stop_clock()
        self._record = replace(
            self._record,
            state=Phase.COMMITTED,
            committed_at=time.time(),
            weights_digest=version.weights_digest,
            reason="",
            overhead_s=_overhead_s(clock["collected_s"], rows),
            **clock,
        )
        await disk.run(disk.storage.commit_round, self._record, version, rows)
        self._round, _ = advance(self._round, Committed(), parts.clock())
        self._log(
            "round_committed",
            accepted=len(self._round.accepted),
            weights_digest=version.weights_digest,
            overhead_s=self._record.overhead_s,
        )
        done_with = {row.update_digest for row in rows} | {self.base.memory_digest}
        await disk.run(disk.remove_unreferenced, {digest for digest in done_with if digest})

    def _stop_clock(self) -> dict[str, Any]:
        """Return the record's fields of an attempt that collects no more."""
        record = self._record
        seconds = 0.0 if record.collecting_since is None else max(0.0, time.time() - record.collecting_since)
        return {"collecting_since": None, "collected_s": record.collected_s + seconds}

    async def _save(self, rows: Iterable[UpdateRecord] = (), **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        await self._parts.disk.run(self._parts.disk.storage.save_round, self._record, list(rows))

    def _log(self, event: str, **values: object) -> None:
        text = " ".join(f"{name}={value}" for name, value in values.items())
        _log.info("event=%s job=%s round=%d %s", event, self.base.job_id, self.round_number, text)


def _overhead_s(collected_s: float, rows: Iterable[UpdateRecord]) -> float | None:
    """Return a round's seconds beside the slowest accepted device's training; None when no device measured that."""
    trained = [row.training_seconds for row in rows if row.status == "ACCEPTED" and row.training_seconds is not None]
    return max(0.0, collected_s - max(trained)) if trained else None


def _accepts(step: Step) -> bool:
    return any(isinstance(effect, AnswerUpdate) and effect.status is SubmitStatus.ACCEPTED for effect in step[1])
