"""Trimmed mean and median of each coordinate: a few devices cannot move a weight out of the range of the others.

Per coordinate the n values are sorted, the k smallest and the k largest are left out, the rest is averaged:
k = floor(trim n) for the trimmed mean, k = floor((n - 1) / 2) for the median (of an even number the two in the middle
are averaged). Fewer than or exactly k devices that lie, however wildly, leave the result between values of honest ones.

Weights of updates do not count. With one device they return that device's update.
Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (2018), Definitions 1, 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.spec import ModelSpec
from bnncore.state import State
from server.strategies.base import CohortStrategy, UpdateReader
from server.strategies.fixed_point import (
    blocks,
    divide,
    moved,
    require_base,
    require_updates,
    steps_by_tensor,
    to_fixed,
)

VALUES_AT_ONCE = 1 << 20
"""Values of all updates together that a block holds."""


@dataclass(frozen=True)
class TrimmedRule(CohortStrategy):
    """Mean of what is left of each coordinate's values.

    Attributes:
      server_step: factor on the result when it is a difference; with 1 states are aggregated as they are.
    """

    server_step: float = 1.0

    def __post_init__(self) -> None:
        self._require("server_step", 0.0, 100.0, above=True)

    @property
    def needs_differences(self) -> bool:
        return self.server_step != 1.0

    @abstractmethod
    def _left_out(self, num_updates: int) -> int:
        """Return how many values are left out at either end."""

    def aggregate(
        self, spec: ModelSpec, readers: Sequence[UpdateReader], base: State | None, *, is_difference: bool
    ) -> State:
        require_updates(len(readers))
        steps = steps_by_tensor(spec)
        state: State = {}
        for tensor in spec.tensors:
            result = np.empty(tensor.shape, np.float32)
            flat = result.reshape(-1)
            for block in blocks(flat.size, max(1, VALUES_AT_ONCE // len(readers))):
                values = self._middle(readers, tensor.name, block, steps[tensor.name])
                if is_difference and not tensor.is_statistic:
                    old = require_base(base)[tensor.name].reshape(-1)[block]
                    flat[block] = moved(old, self.server_step * values, is_weight=tensor.role == "weight")
                else:
                    flat[block] = values
            state[tensor.name] = result
        return state

    def _middle(self, readers: Sequence[UpdateReader], name: str, block: slice, steps: int) -> NDArray[np.float64]:
        values = np.stack([reader.read(name, block) for reader in readers])
        first = self._left_out(len(readers))
        last = len(readers) - first
        values.partition((first, last - 1), axis=0)
        return divide(to_fixed(values[first:last], steps).sum(axis=0), last - first, steps)


@dataclass(frozen=True)
class Median(TrimmedRule):
    """Median of each coordinate."""

    name: ClassVar[str] = "median"

    def _left_out(self, num_updates: int) -> int:
        return (num_updates - 1) // 2


@dataclass(frozen=True)
class TrimmedMean(TrimmedRule):
    """Mean of each coordinate without its extremes.

    Attributes:
      trim: fraction of the updates that is left out at either end.
    """

    name: ClassVar[str] = "trimmed_mean"

    trim: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("trim", 0.0, 0.49)

    def _left_out(self, num_updates: int) -> int:
        return int(Fraction(repr(self.trim)) * num_updates)  # of the decimal as it was written
