"""Central evaluation: every committed version on a held-out set, in the background, off the event loop.

A version is evaluated as devices hold it, with the merged statistics: those of the round that made it, or, where the
job has them taken anew, those of the round that started from it. Results are stored with the round; what was
not evaluated when the coordinator stopped is evaluated after the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bnncore.data import open_dataset
from bnncore.errors import BitfleetError
from bnncore.predictor import Predictor
from bnncore.state import State
from bnncore.training import evaluate
from server.coordinator.cohort import why_ineligible
from server.coordinator.disk import Disk
from server.coordinator.versions import read_deployed_state
from server.errors import InvalidJobError
from server.jobs import EvaluationChoice, JobConfig

_log = logging.getLogger(__name__)

_BATCH_SIZE = 100


class HeldOutSet:
    """A job's test set, and what classifies it. Blocking; opened at the first use."""

    def __init__(self, config: JobConfig, choice: EvaluationChoice) -> None:
        self._config = config
        root = None if choice.data is None else Path(choice.data)
        self._dataset = open_dataset(choice.dataset, root, split="test")
        problem = why_ineligible(
            job_classes=config.classes,
            job_input_shape=config.input_shape,
            device_classes=self._dataset.classes,
            device_input_shape=self._dataset.input_shape,
            device_num_examples=self._dataset.num_examples,
        )
        if problem is not None:
            self._dataset.close()
            raise InvalidJobError(f"the evaluation set does not fit the job: {problem}")
        # Labels are matched by name, as on devices.
        numbers = np.array([config.classes.index(name) for name in self._dataset.classes], dtype=np.uint8)
        self._dataset.labels = numbers[self._dataset.labels]

    def evaluate(self, state: State) -> tuple[float, float]:
        """Return (accuracy in percent, mean loss in nats) of a state with statistics."""
        predictor = Predictor(self._config.spec, state, batch_size=_BATCH_SIZE)
        result = evaluate(predictor, self._dataset)
        return result.accuracy, result.loss

    def close(self) -> None:
        """Close the data set."""
        self._dataset.close()


class Evaluator:
    """Evaluates a job's versions one after the other while its rounds go on; ``async with`` bounds its life."""

    def __init__(self, disk: Disk, job_id: str, config: JobConfig) -> None:
        self._disk = disk
        self._job_id = job_id
        self._config = config
        self._versions: asyncio.Queue[int] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._config.evaluation is not None:
            self._task = asyncio.create_task(self._work(self._config.evaluation), name=f"evaluate {self._job_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def submit(self, version: int) -> None:
        """Queue a version."""
        if self._task is not None:
            self._versions.put_nowait(version)

    async def drain(self) -> None:
        """Wait until every submitted version was evaluated, or could not be."""
        if self._task is not None:
            await self._versions.join()

    async def _work(self, choice: EvaluationChoice) -> None:
        held_out: HeldOutSet | None = None
        try:
            while True:
                version = await self._versions.get()
                try:
                    if held_out is None:
                        held_out = await asyncio.to_thread(HeldOutSet, self._config, choice)
                    await self._evaluate(held_out, version)
                except (BitfleetError, OSError) as error:
                    _log.error("event=evaluation_failed job=%s round=%d reason=%r", self._job_id, version, str(error))
                finally:
                    self._versions.task_done()
        finally:
            if held_out is not None:
                held_out.close()

    async def _evaluate(self, held_out: HeldOutSet, version: int) -> None:
        record = await self._disk.run(self._disk.storage.get_version, self._job_id, version)
        if record is None:
            return
        spec = self._config.spec
        statistics = None
        if self._config.statistics_batches and version <= self._config.rounds:
            statistics = await self._disk.run(self._disk.storage.get_version, self._job_id, version + 1)
        state = await asyncio.to_thread(read_deployed_state, self._disk.blobs, spec, record, statistics)
        accuracy, loss = await asyncio.to_thread(held_out.evaluate, state)
        await self._disk.run(self._disk.storage.set_evaluation, self._job_id, version, accuracy=accuracy, loss=loss)
        _log.info("event=evaluated job=%s round=%d accuracy=%.2f loss=%.4f", self._job_id, version, accuracy, loss)
