"""What an engine and a predictor have in common: they classify the samples in their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.errors import DataError
from bnncore.plan import MemoryPlan, describe_plan
from bnncore.spec import ModelSpec

__all__ = ["Evaluator", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """Outcome of one batch: ``loss`` is the mean cross-entropy in nats, ``correct`` counts samples."""

    loss: float
    correct: int


class Evaluator:
    """Classifies samples with a native engine.

    Attributes:
      spec: the network.
      batch_size: most samples at once.
      input: uint8 [batch_size, input_features], a view of the arena: write samples here. Read as x = 2u - 255.
      labels: int32 [batch_size], likewise; each in [0, classes).
    """

    _kind: ClassVar[str]
    """What messages call it."""

    def __init__(self, spec: ModelSpec, native: _native.Engine, batch_size: int) -> None:
        self.spec = spec
        self.batch_size = batch_size
        self._native = native
        self.input: NDArray[np.uint8] = native.input
        self.labels: NDArray[np.int32] = native.labels

    @property
    def plan(self) -> MemoryPlan:
        """Where everything lies."""
        return describe_plan(self._native.plan_entries, self._native.plan_peak_bytes)

    def evaluate_batch(self, count: int) -> StepResult:
        """Loss and hits of the first ``count`` samples in ``input``, normalised by the running statistics.

        Raises:
          DataError: a label lies outside [0, classes), or count outside [1, batch_size].
        """
        self._check_count(count)
        try:
            return StepResult(*self._native.evaluate(count))
        except ValueError as error:
            raise DataError(str(error)) from None

    def predict_batch(self, count: int) -> NDArray[np.int32]:
        """Classes, int32 [count], of the first ``count`` samples in ``input``. Labels are not used.

        Raises:
          DataError: count lies outside [1, batch_size].
        """
        self._check_count(count)
        self.labels[:count] = 0
        return self._native.predict(count)

    def _ensure_ready(self) -> None:
        """Make sure that there is a model."""

    def _check_count(self, count: int) -> None:
        self._ensure_ready()
        if not 1 <= count <= self.batch_size:
            raise DataError(f"count must lie in [1, {self.batch_size}] (the {self._kind}'s batch size), got {count}")
