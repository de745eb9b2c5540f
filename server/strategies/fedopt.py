"""FedAdam and FedYogi: an adaptive optimizer at the server, fed with the round's mean difference d.

Per parameter, from m = 0 and v = tau^2::

    m <- beta1 m + (1 - beta1) d
    v <- beta2 v + (1 - beta2) d^2                       FedAdam
    v <- v - (1 - beta2) d^2 sign(v - d^2)               FedYogi
    w <- w + learning_rate m / (sqrt(v) + tau)

Weights stay within [-1, 1]. Running statistics are no parameters: they are the weighted mean of the devices'.
Arithmetic is float64 element by element, m and v are kept as float32: 8 bytes per parameter beside the sums.
Source: Reddi et al., "Adaptive Federated Optimization" (2021), Algorithm 2, with their v_-1 = tau^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.state import State
from server.strategies.base import Accumulator
from server.strategies.fixed_point import (
    blocks,
    complete,
    divide,
    mean,
    moved,
    require_base,
    steps_by_tensor,
)
from server.strategies.summing import SummingStrategy


@dataclass(frozen=True)
class FedAdam(SummingStrategy):
    """Adam at the server.

    Attributes:
      learning_rate: of the server; a weight lies in [-1, 1].
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      tau: degree of adaptivity, in units of a weight: added to the root of the second moment.
    """

    name: ClassVar[str] = "fedadam"

    learning_rate: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        self._require("learning_rate", 0.0, 10.0, above=True)
        self._require("beta1", 0.0, 0.999999)
        self._require("beta2", 0.0, 0.999999)
        self._require("tau", 0.0, 1.0, above=True)

    @property
    def needs_differences(self) -> bool:
        return True

    def finish(self, accumulator: Accumulator, base: State | None, memory: State | None) -> tuple[State, State | None]:
        complete(accumulator)
        base = require_base(base)
        state: State = {}
        new_memory: State = {}
        for tensor in accumulator.spec.tensors:
            name = tensor.name
            if tensor.is_statistic:
                state[name] = mean(accumulator, name)
                continue
            m, v = (None, None) if memory is None else (memory[f"m/{name}"], memory[f"v/{name}"])
            m = np.zeros(tensor.shape, np.float32) if m is None else m.copy()
            v = np.full(tensor.shape, self.tau**2, np.float32) if v is None else v.copy()
            state[name] = self._step(accumulator, name, base[name], m, v, is_weight=tensor.role == "weight")
            new_memory[f"m/{name}"], new_memory[f"v/{name}"] = m, v
        return state, new_memory

    def _step(
        self,
        accumulator: Accumulator,
        name: str,
        base: NDArray[np.float32],
        m: NDArray[np.float32],
        v: NDArray[np.float32],
        *,
        is_weight: bool,
    ) -> NDArray[np.float32]:
        """Step one tensor; ``m`` and ``v`` are changed in place."""
        steps, sums = steps_by_tensor(accumulator.spec)[name], accumulator.sums[name].reshape(-1)
        result = np.empty(base.shape, np.float32)
        flat, flat_base, flat_m, flat_v = (array.reshape(-1) for array in (result, base, m, v))
        for block in blocks(flat.size):
            difference = divide(sums[block], accumulator.total_weight, steps)
            first = self.beta1 * flat_m[block].astype(np.float64) + (1 - self.beta1) * difference
            second = self._second_moment(flat_v[block].astype(np.float64), difference * difference)
            step = self.learning_rate * first / (np.sqrt(second) + self.tau)
            flat[block] = moved(flat_base[block], step, is_weight=is_weight)
            flat_m[block], flat_v[block] = first, second
        return result

    def _second_moment(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi at the server: the second moment moves by an amount that does not depend on how far off it is."""

    name: ClassVar[str] = "fedyogi"

    def _second_moment(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return v - (1 - self.beta2) * square * np.sign(v - square)
