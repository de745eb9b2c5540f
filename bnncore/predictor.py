"""Evaluation of a trained network in the memory that evaluation takes: one bit a weight and two layers' signs.

Nothing of training is laid out: no latent weights, no optimizer state, no gradients. The results have the same bits as
``Engine.evaluate_batch`` on the same state.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import StepResult, isa_selected
from bnncore.errors import DataError
from bnncore.optimizer import OPTIMIZERS
from bnncore.plan import MemoryPlan, describe_plan, native_blocks, native_params
from bnncore.spec import ModelSpec
from bnncore.state import State, validate_state

__all__ = ["Predictor"]

_FROZEN = replace(OPTIMIZERS["latent8"], name="frozen")
"""The native side's name for bits without any optimizer state."""


class Predictor:
    """Classifies samples with a trained network.

    Args:
      spec: the network.
      state: its tensors, running statistics included; only the signs of the weights are kept.
      batch_size: most samples at once.
      threads: threads of a batch, the calling one included; they never change a result.

    Raises:
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
      BudgetError, ConfigurationError, SpecError: a size is out of range.

    Attributes:
      input: uint8 [batch_size, input_features], a view of the arena: write samples here. Read as x = 2u - 255.
      labels: int32 [batch_size], likewise; each in [0, classes).
    """

    def __init__(self, spec: ModelSpec, state: State, *, batch_size: int = 100, threads: int = 1) -> None:
        validate_state(spec, state, statistics=True)
        self.spec = spec
        self.batch_size = batch_size
        isa_selected()  # a wrong BITFLEET_ISA is told before anything is laid out
        blocks = native_blocks(spec, batch_size=batch_size, threads=threads)
        self._native = _native.Engine(blocks, native_params(_FROZEN), batch_size, threads)
        for i, block in enumerate(spec.blocks):
            weights = state[f"{block.linear}.weight"]
            self._native.write_weights(i, np.ascontiguousarray(weights).reshape(block.out_channels, block.fan_in))
            beta, mean, mean_abs_dev = self._native.norm(i)
            beta[:] = state[f"{block.norm}.beta"]
            mean[:] = state[f"{block.norm}.mean"]
            mean_abs_dev[:] = state[f"{block.norm}.mean_abs_dev"]
        self.input: NDArray[np.uint8] = self._native.input
        self.labels: NDArray[np.int32] = self._native.labels

    @property
    def plan(self) -> MemoryPlan:
        """Where everything lies."""
        return describe_plan(self._native.plan_entries, self._native.plan_peak_bytes)

    def evaluate_batch(self, count: int) -> StepResult:
        """Loss and hits of the first ``count`` samples in ``input``.

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

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.batch_size:
            raise DataError(f"count must lie in [1, {self.batch_size}] (the predictor's batch size), got {count}")
