"""A device's part in a secure sum: which step is due, who makes it, what becomes of it.

::

    (trained) -> KEYS -> await -> SHARES -> await -> MASKED -> await -> REVEAL -> (free)

Steps are made by a child (``exchange_child``), one at a time, and sent like updates. Between two of them the device
waits for the coordinator's order, so long as nothing else may be begun. Whatever ends the agent, it goes on in the step
where it was: the folder says what was made, and the coordinator orders again what it has not.

An attempt's secrets go when it is over. The vector goes with them when this device has helped to open the sum, since an
update serves in one sum; else it stays until another task comes: the same one may be asked for in another attempt, with
new keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import Counter
from dataclasses import asdict

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.courier import Courier, status_name
from edge_client.errors import StateFolderError, TaskDeclinedError, TaskError, TaskFailedError
from edge_client.outbox import utc_now
from edge_client.parcel import name_of_step, parcel_of_step
from edge_client.pending_update import PendingUpdate
from edge_client.privacy_account import privacy_of
from edge_client.state_dir import StateDir
from edge_client.task_rules import TaskRules, seconds_left
from edge_client.trainer_process import ask_child

__all__ = ["Exchange"]

logger = logging.getLogger(__name__)

PATIENCE_S = 300.0
"""Longest wait for the next order, while other tasks wait too."""

STEP_TIMEOUT_S = 900.0
"""For a child to make one step: masks of tens of millions of weights take seconds on a slow device."""

MAX_SENDINGS = 8
"""Orders of one step that are followed: an honest coordinator asks again only after it has lost something."""

_TAKEN = ("ACCEPTED", "DUPLICATE")


class Exchange:
    """The exchange that this device is or was in last; there is one at most.

    Args:
      state: the locked state folder.
      device_id: the device's lasting name.
      courier: sends the steps.
      rules: what the device's owner allows.

    Attributes:
      task: the task that it adds up; None: there is none.
    """

    def __init__(self, state: StateDir, device_id: str, courier: Courier, rules: TaskRules) -> None:
        self.task: wire.Task | None = None
        self._state = state
        self._folder = state.exchange
        self._device_id = device_id
        self._courier = courier
        self._rules = rules
        self._update: PendingUpdate | None = None
        self._due: wire.ExchangeOrder | None = None
        self._doing: wire.ExchangeOrder | None = None
        self._awaits_until = -math.inf
        self._followed: Counter[tuple[int, int]] = Counter()

    @property
    def task_id(self) -> str:
        """The task's id; empty: there is none."""
        return "" if self.task is None else self.task.task_id

    @property
    def job_id(self) -> str:
        """The job's id; empty: there is none."""
        return "" if self.task is None else self.task.job_id

    @property
    def steps(self) -> int:
        """Local steps that were done for it."""
        return 0 if self._update is None else self._update.steps

    @property
    def has_work(self) -> bool:
        """Whether a step is to be made or sent now."""
        return self._due is not None

    @property
    def awaits(self) -> str | None:
        """The task that alone may be begun, since its secure sum awaits an order; None: any."""
        return self.task_id if self.patience_s > 0 else None

    @property
    def patience_s(self) -> float:
        """Seconds for which no other task is to be begun, since an order may come; 0: none is awaited."""
        return max(0.0, self._awaits_until - asyncio.get_running_loop().time())

    def resume(self) -> None:
        """Take up what the folder holds, after a start of the agent."""
        try:
            kept = self._folder.read()
            if kept is None:
                return
            self._update, self.task = kept[0], wire.Task.FromString(kept[1])
            progress = self._folder.progress()
            if progress is None and not self._folder.is_over(self.task.secure.attempt):
                self._begin_attempt(self.task)  # the power went before there was anything of it
        except (StateFolderError, OSError, ValueError) as error:
            logger.error("the part in a secure sum is dropped: %s", error)
            self.drop()
            return
        if progress is not None:
            self._await(PATIENCE_S)
            if not progress.made.keys() - {"keys"}:
                self._due = self._keys_order()

    def takes(self, task: wire.Task) -> bool:
        """Say whether a task is the one that is added up: it needs no training then."""
        return self.task is not None and task.task_id == self.task.task_id and task.HasField("secure")

    def is_newer(self, task: wire.Task) -> bool:
        """Say whether the task that is added up is asked for in another attempt."""
        return self.task is not None and task.secure.attempt > self.task.secure.attempt

    def passes_over(self, task: wire.Task) -> bool:
        """Say whether a task asks for an attempt before the one that is added up: it came late, as orders do."""
        if not self.takes(task) or self.task is None or task.secure.attempt >= self.task.secure.attempt:
            return False
        logger.warning("task of an earlier attempt passed over task=%s attempt=%d", self.task_id, task.secure.attempt)
        return True

    def begin(self, update: PendingUpdate, task: wire.Task) -> None:
        """Take in what a task came to, from the task's folder.

        Raises:
          OSError: the disk refused.
        """
        self._folder.keep(self._state.task, update, task.SerializeToString())
        self._update, self.task = update, task
        self._begin_attempt(task)

    def begin_again(self, task: wire.Task) -> None:
        """Take in the same task in another attempt.

        Raises:
          TaskDeclinedError: it is not the same, or asks for an attempt that is over.
          OSError: the disk refused.
        """
        assert self.task is not None
        attempt, present = task.secure.attempt, self.task.secure.attempt
        if attempt < present or self._folder.is_over(attempt):
            raise TaskDeclinedError(
                f"attempt {attempt} of a secure sum is over on this device: keys are not used again"
            )
        if attempt == present:
            self._due = self._keys_order()
            return
        if not _same(task, self.task):
            raise TaskDeclinedError("the coordinator asks to add up under other terms than it had trained for")
        self._begin_attempt(task)

    def order(self, order: wire.ExchangeOrder) -> str:
        """Take in an order of the coordinator.

        Returns:
          Why it cannot be followed and the coordinator should know; empty when it is, or is nobody's concern any more.
        """
        if self.task is None or order.task_id != self.task.task_id:
            return "this device has no part in this secure sum any more"
        if order.attempt != self.task.secure.attempt:
            logger.warning("order of another attempt passed over task=%s attempt=%d", self.task_id, order.attempt)
            return ""
        if not self._folder.attempt.exists():
            return f"attempt {order.attempt} of this secure sum is over on this device"
        doing = self._doing
        if doing is None or order.step != doing.step:
            self._due = order
        elif _canonical(order) != _canonical(doing):
            return f"asked for {name_of_step(order.step).upper()} a second time, with other input than the first time"
        return ""

    async def proceed(self) -> None:
        """Make and send the step that is due.

        Raises:
          TaskError, OSError: it cannot or must not be made; the exchange is dropped then.
        """
        order, self._due = self._due, None
        assert order is not None
        assert self.task is not None
        assert self._update is not None
        self._doing = order
        try:
            await self._answer(order, self.task, self._update)
        except (TaskError, OSError):
            self.drop()
            raise
        finally:
            self._doing = None

    def release(self) -> None:
        """Wait for no order any more: something else is to be begun."""
        self._due = None
        self._awaits_until = -math.inf

    def settle(self) -> None:
        """Come to an end: what was learnt counts as told, if the masked update was taken.

        Raises:
          OSError: the disk refused; to be done again.
        """
        if self.task is not None and self._folder.is_counted:
            self._state.local_states.adopt(self.task.job_id, self._folder.local_state_file)
        self.drop()

    def drop(self) -> None:
        """Forget it all."""
        self.release()
        self.task = self._update = None
        self._followed.clear()
        try:
            self._folder.drop()
        except OSError as error:
            logger.error("the part in a secure sum cannot be removed: %s", error)

    def _begin_attempt(self, task: wire.Task) -> None:
        self._folder.begin_attempt(task.SerializeToString())
        self.task = task
        self._due = self._keys_order()

    def _keys_order(self) -> wire.ExchangeOrder:
        assert self.task is not None
        return wire.ExchangeOrder(task_id=self.task_id, attempt=self.task.secure.attempt, step=wire.EXCHANGE_STEP_KEYS)

    def _await(self, seconds: float) -> None:
        self._awaits_until = asyncio.get_running_loop().time() + seconds

    async def _answer(self, order: wire.ExchangeOrder, task: wire.Task, update: PendingUpdate) -> None:
        if order.step not in wire.ExchangeStep.values() or order.step == wire.EXCHANGE_STEP_UNSPECIFIED:
            raise TaskDeclinedError(f"the coordinator asks for step {order.step} of a secure sum, which there is not")
        step = name_of_step(order.step)
        self._followed[order.attempt, order.step] += 1
        if self._followed[order.attempt, order.step] > MAX_SENDINGS:
            raise TaskDeclinedError(f"asked for {step} of a secure sum more than {MAX_SENDINGS} times")
        if step == "masked":
            self._rules.account.check(task)
        digest = await self._make(order, step)
        if step == "masked":
            self._rules.account.note_masked(task)
        elif step == "reveal":
            self._rules.account.note_reveal(task)
        parcel = parcel_of_step(
            update,
            self._device_id,
            self._folder.payload(step),
            step=order.step,
            attempt=order.attempt,
            digest=digest,
            privacy=privacy_of(task),
        )
        answer = await self._courier.deliver(parcel)
        self._end_step(step, status_name(answer), answer.reason, task, update)

    async def _make(self, order: wire.ExchangeOrder, step: str) -> str:
        """Have a step made, unless it was made in answer to this very order; returns its payload's digest."""
        order_bytes = _canonical(order) if step != "keys" else b""
        made = self._made()
        if step in made and made[step]["order"] == hashlib.sha256(order_bytes).hexdigest():
            return made[step]["digest"]
        self._folder.keep_order(order_bytes)
        for last_try in (False, True):
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    event = await ask_child("edge_client.exchange_child", str(self._state.root), step)
            except TimeoutError:
                raise TaskFailedError(f"{step} for a secure sum took more than {STEP_TIMEOUT_S:g} s to make") from None
            if event is not None:
                break
            if last_try:
                raise TaskFailedError(f"the process that makes {step} for a secure sum ended without a word, twice")
            logger.warning("the process that makes %s for a secure sum ended without a word; trying once more", step)
        assert event is not None
        if event.get("outcome") != "done":
            kind = TaskDeclinedError if event.get("outcome") == "declined" else TaskFailedError
            raise kind(str(event.get("reason", "")))
        self._rules.use.take_written(int(event["written_bytes"]))
        return self._made()[step]["digest"]

    def _made(self) -> dict[str, dict[str, str]]:
        try:
            return self._folder.participant()[0].made
        except ValueError as error:
            raise TaskFailedError("the device's secrets of a secure sum are damaged") from error

    def _end_step(self, step: str, status: str, reason: str, task: wire.Task, update: PendingUpdate) -> None:
        logger.log(
            logging.INFO if status in _TAKEN else logging.WARNING,
            "%s %s task=%s round=%d attempt=%d members=%d reason=%s",
            *(step, status, task.task_id, task.round_number, task.secure.attempt),
            *(self._folder.participant()[0].num_members, reason or "-"),
        )
        if status in _TAKEN and step != "reveal":
            if step == "masked":
                self._folder.count()
            self._await(PATIENCE_S + (seconds_left(task.deadline_s) if step == "keys" else 0.0))
            return
        written = update.written_bytes + self._rules.use.take_written()
        self._rules.use.note_task(written)
        self._state.note_last_task(
            {**asdict(update), "written_bytes": written, "at": utc_now(), "outcome": status, "reason": reason}
        )
        self.release()
        if step == "reveal":
            self.settle()
        elif status == "LATE":
            self._folder.end_attempt(task.secure.attempt)
        else:
            self.drop()


def _same(task: wire.Task, other: wire.Task) -> bool:
    """Say whether two tasks are the same but for their attempt and the time that is left."""
    copy = wire.Task()
    copy.CopyFrom(other)
    copy.secure.attempt, copy.deadline_s = task.secure.attempt, task.deadline_s
    return copy == task


def _canonical(order: wire.ExchangeOrder) -> bytes:
    """Write an order so that the same one has the same bytes, in whichever sequence it names the members."""
    sorted_order = wire.ExchangeOrder()
    sorted_order.CopyFrom(order)
    del sorted_order.peers[:]
    sorted_order.peers.extend(sorted(order.peers, key=lambda peer: peer.device_id))
    return sorted_order.SerializeToString(deterministic=True)
