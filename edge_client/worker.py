"""One task from its arrival to the coordinator's answer: get the model, have it trained, send what was learnt.

The worker lives beside the link, not in it: a training goes on while the coordinator is away, and an update waits on
the disk until it is back. One piece of work at a time; the pending update always comes first.

::

    IDLE -> DOWNLOADING -> TRAINING -> (update pending on disk) -> SUBMITTING -> IDLE
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.durable import replace_file
from edge_client.child import MODEL_FILE, TASK_FILE
from edge_client.courier import Courier, status_name
from edge_client.errors import (
    ModelMissingError,
    StateFolderError,
    TaskDeclinedError,
    TaskError,
    TaskFailedError,
    public_reason,
)
from edge_client.link import Link
from edge_client.model_source import ModelSource, download_model, find_model
from edge_client.outbox import utc_now
from edge_client.settings import ClientSettings
from edge_client.state_dir import PendingUpdate, StateDir
from edge_client.trainer_process import KilledBySignalError, TrainingResult, run_trainer

__all__ = ["Activity", "Worker"]

logger = logging.getLogger(__name__)

LEDGER_RETRY_S = 30.0
"""Between two tries to write what must be on the disk before the work goes on: the ledger, an update's feedback."""

_FROM_TRAINER = (
    *("update_digest", "total_bytes", "num_examples", "codec"),
    *("loss", "accuracy", "steps", "seconds", "training_seconds", "peak_pss_bytes"),
)


@dataclass
class Activity:
    """What the device does now, as heartbeats tell it."""

    state: wire.DeviceState = wire.DEVICE_STATE_IDLE
    task_id: str = ""
    step: int = 0
    total_steps: int = 0


@dataclass(frozen=True)
class _Job:
    task: wire.Task
    expires_at: float
    """When its round stops collecting, by the event loop's monotonic clock."""


class Worker:
    """Does tasks one after another.

    Args:
      settings: the agent's settings.
      state: the locked state folder.
      device_id: the device's lasting name.
      courier: moves models and updates.
      link: where a task that ends without an update is reported.

    Attributes:
      activity: what it does now.
    """

    def __init__(self, settings: ClientSettings, state: StateDir, device_id: str, courier: Courier, link: Link) -> None:
        self.activity = Activity()
        self._settings = settings
        self._state = state
        self._device_id = device_id
        self._courier = courier
        self._link = link
        self._waiting: dict[str, _Job] = {}
        self._arrived = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._job_id = ""

    def offer(self, task: wire.Task) -> None:
        """Take a task in. The same one again changes nothing; a newer one of its job takes the older one's place."""
        if task.task_id == self.activity.task_id:
            return
        now = asyncio.get_running_loop().time()
        self._waiting = {key: job for key, job in self._waiting.items() if job.task.job_id != task.job_id}
        self._waiting[task.task_id] = _Job(task, now + task.deadline_s)
        self._arrived.set()
        if self._job_id == task.job_id:
            self.cancel(self.activity.task_id, "a newer task of its job came")

    def cancel(self, task_id: str, reason: str) -> None:
        """Stop a task. One whose update is being sent is left alone: the answer to it says how it ended."""
        self._waiting.pop(task_id, None)
        if self._running is not None and task_id == self.activity.task_id and not self._is_submitting:
            logger.info("task stopped task=%s reason=%s", task_id, reason)
            self._running.cancel()

    def forget_waiting(self) -> None:
        """Drop tasks that were not begun: after a reconnect the coordinator sends again what still counts."""
        self._waiting.clear()

    @property
    def unfinished_task_id(self) -> str:
        """Once ``run`` was cancelled: the task it broke off; empty when there is none, or its update is pending."""
        return "" if self._is_submitting or self._state.pending_file.exists() else self.activity.task_id

    @property
    def _is_submitting(self) -> bool:
        return self.activity.state == wire.DEVICE_STATE_SUBMITTING

    async def run(self) -> None:
        """Work until cancelled. Nothing that goes wrong in a task ends this."""
        while True:
            update = self._pending()
            if update is not None:
                self.activity = Activity(wire.DEVICE_STATE_SUBMITTING, update.task_id, update.steps, update.steps)
                await self._supervise(update.job_id, self._deliver(update))
            elif self._waiting:
                job = self._waiting.pop(next(iter(self._waiting)))
                steps = job.task.training.local_steps
                self.activity = Activity(wire.DEVICE_STATE_DOWNLOADING, job.task.task_id, 0, steps)
                await self._supervise(job.task.job_id, self._train(job))
            else:
                self.activity = Activity()
                self._arrived.clear()
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
        await self._link.report(wire.TaskReport(task_id=task_id, outcome=outcome, reason=reason))

    async def _train(self, job: _Job) -> None:
        """From the task to a pending update on the disk, within the round's deadline."""
        try:
            async with asyncio.timeout_at(job.expires_at):
                await self._make_update(job.task)
        except TimeoutError:
            name = wire.DeviceState.Name(self.activity.state).removeprefix("DEVICE_STATE_")
            raise TaskFailedError(f"the round's deadline passed while {name}") from None

    async def _make_update(self, task: wire.Task) -> None:
        logger.info("task begins task=%s round=%d steps=%d", task.task_id, task.round_number, self.activity.total_steps)
        source = await find_model(task, self._state, self._courier)
        downloaded = source.downloaded_bytes
        try:
            result = await self._run_trainer(task, source)
        except ModelMissingError as error:
            logger.warning("%s; downloading it task=%s", error, task.task_id)
            self.activity.state = wire.DEVICE_STATE_DOWNLOADING
            source = await download_model(task, self._state, self._courier)
            downloaded += source.downloaded_bytes
            result = await self._run_trainer(task, source)
        stepped = self._state.task / MODEL_FILE
        if stepped.exists():
            self._state.models.adopt(task.model_digest, stepped)
        self._state.keep_pending(
            PendingUpdate(
                task_id=task.task_id,
                job_id=task.job_id,
                round_number=task.round_number,
                model_digest=task.model_digest,
                downloaded_bytes=downloaded,
                **{field: result[field] for field in _FROM_TRAINER},
            )
        )

    async def _run_trainer(self, task: wire.Task, source: ModelSource) -> TrainingResult:
        """Have the task trained; once more when the trainer was killed, since memory may be there again."""
        for last_try in (False, True):
            with replace_file(self._state.new_task() / TASK_FILE) as file:
                file.write(json.dumps(self._task_file(task, source)).encode())
            self.activity.state = wire.DEVICE_STATE_TRAINING
            try:
                return await run_trainer(self._state.task, on_step=self._on_step)
            except KilledBySignalError as error:
                if last_try:
                    raise
                logger.warning("%s Trying once more task=%s", error, task.task_id)
        raise AssertionError("the last try returns or raises")

    def _task_file(self, task: wire.Task, source: ModelSource) -> dict[str, Any]:
        training = task.training
        settings = self._settings
        feedback = self._state.feedback(task.job_id)
        return {
            "device_id": self._device_id,
            "round_number": task.round_number,
            "model_digest": task.model_digest,
            "model_path": None if source.base is None else str(source.base),
            "step_paths": [str(path) for path in source.steps],
            "feedback_path": str(feedback) if feedback.exists() else None,
            "initial_seed": task.initial_seed,
            "spec_json": task.spec_json,
            "down_codec": task.down_codec,
            "up_codec": task.up_codec,
            "classes": list(task.classes),
            "training": {
                "preset": training.preset,
                "optimizer": training.optimizer,
                "batch_size": training.batch_size,
                "local_steps": training.local_steps,
                "step_scale": training.step_scale,
                "seed": training.seed,
                "proximal_mu": training.proximal_mu,
                "statistics_batches": training.statistics_batches,
            },
            "data": {"name": settings.dataset, "root": None if settings.data is None else str(settings.data)},
            "threads": settings.threads,
        }

    def _on_step(self, step: int, total_steps: int) -> None:
        self.activity.step, self.activity.total_steps = step, total_steps

    async def _deliver(self, update: PendingUpdate) -> None:
        while True:
            try:
                answer = await self._courier.deliver(update)
                break
            except OSError as error:
                logger.error("the outbox ledger cannot be written, so the update waits: %s", error)
                await asyncio.sleep(LEDGER_RETRY_S)
            except TaskFailedError:
                self._state.drop_pending()
                raise
        status = status_name(answer)
        if status in ("ACCEPTED", "DUPLICATE"):
            await self._settle_feedback(update)
        self._state.drop_pending()
        logger.log(
            logging.INFO if status in ("ACCEPTED", "DUPLICATE") else logging.WARNING,
            "update %s task=%s round=%d bytes=%d seconds=%.2f peak_pss_bytes=%d loss=%.4f reason=%s",
            *(status, update.task_id, update.round_number, update.total_bytes, update.seconds),
            *(update.peak_pss_bytes, update.loss, answer.reason or "-"),
        )
        self._state.note_last_task({**asdict(update), "at": utc_now(), "outcome": status, "reason": answer.reason})

    async def _settle_feedback(self, update: PendingUpdate) -> None:
        """Keep what an accepted update could not say; until that is on the disk the update stays pending."""
        while True:
            try:
                return self._state.settle_feedback(update.job_id)
            except OSError as error:
                logger.error("what the update could not say cannot be kept, so the update waits: %s", error)
                await asyncio.sleep(LEDGER_RETRY_S)
