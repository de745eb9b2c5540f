"""One task from its arrival to the coordinator's answer: get the model, have it trained, send what was learnt.

The worker lives beside the link, not in it: a training goes on while the coordinator is away, and an update waits on
the disk until it is back. One piece of work at a time; the pending update always comes first.

::

    IDLE -> DOWNLOADING -> TRAINING -> (update pending on disk) -> SUBMITTING -> IDLE

Where updates are added up under masks, what was trained goes into an exchange (``exchange``) in the place of the
pending update, and the device counts as SUBMITTING until that needs it no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.durable import replace_file
from edge_client.activity import Activity
from edge_client.backoff import backoff
from edge_client.budgets import Budgets
from edge_client.child import BEST_FILE, MODEL_FILE, TASK_FILE
from edge_client.conditions import Surroundings
from edge_client.courier import Courier, status_name
from edge_client.errors import (
    ModelMissingError,
    StateFolderError,
    TaskDeclinedError,
    TaskError,
    TaskFailedError,
    public_reason,
)
from edge_client.exchange import Exchange
from edge_client.link import Link
from edge_client.model_source import ModelSource, download_model, find_model
from edge_client.outbox import utc_now
from edge_client.pacing import Pacer
from edge_client.parcel import parcel_of_update
from edge_client.pending_update import PendingUpdate
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir
from edge_client.task_file import task_file
from edge_client.task_rules import TaskRules, is_well_named
from edge_client.trainer_process import KilledBySignalError, Trainer, TrainingResult
from edge_client.waiting_tasks import Job, WaitingTasks

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

DISK_RETRY_S = 30.0
"""Between two tries to keep what must be on the disk before the work goes on: an update's local state."""

FREE_FAILURES = 3
"""Tasks in a row that may end without an update; after each one more, the next is begun some time after that began."""

_FROM_TRAINER = (
    *("update_digest", "total_bytes", "num_examples", "codec"),
    *("loss", "accuracy", "steps", "seconds", "training_seconds", "peak_pss_bytes"),
    *("validation_examples", "validation_correct", "validation_loss", "joules", "joules_source"),
)


class Worker:
    """Does tasks one after another.

    Args:
      settings: the agent's settings.
      state: the locked state folder.
      device_id: the device's lasting name.
      courier: moves models and updates.
      link: where a task that ends without an update is reported.
      rules: what the device's owner lets a task take.
      surroundings: what keeps the device from work for a while.

    Attributes:
      activity: what it does now.
    """

    def __init__(
        self,
        settings: ClientSettings,
        state: StateDir,
        device_id: str,
        courier: Courier,
        link: Link,
        rules: TaskRules,
        surroundings: Surroundings,
    ) -> None:
        self.activity = Activity()
        self._settings = settings
        self._state = state
        self._device_id = device_id
        self._courier = courier
        self._link = link
        self._rules = rules
        self._in_vain = 0
        self._pauses = backoff()
        self._rest_until = 0.0
        self._exchange = Exchange(state, device_id, courier, rules)
        self._trainer = Trainer(keep_s=settings.keep_trainer, threads=settings.threads)
        self._pacer = Pacer(
            surroundings,
            cpu_share=Budgets.of(settings, rules.policy).cpu_share / 100,
            max_pause_s=rules.policy.max_pause,
            on_pause=self._on_pause,
        )
        self._waiting = WaitingTasks()
        self._arrived = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._job_id = ""

    def offer(self, task: wire.Task) -> None:
        """Take a task in. The same one again changes nothing; a newer one of its job takes the older one's place."""
        at_hand = task.task_id == self.activity.task_id
        if self._exchange.passes_over(task) or (at_hand and not self._is_wanted_again(task)):
            return
        if not is_well_named(task):
            logger.warning("a task is passed over: its id or its job's is none that a coordinator makes")
            return
        self._waiting.add(task)
        self._arrived.set()
        if self._exchange.job_id == task.job_id:
            self._stop_exchange()
            self._exchange.release()
        elif self._job_id == task.job_id and task.task_id != self.activity.task_id:
            self.cancel(self.activity.task_id, "a newer task of its job came")

    def _is_wanted_again(self, task: wire.Task) -> bool:
        """Say whether the task at hand came again because the coordinator lacks something of its secure sum."""
        if self._exchange.takes(task):
            return self._running is None or self._exchange.is_newer(task)
        return task.HasField("secure") and self._is_submitting  # its exchange has just ended

    def order(self, order: wire.ExchangeOrder) -> str:
        """Take in the coordinator's order of a step; returns why it cannot be followed, empty when it can."""
        refusal = self._exchange.order(order)
        self._arrived.set()
        return refusal

    def cancel(self, task_id: str, reason: str) -> None:
        """Stop a task. One whose update is being sent is left alone: the answer to it says how it ended."""
        self._waiting.drop(task_id)
        if task_id and task_id == self._exchange.task_id:
            logger.info("secure sum given up task=%s reason=%s", task_id, reason)
            self._stop_exchange()
            self._exchange.drop()
            self._arrived.set()
        elif self._running is not None and task_id == self.activity.task_id and not self._is_submitting:
            logger.info("task stopped task=%s reason=%s", task_id, reason)
            self._running.cancel()

    def forget_waiting(self) -> None:
        """Drop tasks that were not begun: after a reconnect the coordinator sends again what still counts."""
        self._waiting.clear()

    def _stop_exchange(self) -> None:
        """Break off the step of a secure sum that is being made or sent, if there is one."""
        if self._running is not None and self.activity.task_id == self._exchange.task_id:
            self._running.cancel()

    def leave(self) -> str:
        """Once ``run`` was cancelled, give up what cannot wait for the next start: a training, a part in a secure sum.

        Returns:
          The task that was broken off; empty when there is none, or its update is pending.
        """
        exchange = self._exchange
        unfinished = exchange.task_id if exchange.has_work or exchange.patience_s > 0 else ""
        try:
            exchange.settle()
        except OSError as error:
            logger.error("the local state of a secure sum cannot be kept: %s", error)
        if unfinished or self._is_submitting or self._state.pending_file.exists():
            return unfinished
        return self.activity.task_id

    @property
    def _is_submitting(self) -> bool:
        return self.activity.state == wire.DEVICE_STATE_SUBMITTING

    async def run(self) -> None:
        """Work until cancelled. Nothing that goes wrong in a task ends this."""
        self._exchange.resume()
        try:
            while True:
                await self._work()
        finally:
            await self._trainer.close()

    async def _work(self) -> None:
        """Do one piece of work, or wait until there is some."""
        update = self._pending()
        if update is not None:
            self.activity = Activity(wire.DEVICE_STATE_SUBMITTING, update.task_id, update.steps, update.steps)
            await self._supervise(update.job_id, self._deliver(update))
        elif self._exchange.has_work:
            exchange = self._exchange
            self.activity = Activity(wire.DEVICE_STATE_SUBMITTING, exchange.task_id, exchange.steps, exchange.steps)
            await self._supervise(exchange.job_id, self._proceed())
        elif (pause_s := self._rest_until - asyncio.get_running_loop().time()) > 0:
            self.activity = Activity()
            await asyncio.sleep(pause_s)
        elif (job := self._waiting.take(self._exchange.awaits)) is not None:
            steps = job.task.training.local_steps
            self.activity = Activity(wire.DEVICE_STATE_DOWNLOADING, job.task.task_id, 0, steps)
            await self._supervise(job.task.job_id, self._train(job))
        else:
            await self._wait()

    async def _wait(self) -> None:
        """Wait until something comes, or an exchange is awaited no more."""
        exchange, patience_s = self._exchange, self._exchange.patience_s
        self.activity = Activity()
        if patience_s > 0:
            self.activity = Activity(wire.DEVICE_STATE_SUBMITTING, exchange.task_id, exchange.steps, exchange.steps)
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s or None):
                await self._arrived.wait()

    def _pending(self) -> PendingUpdate | None:
        try:
            return self._state.pending()
        except StateFolderError as error:
            logger.error("pending update dropped: %s", error)
            self._state.drop_pending()
            return None

    async def _supervise(self, job_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Run one piece of work to its end, and turn what goes wrong into a report."""
        task_id = self.activity.task_id
        self._job_id = job_id
        self._in_vain += 1
        if self._in_vain > FREE_FAILURES:
            self._rest_until = asyncio.get_running_loop().time() + next(self._pauses)
        self._running = asyncio.create_task(work)
        try:
            await asyncio.wait({self._running})
            if not self._running.cancelled():
                error = self._running.exception()
                if error is not None:
                    await self._tell(task_id, error)
        finally:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
            self._state.clear_task()
            self._rules.use.save()

    async def _tell(self, task_id: str, error: BaseException) -> None:
        declined = isinstance(error, TaskDeclinedError)
        outcome = wire.TASK_OUTCOME_DECLINED if declined else wire.TASK_OUTCOME_FAILED
        reason = public_reason(error)
        is_expected = isinstance(error, (TaskError, OSError))
        logger.error(
            "task ended without an update task=%s error=%s", task_id, error, exc_info=None if is_expected else error
        )
        self._state.note_last_task(
            {"task_id": task_id, "at": utc_now(), "outcome": "DECLINED" if declined else "FAILED", "reason": reason}
        )
        self._rules.use.take_written()
        await self._link.report(wire.TaskReport(task_id=task_id, outcome=outcome, reason=reason))

    async def _train(self, job: Job) -> None:
        """From the task to a pending update on the disk, within the round's deadline and the owner's patience."""
        self._rules.check(job.task)
        if self._exchange.takes(job.task):
            self._exchange.begin_again(job.task)
            return
        self._exchange.settle()
        own_limit = asyncio.get_running_loop().time() + self._rules.policy.max_seconds
        try:
            async with asyncio.timeout_at(min(job.expires_at, own_limit)):
                await self._make_update(job.task)
        except TimeoutError:
            name = wire.DeviceState.Name(self.activity.state).removeprefix("DEVICE_STATE_")
            if own_limit < job.expires_at:
                told = f"take {self._rules.policy.max_seconds:g} s; they passed while {name}"
                raise TaskFailedError(f"the device's owner lets a task {told}") from None
            raise TaskFailedError(f"the round's deadline passed while {name}") from None

    async def _make_update(self, task: wire.Task) -> None:
        logger.info("task begins task=%s round=%d steps=%d", task.task_id, task.round_number, self.activity.total_steps)

        async def permit(num_bytes: int) -> None:
            self._rules.use.check_task(num_bytes)
            await self._run_trainer(task, ModelSource(None), plan_only=True)
            self.activity.state = wire.DEVICE_STATE_DOWNLOADING

        await self._pacer.clear()
        source = await find_model(task, self._state, self._courier, permit)
        downloaded = source.downloaded_bytes
        try:
            result = await self._run_trainer(task, source)
        except ModelMissingError as error:
            logger.warning("%s; downloading it task=%s", error, task.task_id)
            self.activity.state = wire.DEVICE_STATE_DOWNLOADING
            source = await download_model(task, self._state, self._courier, permit)
            downloaded += source.downloaded_bytes
            result = await self._run_trainer(task, source)
        stepped = self._state.task / MODEL_FILE
        if stepped.exists():
            self._state.models.of(task.job_id).adopt(task.model_digest, stepped)
        self._state.best_models.adopt(task.job_id, self._state.task / BEST_FILE)
        written = self._rules.use.take_written(result["written_bytes"])
        update = PendingUpdate(
            task_id=task.task_id,
            job_id=task.job_id,
            round_number=task.round_number,
            model_digest=task.model_digest,
            downloaded_bytes=downloaded,
            written_bytes=written,
            **{field: result[field] for field in _FROM_TRAINER},
        )
        if task.HasField("secure"):
            self._exchange.begin(update, task)
        else:
            self._state.keep_pending(update)

    async def _run_trainer(self, task: wire.Task, source: ModelSource, *, plan_only: bool = False) -> TrainingResult:
        """Have the task trained, or only its memory planned.

        It is done once more when the trainer was killed, since memory may be there again.
        """
        for last_try in (False, True):
            folder = self._state.new_task()
            told = task_file(
                self._settings,
                self._state,
                self._device_id,
                self._rules.max_memory,
                task,
                source,
                plan_only=plan_only,
            )
            with replace_file(folder / TASK_FILE) as file:
                file.write(json.dumps(told).encode())
            self.activity.state = wire.DEVICE_STATE_TRAINING
            try:
                return await self._trainer.train(self._state.task, on_step=self._on_step, pacer=self._pacer)
            except KilledBySignalError as error:
                if last_try:
                    raise
                logger.warning("%s Trying once more task=%s", error, task.task_id)
        raise AssertionError("the last try returns or raises")

    def _on_step(self, step: int, total_steps: int) -> None:
        self.activity.step, self.activity.total_steps = step, total_steps

    def _on_pause(self, reasons: list[str]) -> None:
        self.activity.paused_by = reasons
        self._state.note_pause(self.activity.task_id, reasons)

    async def _proceed(self) -> None:
        await self._exchange.proceed()
        self._note_success()

    def _note_success(self) -> None:
        self._in_vain, self._pauses, self._rest_until = 0, backoff(), 0.0

    async def _deliver(self, update: PendingUpdate) -> None:
        parcel = parcel_of_update(update, self._device_id, self._state.pending_file)
        try:
            answer = await self._courier.deliver(parcel)
        except TaskError:
            self._state.drop_pending()
            raise
        self._note_success()
        status = status_name(answer)
        if status in ("ACCEPTED", "DUPLICATE"):
            await self._settle(update)
        self._state.drop_pending()
        written = update.written_bytes + self._rules.use.take_written()
        self._rules.use.note_task(written)
        logger.log(
            logging.INFO if status in ("ACCEPTED", "DUPLICATE") else logging.WARNING,
            "update %s task=%s round=%d bytes=%d seconds=%.2f peak_pss_bytes=%d loss=%.4f written_bytes=%d reason=%s",
            *(status, update.task_id, update.round_number, update.total_bytes, update.seconds),
            *(update.peak_pss_bytes, update.loss, written, answer.reason or "-"),
        )
        facts = {**asdict(update), "written_bytes": written}
        self._state.note_last_task({**facts, "at": utc_now(), "outcome": status, "reason": answer.reason})

    async def _settle(self, update: PendingUpdate) -> None:
        """Keep what stays here of an accepted update; until that is on the disk the update stays pending."""
        while True:
            try:
                return self._state.settle(update)
            except OSError as error:
                logger.error("the update's local state cannot be kept, so the update waits: %s", error)
                await asyncio.sleep(DISK_RETRY_S)
