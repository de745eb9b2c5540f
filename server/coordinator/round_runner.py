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
from collections.abc import Iterable

from bnncore.errors import PayloadError
from server.coordinator.collection import Collection
from server.coordinator.envelope import Envelope, Unwritten
from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    CancelTasks,
    Committed,
    Effect,
    Event,
    ExchangeStep,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    StartUnmasking,
    SubmitStatus,
    TaskBegun,
    TaskEnded,
    TaskOutcome,
    TaskQueued,
    TimePassed,
    UpdateOffered,
    UpdateRefused,
)
from server.coordinator.exchange import Exchange, StepOffered, StepRefused
from server.coordinator.exchange_runner import ExchangeRunner, Outcome
from server.coordinator.headers import judge_header
from server.coordinator.log import log_event
from server.coordinator.messages import SubmitAnswer, TaskOrder, UpdateHeader, task_id_of
from server.coordinator.overhead import Waits
from server.coordinator.round import Phase, Round, Step, advance
from server.coordinator.round_book import RoundBook
from server.coordinator.round_parts import RoundParts
from server.coordinator.salvage import check_version
from server.coordinator.upload import Upload
from server.errors import NoRoomError, NotReadyError
from server.storage.base import RoundRecord, UpdateRecord, VersionRecord

_log = logging.getLogger(__name__)


class RoundRunner:
    """One round being played."""

    def __init__(self, parts: RoundParts, record: RoundRecord, collection: Collection, begin: Step) -> None:
        self._parts = parts
        self._config = parts.config
        self._book = RoundBook(parts, record)
        self._collection = collection
        self._round, self._first_effects = begin
        self._mailbox: asyncio.Queue[Envelope] = asyncio.Queue()
        self._waits = Waits(parts.clock)
        self._unwritten = Unwritten(collection.accept, "update")
        self._exchange: ExchangeRunner | None = None
        """Under secure aggregation, from when the members' keys are there."""
        self._lost: set[str] = set()
        """Members whose keys were accepted, and that said afterwards that they go on no further."""
        self.closed = asyncio.Event()
        """Set when this runner has ended and all it had to write is written."""

    @property
    def job_id(self) -> str:
        """The round's job."""
        return self.base.job_id

    @property
    def round_number(self) -> int:
        """The round's number, counted from 1."""
        return self._book.record.round_number

    @property
    def round(self) -> Round:
        """Where the round stands."""
        return self._round

    @property
    def exchange(self) -> Exchange | None:
        """Where the members' exchange stands, from when their keys are there."""
        return None if self._exchange is None else self._exchange.state

    @property
    def overhead_s(self) -> float | None:
        """Of a committed round: its seconds beside its devices' training; see ``RoundRecord``."""
        return self._book.record.overhead_s

    @property
    def base(self) -> VersionRecord:
        """The version that the round starts from."""
        return self._parts.base

    def has_task(self, task_id: str, device_id: str) -> bool:
        """Say whether a task is the one that a device has in this round."""
        return task_id == self._task_id(device_id)

    def leads_to_base(self, digest: str) -> bool:
        """Say whether a payload is that of the version that the round starts from, or of a step to it."""
        return digest == self.base.payload_digest or any(step.digest == digest for step in self._parts.steps)

    # What others may ask while the round is played

    def post(self, event: Event) -> None:
        """Queue an event about a device or the job."""
        self._mailbox.put_nowait(Envelope(event))

    def count(self, device_id: str, *, down: int = 0, up: int = 0) -> None:
        """Count serialised bytes to or from a device."""
        self._collection.count(device_id, down=down, up=up)

    def begin(self, device_id: str) -> TaskOrder:
        """Make a member's task, which is handed out now; one that was queued has its time from now on."""
        closes_at, now = self._round.wake_at, self._parts.clock()
        if self._waits.end(device_id):
            self.post(TaskBegun(device_id))
            closes_at = now + self._config.deadline_s
        base = self._collection.base_of(device_id)
        closes_at = now if closes_at is None else closes_at
        return self._parts.task_for(
            device_id, base, closes_at=closes_at, quorum=self._round.quorum, exchange=self._round.exchange
        )

    def queue(self, device_id: str) -> None:
        """Note that a member's device is at another job's task."""
        self._waits.begin(device_id)
        self.post(TaskQueued(device_id))

    def give_up(self, device_id: str) -> None:
        """Note that a member's time is over, while another job waited for its device."""
        self.post(TaskEnded(device_id, TaskOutcome.FAILED, "its time was over, and another job waited for the device"))

    def task_round(self, device_id: str) -> int:
        """Return the round whose task a device has: this one, or the one from which it was carried into this one."""
        return self._collection.base_of(device_id).version + 1

    def dismiss_devices(self, reason: str) -> None:
        """Tell the members that may still deliver to stop; nothing is written down."""
        self.cancel_tasks(sorted(self._round.waiting), reason)

    async def judge_header(self, header: UpdateHeader) -> SubmitAnswer | None:
        """Judge an update by its header: an answer when its bytes need not be read, None when they are wanted.

        Raises:
          NotReadyError: the round has just closed, and the next one will take the update.
        """
        base, now = self._collection.base_of(header.device_id), self._parts.clock()
        answer = judge_header(header, self._config, base, self._round, self._exchange, now)
        if answer is not None and answer.status is SubmitStatus.DUPLICATE and header.device_id in self._unwritten:
            return await self._ask(Envelope(UpdateOffered(header.device_id)))  # answered when that is durable
        return answer

    def check_keys(self, header: UpdateHeader, payload: bytes) -> None:
        """Check a member's keys; raises PayloadError. Blocking."""
        context = self._parts.context(header.attempt)
        rules = self._parts.exchange_rules
        self._parts.arithmetic.check_keys(payload, context, rules, header.device_id, header.key_digest)

    async def offer(self, upload: Upload) -> SubmitAnswer:
        """Offer a whole and valid update; returns when it is durable, or refused."""
        header = upload.header
        if header.step in (None, ExchangeStep.KEYS):
            return await self._ask(Envelope(UpdateOffered(header.device_id), header, upload))
        return await self._ask(Envelope(StepOffered(header.device_id, header.step), header, upload))

    async def refuse(self, header: UpdateHeader, reason: str) -> SubmitAnswer:
        """Refuse an invalid update, and write that down."""
        if header.step in (None, ExchangeStep.KEYS):
            return await self._ask(Envelope(UpdateRefused(header.device_id), header, reason=reason))
        return await self._ask(Envelope(StepRefused(header.device_id, header.step), header, reason=reason))

    async def _ask(self, envelope: Envelope) -> SubmitAnswer:
        envelope.answer = asyncio.get_running_loop().create_future()
        if self.closed.is_set():
            self._dismiss(envelope)
        else:
            self._mailbox.put_nowait(envelope)
        return await envelope.answer

    def _dismiss(self, envelope: Envelope) -> None:
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
            for device_id in self._round.busy - self._round.waiting:  # of the round before a restart
                self._parts.dispatcher.hold(self, device_id)
            await self._carry_out(self._round, self._first_effects, Envelope(TimePassed()))
            while not self._round.is_over:
                envelope = await self._next_envelope()
                try:
                    await self._handle(envelope)
                    if self._mailbox.empty() or self._unwritten.are_many:
                        await self._unwritten.write()
                    if self._mailbox.empty() and self._exchange is not None:
                        await self._exchange.write_accepted()
                except BaseException:
                    envelope.fail(NotReadyError("the update could not be written down; send it again"))
                    raise
            return self._round
        finally:
            self._parts.dispatcher.withdraw(self.job_id)
            self.closed.set()
            self._unwritten.fail()
            if self._exchange is not None:
                self._exchange.fail_unwritten()
            while not self._mailbox.empty():
                self._dismiss(self._mailbox.get_nowait())

    async def _next_envelope(self) -> Envelope:
        wake_at = self._round.wake_at if self._exchange is None else self._exchange.state.wake_at
        delay = None if wake_at is None else max(0.0, wake_at - self._parts.clock())
        try:
            async with asyncio.timeout(delay):
                return await self._mailbox.get()
        except TimeoutError:
            return Envelope(TimePassed())

    async def _handle(self, envelope: Envelope) -> None:
        if isinstance(envelope.event, StepOffered | StepRefused):
            await self._handle_step(envelope)
            return
        upload, now = envelope.upload, self._parts.clock()
        if upload is not None and upload.header.step is not None and upload.header.attempt != self._round.exchange:
            envelope.reply(SubmitAnswer(SubmitStatus.LATE, f"exchange {upload.header.attempt} is over"))
            return
        step = advance(self._round, envelope.event, now)
        if upload is not None and _accepts(step):
            try:
                await self._collection.fold(upload)
            except NoRoomError as error:
                envelope.fail(error)  # nothing has changed
                return
            except PayloadError as error:  # decided before anything was written: refuse it instead
                envelope.reason = str(error)
                envelope.event = UpdateRefused(upload.header.device_id)
                step = advance(self._round, envelope.event, now)
        await self._note(envelope)
        await self._carry_out(*step, envelope)
        if self._exchange is not None and self._round.phase is Phase.UNMASKING:
            await self._end_exchange(await self._exchange.handle(Envelope(envelope.event)))

    async def _handle_step(self, envelope: Envelope) -> None:
        """Take a step of the exchange in; its header was judged, but the exchange may have ended since."""
        header, exchange = envelope.header, self._exchange
        if exchange is not None and header is not None and header.attempt == exchange.state.number:
            await self._end_exchange(await exchange.handle(envelope))
        else:
            status = SubmitStatus.LATE if isinstance(envelope.event, StepOffered) else SubmitStatus.REJECTED
            envelope.reply(SubmitAnswer(status, envelope.reason or "the exchange is over"))

    async def _note(self, envelope: Envelope) -> None:
        """Write down tasks that ended without an update; what was accepted stays accepted."""
        match envelope.event:
            case UpdateRefused(device_id):
                if device_id not in self._round.accepted:
                    await self._collection.note(device_id, "REJECTED", envelope.reason, envelope.header)
                envelope.reply(SubmitAnswer(SubmitStatus.REJECTED, envelope.reason))
            case TaskEnded(device_id, outcome, reason):
                if device_id in self._round.waiting:
                    await self._collection.note(device_id, outcome, reason)
                elif self._exchange is None and outcome is not TaskOutcome.ABANDONED:
                    self._lost.add(device_id)

    async def _carry_out(self, round_: Round, effects: tuple[Effect, ...], envelope: Envelope) -> None:
        for device_id in self._round.waiting - round_.waiting:
            self._waits.end(device_id)
        for device_id in self._round.busy - round_.busy:
            self._parts.dispatcher.release(self.job_id, device_id)
        self._round = round_
        for effect in effects:
            match effect:
                case AnswerUpdate(device_id, SubmitStatus.ACCEPTED) if envelope.upload is not None:
                    self._unwritten.add(device_id, envelope)
                    continue
            await self._unwritten.write()  # what follows an acceptance must not come before it
            match effect:
                case StartCollecting():
                    await self._start_collecting()
                case SendTask(device_id):
                    self._parts.dispatcher.ask(self, device_id)
                case CancelTasks(device_ids, reason):
                    self.cancel_tasks(device_ids, reason)
                case AnswerUpdate(_, status, reason):
                    envelope.reply(SubmitAnswer(status, reason))
                case StartUnmasking():
                    await self._start_unmasking()
                case Aggregate():
                    await self._aggregate()
                case Reopen(reason):
                    self._log("attempt_missed", reason=reason)
                    await check_version(self._parts.disk, self.base)  # devices may have been sent damaged bytes
                    await self._end_attempt(reason, Phase.OPEN, attempt=round_.attempt, **self._book.stopped_clock())
                case Fail(reason):
                    self._log("round_failed", reason=reason)
                    await self._end_attempt(reason, Phase.FAILED)

    async def _start_unmasking(self) -> None:
        """Begin the members' exchange, or go on with it after a restart."""
        number = self._round.exchange
        self._exchange = ExchangeRunner(
            *(self._parts, self._collection, number, self), lost=frozenset(self._lost), gone=self._round.gone
        )
        self._lost.clear()
        if self._book.record.state == Phase.UNMASKING:
            await self._end_exchange(await self._exchange.resume(ExchangeStep(self._book.record.exchange_step)))
        else:
            await self._end_exchange(await self._exchange.begin())

    async def _end_exchange(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            await self._carry_out(*advance(self._round, outcome, self._parts.clock()), Envelope(outcome))

    async def _end_attempt(self, reason: str, state: Phase, **changes: object) -> None:
        """Write down that an attempt has failed, and forget its exchange, if there was one."""
        digests, rows = set[str](), list[UpdateRecord]()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            digests = exchange.digests
            rows = self._collection.forget_keys(reason, declined=exchange.state.declined, spent=exchange.spent)
        if state is Phase.FAILED:
            rows = self._collection.close()
        elif self._round.rules.is_secure:
            changes |= {"exchange": self._round.exchange, "exchange_step": ""}
        await self._book.save(rows, state=state, reason=reason, **changes)
        await self._parts.disk.run(self._parts.disk.remove_unreferenced, digests)

    # What the exchange asks

    async def save_step(self, step: ExchangeStep) -> None:
        """See ``RoundOfExchange``."""
        await self._book.save(state=Phase.UNMASKING, exchange=self._round.exchange, exchange_step=step)

    async def _start_collecting(self) -> None:
        round_ = self._round
        rows = self._collection.assigned(round_.cohort - round_.accepted)
        cohort = tuple(sorted(round_.cohort))
        since = self._book.record.collecting_since or time.time()
        changes = {"attempt": round_.attempt, "cohort": cohort, "reason": "", "collecting_since": since}
        await self._book.save(rows, state=Phase.COLLECTING, **changes)
        self._log("round_collecting", attempt=round_.attempt, cohort=len(cohort), quorum=round_.quorum)

    def cancel_tasks(self, device_ids: Iterable[str], reason: str) -> None:
        """Tell members that they are not waited for any more."""
        for device_id in device_ids:
            self._waits.end(device_id)
            self._parts.dispatcher.cancel(self.job_id, device_id, self._task_id(device_id), reason)

    def _task_id(self, device_id: str) -> str:
        return task_id_of(self.job_id, self.task_round(device_id), device_id)

    async def _aggregate(self) -> None:
        """Make the next version: payloads first, then one transaction, then the updates' payloads go."""
        parts, disk = self._parts, self._parts.disk
        version = await self._book.write_version(*await self._collection.finish())
        rows = self._collection.close(self._round.late)
        clock = self._book.stopped_clock()
        overhead_s = self._waits.overhead_s(clock["collected_s"], rows)
        await self._book.commit(version, rows, self._collection.scores(), overhead_s=overhead_s, **clock)
        self._round, _ = advance(self._round, Committed(), parts.clock())
        outcome = {"accepted": len(self._round.accepted), "weights_digest": version.weights_digest}
        self._log("round_committed", **outcome, overhead_s=overhead_s)
        done_with = {row.update_digest for row in rows} | {self.base.memory_digest}
        if self._exchange is not None:
            done_with |= self._exchange.digests
        await disk.run(disk.remove_unreferenced, {digest for digest in done_with if digest})

    def _log(self, event: str, **values: object) -> None:
        log_event(_log, event, job=self.job_id, round=self.round_number, **values)


def _accepts(step: Step) -> bool:
    return any(isinstance(effect, AnswerUpdate) and effect.status is SubmitStatus.ACCEPTED for effect in step[1])
