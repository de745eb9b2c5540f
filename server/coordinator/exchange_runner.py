"""Plays a round's exchange: feeds its state machine and carries out the effects, on behalf of the round's own runner.

What is ordered from devices was written down before; what a device sends is folded into the running sum as it comes,
made durable, and answered. All can be made again from the rows and the payloads that they name, so a coordinator that
was killed goes on in the step in which it was, and asks only those that have not answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from bnncore.errors import BitfleetError, ExchangeFailedError, PayloadError
from bnncore.secure.messages import masked_bytes
from bnncore.secure.ring import RingVector
from bnncore.secure.values import ValueSum
from server.coordinator.collection import Collection
from server.coordinator.combining import Combining, graph_seed_of
from server.coordinator.envelope import Envelope, Unwritten
from server.coordinator.events import (
    AnswerUpdate,
    CancelTasks,
    ExchangeDone,
    ExchangeMissed,
    ExchangeStep,
    SubmitStatus,
    TimePassed,
)
from server.coordinator.exchange import (
    BeginStep,
    Exchange,
    ExchangeEffect,
    Miss,
    OrderStep,
    Step,
    StepOffered,
    StepRefused,
    Unmask,
    advance,
    before,
    begin_exchange,
    judge,
    resume_exchange,
    wait_for_more,
)
from server.coordinator.log import log_event
from server.coordinator.messages import ExchangeOrder, ExchangePeer, SubmitAnswer, task_id_of
from server.coordinator.round_parts import RoundParts
from server.coordinator.upload import Upload, keep
from server.errors import PayloadLostError
from server.storage.base import StepRecord

_log = logging.getLogger(__name__)

_MASKED_HEAD_BYTES = len(masked_bytes(bytes(32), memoryview(b"")))
_STEP_BYTES, _SHARE_BYTES = 1024, 256
"""Most bytes of a step beside MASKED, and of it for each member."""

Outcome = ExchangeDone | ExchangeMissed
"""How an exchange has ended; None while it has not."""


class RoundOfExchange(Protocol):
    """What an exchange asks of its round."""

    async def save_step(self, step: ExchangeStep) -> None:
        """Write down which step is waited for."""

    def cancel_tasks(self, device_ids: Iterable[str], reason: str) -> None:
        """Tell members that they are not waited for any more."""


class ExchangeRunner:
    """One exchange being played.

    Args:
      parts: of its round.
      collection: the round's, with the members' keys.
      number: in its round, counted from 1.
      round_: the round itself.
      lost: members that have said already that they go on no further.
      gone: members that have been silent for too long.
    """

    def __init__(
        self,
        parts: RoundParts,
        collection: Collection,
        number: int,
        round_: RoundOfExchange,
        *,
        lost: frozenset[str] = frozenset(),
        gone: frozenset[str] = frozenset(),
    ) -> None:
        self._parts = parts
        self._disk = parts.disk
        self._collection = collection
        self._round = round_
        secure = parts.config.secure_aggregation
        assert secure is not None
        self._rules = parts.exchange_rules
        keys = collection.keys
        self._graph_seed = graph_seed_of(keys) if secure.degree else b""
        self._form = parts.form
        self.layout = self._form.layout(len(keys))
        self.state = Exchange(
            number=number,
            members=frozenset(keys),
            min_members=secure.min_members,
            phase_s=secure.phase_s,
            lost=lost & frozenset(keys),
            gone=gone & frozenset(keys),
        )
        self._unwritten = Unwritten(self._accept, "step")
        self._digests: set[str] = set()
        self._is_opened = False
        """Whether the masks are off the sum, whatever becomes of it: its updates have served then."""

    @property
    def spent(self) -> frozenset[str]:
        """Members that no further exchange of the round has a part for."""
        return self.state.spent | (self.state.masked if self._is_opened else frozenset())

    @property
    def digests(self) -> set[str]:
        """Payloads of the exchange, which nobody needs after it."""
        return self._digests | {row.update_digest for row in self._collection.rows.values() if row.update_digest}

    async def begin(self) -> Outcome | None:
        """Begin the exchange."""
        if missed := await self._start():
            return missed
        return await self._carry_out(begin_exchange(self.state, now=self._parts.clock()), Envelope(TimePassed()))

    async def _start(self) -> ExchangeMissed | None:
        begin, number = self._parts.arithmetic.begin, self.state.number
        keys, seed = self._collection.keys, self._graph_seed
        try:
            self._combiner: Combining = await asyncio.to_thread(
                begin, self._parts.context(number), self._rules, self.layout, keys, seed
            )
        except BitfleetError as error:
            return ExchangeMissed(f"exchange {number}: {error}")
        return None

    async def resume(self, step: ExchangeStep) -> Outcome | None:
        """Go on with an exchange in the step in which a coordinator was stopped."""
        if missed := await self._start():
            return missed
        collection = self._collection
        rows = await self._disk.run(self._disk.storage.list_steps, collection.job_id, collection.round_number)
        rows = [row for row in rows if row.exchange == self.state.number]
        self._digests = {row.digest for row in rows}
        taken: dict[ExchangeStep, frozenset[str]] = {}
        try:
            for kind in (ExchangeStep.SHARES, ExchangeStep.MASKED, ExchangeStep.REVEAL):
                of_kind = [row for row in rows if row.step == kind]
                for row in of_kind:
                    data = await asyncio.to_thread(self._disk.blobs.get, row.digest)
                    await asyncio.to_thread(self._take, row.device_id, kind, data)
                    self._note(row)
                taken[kind] = frozenset(row.device_id for row in of_kind)
                if kind is not step:
                    self._end_of(kind)
                else:
                    break
        except (PayloadError, PayloadLostError, ExchangeFailedError) as error:
            revealed = frozenset(row.device_id for row in rows if row.step == ExchangeStep.REVEAL)
            self.state = replace(self.state, revealed=revealed)
            return self._missed(f"exchange {self.state.number} cannot be gone on with: {error}")
        self.state = replace(
            self.state,
            step=step,
            shared=taken.get(ExchangeStep.SHARES, frozenset()),
            masked=taken.get(ExchangeStep.MASKED, frozenset()),
            revealed=taken.get(ExchangeStep.REVEAL, frozenset()),
        )
        suffices = step is ExchangeStep.REVEAL and self._combiner.is_complete
        begin = resume_exchange(self.state, now=self._parts.clock(), suffices=suffices)
        return await self._carry_out(begin, Envelope(TimePassed()))

    def problem_with_size(self, step: ExchangeStep, num_bytes: int) -> str:
        """Say what is wrong with a step's size; empty: nothing."""
        if step is ExchangeStep.MASKED:
            wanted = self.layout.num_bytes + _MASKED_HEAD_BYTES
            if num_bytes == wanted:
                return ""
            return f"a masked update of this exchange must have {wanted} bytes, this one has {num_bytes}"
        most = _STEP_BYTES + _SHARE_BYTES * len(self.state.members)
        return "" if num_bytes <= most else f"step {step} must have at most {most} bytes, this one has {num_bytes}"

    def judge(self, device_id: str, step: ExchangeStep) -> SubmitAnswer | None:
        """Judge a step by its header: an answer when its bytes need not be read, None when they are wanted.

        That of a step that was accepted and is not durable yet is None too: the answer waits for that.
        """
        if device_id in self._unwritten:
            return None
        status, reason = judge(self.state, device_id, step)
        return None if status is SubmitStatus.ACCEPTED else SubmitAnswer(status, reason)

    async def handle(self, envelope: Envelope) -> Outcome | None:
        """Take an event, and what came with it."""
        now = self._parts.clock()
        if outcome := await self._carry_out(advance(self.state, TimePassed(), now), Envelope(TimePassed())):
            return outcome
        event, upload = envelope.event, envelope.upload
        if isinstance(event, StepOffered) and self._is_wanted(event) and upload is not None:
            event = await self._offer(event, upload, envelope)
        step = advance(self.state, event, now)
        if isinstance(event, StepRefused):
            envelope.reply(SubmitAnswer(SubmitStatus.REJECTED, envelope.reason))
        return await self._carry_out(step, envelope)

    def _is_wanted(self, event: StepOffered) -> bool:
        return judge(self.state, event.device_id, event.step)[0] is SubmitStatus.ACCEPTED

    async def _offer(self, event: StepOffered, upload: Upload, envelope: Envelope) -> StepOffered | StepRefused:
        """Fold a step in; one that is not valid is refused instead, and nothing has changed."""
        try:
            await asyncio.to_thread(self._take, event.device_id, event.step, upload.read())
        except PayloadError as error:
            envelope.reason = str(error)
            return StepRefused(event.device_id, event.step)
        return replace(event, suffices=event.step is ExchangeStep.REVEAL and self._combiner.is_complete)

    def _take(self, device_id: str, step: ExchangeStep, data: bytes) -> None:
        match step:
            case ExchangeStep.SHARES:
                self._combiner.take_shares(device_id, data)
            case ExchangeStep.MASKED:
                self._combiner.take_masked(device_id, data)
            case ExchangeStep.REVEAL:
                self._combiner.take_reveal(device_id, data)

    def _end_of(self, step: ExchangeStep) -> None:
        """End a step in the arithmetic; raises ExchangeFailedError."""
        if step is ExchangeStep.SHARES:
            self._combiner.start_masking()
        elif step is ExchangeStep.MASKED:
            self._combiner.start_reveal()

    async def _carry_out(self, step: Step, envelope: Envelope) -> Outcome | None:
        self.state, effects = step
        for effect in effects:
            match effect:
                case AnswerUpdate(device_id, SubmitStatus.ACCEPTED) if envelope.upload is not None:
                    self._unwritten.add(device_id, envelope)
                    continue
            await self.write_accepted()  # what follows an acceptance must not come before it
            if outcome := await self._do(effect, envelope):
                return outcome
        if self._unwritten.are_many:
            await self.write_accepted()
        return None

    async def _do(self, effect: ExchangeEffect, envelope: Envelope) -> Outcome | None:
        match effect:
            case BeginStep(step):
                try:
                    self._end_of(before(step))
                except ExchangeFailedError as error:
                    return self._missed(f"exchange {self.state.number}: {error}")
                await self._round.save_step(step)
                self._log("exchange_step", step=step, asked=len(self.state.asked(step)))
                for device_id in sorted(self.state.waiting):
                    self._parts.dispatcher.pass_on(device_id, self._order(device_id))
            case OrderStep(device_id):
                self._parts.dispatcher.pass_on(device_id, self._order(device_id))
            case CancelTasks(device_ids, reason):
                self._round.cancel_tasks(device_ids, reason)
            case AnswerUpdate(_, status, reason):
                envelope.reply(SubmitAnswer(status, reason))
            case Unmask():
                return await self._unmask()
            case Miss(reason):
                return self._missed(reason)
        return None

    async def _unmask(self) -> Outcome | None:
        try:
            ring = await asyncio.to_thread(self._combiner.finish)
            self._is_opened = True
            total = await asyncio.to_thread(self._read, ring)
            await self._collection.add_sum(total, self.state.masked)
        except ExchangeFailedError as error:
            self._log("exchange_not_opened", reason=str(error))
            return await self._carry_out(wait_for_more(self.state, now=self._parts.clock()), Envelope(TimePassed()))
        except BitfleetError as error:
            return self._missed(f"exchange {self.state.number}: {error}")
        self._log("exchange_done", members=len(self.state.members), survivors=len(self.state.masked))
        return ExchangeDone()

    def _missed(self, reason: str) -> ExchangeMissed:
        return ExchangeMissed(reason, self.state.declined, self.spent)

    def _read(self, ring: RingVector) -> ValueSum:
        """Read the sum; of central privacy, with the noise that nobody is to see it without."""
        total = self._form.decode_sum(ring, len(self.state.masked))
        privacy = self._form.privacy
        return total.with_noise() if privacy is not None and not privacy.devices_add else total

    def _order(self, device_id: str) -> ExchangeOrder:
        """Make a member's order for the present step."""
        combiner, state = self._combiner, self.state
        match state.step:
            case ExchangeStep.SHARES:
                positions = combiner.positions if self._rules.degree else {}
                peers = [
                    ExchangePeer(peer, keys=keys, position=positions.get(peer, 0))
                    for peer, keys in combiner.keys_for(device_id).items()
                ]
            case ExchangeStep.MASKED:
                peers = [ExchangePeer(peer, sealed=data) for peer, data in combiner.sealed_for(device_id).items()]
            case _:
                peers = [
                    ExchangePeer(peer, survived=survived) for peer, survived in combiner.survived_for(device_id).items()
                ]
        return ExchangeOrder(
            task_id=task_id_of(self._collection.job_id, self._collection.round_number, device_id),
            attempt=state.number,
            step=state.step,
            num_members=len(state.members),
            peers=tuple(sorted(peers, key=lambda peer: peer.device_id)),
            graph_seed=self._graph_seed if state.step is ExchangeStep.SHARES else b"",
        )

    async def write_accepted(self) -> None:
        """Make the steps that were accepted durable, all at once, then answer them."""
        await self._unwritten.write()

    def fail_unwritten(self) -> None:
        """Let devices send again what could not be written."""
        self._unwritten.fail()

    async def _accept(self, uploads: Sequence[Upload]) -> None:
        now, collection = time.time(), self._collection
        rows = [
            StepRecord(
                collection.job_id, collection.round_number, self.state.number, header.step or "", header.device_id,
                header.update_digest, header.total_bytes, now,
            )
            for header in (upload.header for upload in uploads)
        ]  # fmt: skip
        with self._disk.claimed({row.digest for row in rows}):
            await asyncio.to_thread(keep, self._disk, uploads)
            await self._disk.run(self._disk.storage.record_steps, rows)
        for row in rows:
            self._note(row)
            if row.step == ExchangeStep.REVEAL:
                self._parts.dispatcher.release(collection.job_id, row.device_id)

    def _note(self, row: StepRecord) -> None:
        self._digests.add(row.digest)
        self._collection.note_step(row.device_id, ExchangeStep(row.step))

    def _log(self, event: str, **values: object) -> None:
        collection = self._collection
        number, exchange = collection.round_number, self.state.number
        log_event(_log, event, job=collection.job_id, round=number, exchange=exchange, **values)
