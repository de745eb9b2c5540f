"""Who trains simulated devices: threads of this process, each with one engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from bnncore.data import Dataset
from bnncore.federated import EngineShelf, LocalUpdate
from server.jobs import JobConfig
from server.simulate.cast import Share
from server.simulate.errors import SimulationError
from server.simulate.summing import Adder, Handed, RoundStart
from server.simulate.training import Lesson, ModelSource, train_device

__all__ = ["Assignment", "OpenTrainer", "ThreadTrainer", "Trainer"]


@dataclass(frozen=True)
class Assignment:
    """What a device is to do.

    Attributes:
      lesson: its task.
      source: the model.
      share: its samples.
    """

    lesson: Lesson
    source: ModelSource
    share: Share


class Trainer(Protocol):
    """Trains devices; whoever does it never enters the result."""

    @property
    def places(self) -> int:
        """How many devices train at once."""

    @property
    def adds_up(self) -> bool:
        """Whether ``train_together`` is worth while: who trains is somewhere else."""

    async def train(self, assignment: Assignment) -> LocalUpdate:
        """Do a device's task.

        Raises:
          BitfleetError: the device cannot do it.
          SimulationError: there is nobody to do it.
        """

    async def train_together(
        self, start: RoundStart, payloads: Mapping[str, bytes], assignments: Sequence[Assignment]
    ) -> Handed:
        """Do some devices' tasks of one round, and add their updates up.

        Args:
          start: of the round.
          payloads: those of its version, by digest.
          assignments: the tasks.

        Raises:
          SimulationError: a device cannot do its task, or there is nobody to do it.
        """

    def stop(self) -> None:
        """Break off what is at work."""


OpenTrainer = Callable[[JobConfig, Dataset], AbstractContextManager[Trainer]]
"""Has a trainer at work for a block: for a job, on shares of a data set."""


class ThreadTrainer:
    """Trains in threads.

    Args:
      threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self.places = threads
        self.adds_up = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="device")
        self._local = threading.local()
        self._stopping = threading.Event()

    async def train(self, assignment: Assignment) -> LocalUpdate:
        """See ``Trainer``."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._train, assignment)

    async def train_together(
        self, start: RoundStart, payloads: Mapping[str, bytes], assignments: Sequence[Assignment]
    ) -> Handed:
        """See ``Trainer``."""
        adder = Adder(start, payloads)
        for assignment in assignments:
            adder.add(assignment.lesson, await self.train(assignment))
        return adder.hand_over()

    def _train(self, assignment: Assignment) -> LocalUpdate:
        shelf: EngineShelf | None = getattr(self._local, "shelf", None)
        if shelf is None:
            shelf = self._local.shelf = EngineShelf()
        with assignment.share.open() as samples:
            return train_device(assignment.lesson, assignment.source, samples, shelf, self._on_step)

    def _on_step(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise SimulationError(f"training was stopped after {done} of {total} steps")

    def stop(self) -> None:
        """See ``Trainer``."""
        self._stopping.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
