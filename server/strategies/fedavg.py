"""FedAvg in fixed point: ``w = sum_i n_i w_i / sum_i n_i``, exact until the one division at the end.

With a server step other than 1, or of differences d_i to the model w0 that the round started from:
``w = w0 + server_step * sum_i n_i d_i / sum_i n_i``, weights kept within [-1, 1].

Memory: 8 bytes per parameter, whatever the number of devices. With one device it returns that device's update.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), Alg. 1.
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
class FedAvg(SummingStrategy):
    """Mean of the updates, weighted by their examples.

    Attributes:
      server_step: factor on the mean difference, above 0; 1 is plain averaging.
    """

    name: ClassVar[str] = "fedavg"

    server_step: float = 1.0

    def __post_init__(self) -> None:
        self._require("server_step", 0.0, 100.0, above=True)

    @property
    def needs_differences(self) -> bool:
        return self.server_step != 1.0

    def finish(self, accumulator: Accumulator, base: State | None, memory: State | None) -> tuple[State, State | None]:
        complete(accumulator)
        if not accumulator.is_difference:
            return {name: mean(accumulator, name) for name in accumulator.sums}, None
        base = require_base(base)
        state: State = {}
        for tensor in accumulator.spec.tensors:
            if tensor.is_statistic:
                state[tensor.name] = mean(accumulator, tensor.name)
            else:
                is_weight = tensor.role == "weight"
                state[tensor.name] = self._step(accumulator, tensor.name, base[tensor.name], is_weight=is_weight)
        return state, None

    def _step(
        self, accumulator: Accumulator, name: str, base: NDArray[np.float32], *, is_weight: bool
    ) -> NDArray[np.float32]:
        steps, sums, old = steps_by_tensor(accumulator.spec)[name], accumulator.sums[name].reshape(-1), base.reshape(-1)
        result = np.empty(base.shape, np.float32)
        flat = result.reshape(-1)
        for block in blocks(flat.size):
            step = self.server_step * divide(sums[block], accumulator.total_weight, steps)
            flat[block] = moved(old[block], step, is_weight=is_weight)
        return result
