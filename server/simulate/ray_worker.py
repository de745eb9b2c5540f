"""A worker on Ray: trains devices, one after another, on samples that lie in Ray's object store.

Runs in a process of its own, on any machine of the cluster. It remembers nothing from one device to the next, so
another one can take its work over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bnncore
from bnncore.data import Dataset, RowSource
from bnncore.errors import BitfleetError, IncompatibleError
from bnncore.federated import EngineShelf, LocalUpdate
from server.simulate.errors import SimulationError
from server.simulate.summing import Adder, Handed, RoundStart
from server.simulate.training import Lesson, ModelSource, train_device

__all__ = ["Bytes", "Order", "Samples", "Worker"]

Bytes = NDArray[np.uint8]
"""A payload, uint8 [n]: Ray hands arrays over without copying them."""


@dataclass(frozen=True)
class Samples:
    """A data set in memory.

    Attributes:
      name: what it is called.
      rows: uint8 [n, row_bytes].
      labels: uint8 [n].
      classes: in the order of the label numbers.
      input_shape: of one sample.
      keys: what names each sample for good, uint64 [n]; None: nobody asks.
    """

    name: str
    rows: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    keys: NDArray[np.uint64] | None

    @classmethod
    def of(cls, dataset: Dataset, *, with_keys: bool) -> Samples:
        """Read a data set."""
        rows = np.empty((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
        dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), rows)
        keys = dataset.keys() if with_keys else None
        return cls(dataset.name, rows, dataset.labels, dataset.classes, dataset.input_shape, keys)


@dataclass(frozen=True)
class Order:
    """A device's task; see ``Assignment``, of which payloads are named by their digests here."""

    lesson: Lesson
    indices: NDArray[np.uint32]
    model: str | None
    steps: tuple[str, ...]


class _HeldDataset(Dataset):
    """Some of the samples that are in memory."""

    def __init__(self, samples: Samples, order: NDArray[np.uint32]) -> None:
        source = RowSource(Path(), 0, samples.rows.shape[1], len(samples.rows))
        super().__init__(
            samples.name,
            source,
            samples.labels[order],
            classes=samples.classes,
            input_shape=samples.input_shape,
            order=order,
            keys=None if samples.keys is None else samples.keys[order],
            file=-1,  # there is none to be closed
        )
        self._samples = samples
        self._rows = order

    def read(self, indices: NDArray[np.uint32], out: NDArray[np.uint8]) -> None:
        """See ``Dataset``."""
        np.take(self._samples.rows, self._rows[indices], axis=0, out=out)

    def subset(self, indices: NDArray[Any]) -> Dataset:
        """See ``Dataset``."""
        return _HeldDataset(self._samples, self._rows[indices.astype(np.uint32)])


class Worker:
    """Trains devices.

    Args:
      samples: of all devices.
      threads: that one device trains on.
      version: of bitfleet at the coordinator.

    Raises:
      IncompatibleError: here is another one.
    """

    def __init__(self, samples: Samples, threads: int, version: str) -> None:
        if version != bnncore.__version__:
            raise IncompatibleError(
                f"the simulation is of bitfleet {version}, a machine of the cluster has {bnncore.__version__}; "
                "install the same on all of them"
            )
        self._samples = samples
        self._shelf = EngineShelf(threads)

    def start(self) -> None:
        """Return once the worker has started."""

    def train(self, lesson: Lesson, indices: NDArray[np.uint32], model: Bytes | None, *steps: Bytes) -> LocalUpdate:
        """Do a device's task; see ``train_device``.

        Args:
          lesson: the task.
          indices: uint32 [n], the device's samples.
          model: see ``ModelSource``.
          steps: see ``ModelSource``.
        """
        source = ModelSource(None if model is None else model.data, tuple(step.data for step in steps))
        with _HeldDataset(self._samples, indices) as dataset:
            update = train_device(lesson, source, dataset, self._shelf)
        return replace(update, model=None)  # which the coordinator has

    def train_together(
        self, start: RoundStart, orders: Sequence[Order], digests: Sequence[str], *payloads: Bytes
    ) -> Handed:
        """Do some devices' tasks, and add their updates up.

        Args:
          start: of the round.
          orders: the tasks.
          digests: of the payloads.
          payloads: of models, steps and the round's version.

        Raises:
          SimulationError: a device cannot do its task.
        """
        held = dict(zip(digests, payloads, strict=True))
        adder = Adder(start, {digest: payload.data for digest, payload in held.items()})
        for order in orders:
            model = None if order.model is None else held[order.model]
            try:
                update = self.train(order.lesson, order.indices, model, *(held[digest] for digest in order.steps))
                adder.add(order.lesson, update)
            except BitfleetError as error:
                raise SimulationError(f"{order.lesson.device_id} cannot do its task: {error}") from error
        return adder.hand_over()
