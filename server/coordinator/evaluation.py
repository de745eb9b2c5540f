"""Central evaluation: every committed version on a held-out set, in the background, off the event loop.

A version is evaluated as devices hold it, with the merged statistics: those of the round that made it, or, where the
job has them taken anew, those of the round that started from it. Results are stored with the round; what was
not evaluated when the coordinator stopped is evaluated after the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bnncore.data import Dataset, open_for_job
from bnncore.errors import BitfleetError
from bnncore.predictor import Predictor
from bnncore.state import State
from bnncore.training import evaluate
from server.coordinator.cohort import why_ineligible
from server.coordinator.disk import Disk
from server.coordinator.versions import read_deployed_state, statistics_version
from server.errors import InvalidJobError
from server.job_parts import EvaluationChoice
from server.jobs import JobConfig

_log = logging.getLogger(__name__)

_BATCH_SIZE = 100

OpenEvaluation = Callable[[JobConfig, EvaluationChoice], Dataset]
"""Opens a job's evaluation set; the caller closes it."""


def open_evaluation(config: JobConfig, choice: EvaluationChoice) -> Dataset:
    """Open the test split of the data set that a job names, in the job's form."""
    return open_for_job(
        choice.dataset,
        None if choice.data is None else Path(choice.data),
        split="test",
        input_shape=tuple(config.input_shape),
        input_range=None if config.input_range is None else config.input_range.range,
    )


class HeldOutSet:
    """A job's test set, which it closes, and what classifies it. Blocking."""

    def __init__(self, config: JobConfig, dataset: Dataset) -> None:
        self._config = config
        self._dataset = dataset
        problem = why_ineligible(
            job_classes=config.classes,
            job_input_shape=config.input_shape,
            job_has_input_range=False,  # it has been followed
            device_classes=self._dataset.classes,
            device_input_shape=self._dataset.input_shape,
            device_num_examples=self._dataset.num_examples,
        )
        if problem is not None:
            self._dataset.close()
            raise InvalidJobError(f"the evaluation set does not fit the job: {problem}")
        # Labels are matched by name, as on devices.
        numbers = np.array([config.classes.index(name) for name in self._dataset.classes], dtype=np.int32)
        self._labels = numbers[self._dataset.labels]

    def evaluate(self, state: State) -> tuple[float, float]:
        """Return (accuracy in percent, mean loss in nats) of a state with statistics."""
        predictor = Predictor(self._config.spec, state, batch_size=_BATCH_SIZE)
        result = evaluate(predictor, self._dataset, labels=self._labels)
        return result.accuracy, result.loss

    def close(self) -> None:
        """Close the data set."""
        self._dataset.close()


class Evaluator:
    """Evaluates a job's versions one after the other while its rounds go on; ``async with`` bounds its life."""

    def __init__(self, disk: Disk, job_id: str, config: JobConfig, open_set: OpenEvaluation = open_evaluation) -> None:
        self._disk = disk
        self._job_id = job_id
        self._config = config
        self._open_set = open_set
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
                        held_out = await asyncio.to_thread(self._open, choice)
                    await self._evaluate(held_out, version)
                except (BitfleetError, OSError) as error:
                    _log.error("event=evaluation_failed job=%s round=%d reason=%r", self._job_id, version, str(error))
                finally:
                    self._versions.task_done()
        finally:
            if held_out is not None:
                held_out.close()

    def _open(self, choice: EvaluationChoice) -> HeldOutSet:
        return HeldOutSet(self._config, self._open_set(self._config, choice))

    async def _evaluate(self, held_out: HeldOutSet, version: int) -> None:
        record = await self._disk.run(self._disk.storage.get_version, self._job_id, version)
        if record is None:
            return
        spec, config = self._config.spec, self._config
        taken = statistics_version(version, rounds=config.rounds, statistics_batches=config.statistics_batches)
        statistics = await self._disk.run(self._disk.storage.get_version, self._job_id, taken)
        state = await asyncio.to_thread(read_deployed_state, self._disk.blobs, spec, record, statistics)
        accuracy, loss = await asyncio.to_thread(held_out.evaluate, state)
        await self._disk.run(self._disk.storage.set_evaluation, self._job_id, version, accuracy=accuracy, loss=loss)
        self._disk.feed.publish(
            *("round", f"{self._job_id}/{version}"),
            job_id=self._job_id,
            job=self._job_id,
            round=version,
            accuracy=accuracy,
            loss=loss,
        )
        _log.info("event=evaluated job=%s round=%d accuracy=%.2f loss=%.4f", self._job_id, version, accuracy, loss)
