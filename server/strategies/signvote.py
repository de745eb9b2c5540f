"""Sign vote: every weight moves by one step to where most examples want it.

``w <- w + step sign(sum_i n_i sign(d_i))``

d_i is device i's difference to the model that the round started from; 0 is no vote, a tie moves nothing. However large
a device's difference, its vote counts as its examples do. Weights stay within [-1, 1]. Real-valued parameters and
running statistics are weighted means, as in FedAvg.

Memory: 8 bytes per parameter, whatever the number of devices.
Source: Bernstein et al., "signSGD with Majority Vote is Communication Efficient and Fault Tolerant" (2019), Alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bnncore.codec import SignTensor
from bnncore.secure.scales import Scales
from bnncore.secure.values import ValueSum
from bnncore.state import State
from server.strategies.base import Accumulator, Update
from server.strategies.fixed_point import (
    add_sums,
    add_tensor,
    blocks,
    check_update,
    complete,
    mean,
    moved,
    require_base,
    steps_by_tensor,
)
from server.strategies.summing import SummingStrategy


@dataclass(frozen=True)
class SignVote(SummingStrategy):
    """Weighted majority of the signs of the differences.

    Attributes:
      step: how far a weight, which lies in [-1, 1], moves in a round.
    """

    name: ClassVar[str] = "signvote"

    step: float = 0.02

    def __post_init__(self) -> None:
        self._require("step", 0.0, 1.0, above=True)

    @property
    def needs_differences(self) -> bool:
        return True

    def fold(self, accumulator: Accumulator, update: Update, weight: int) -> None:
        check_update(accumulator, update, weight)
        steps = steps_by_tensor(accumulator.spec)
        votes: dict[str, SignTensor] = {}
        for tensor in accumulator.spec.tensors:
            values = update[tensor.name]
            if isinstance(values, SignTensor):
                votes[tensor.name] = replace(values, scales=(values.scales > 0).astype(np.uint16))
                continue
            sums, values = accumulator.sums[tensor.name].reshape(-1), values.reshape(-1)
            if tensor.role == "weight":
                for block in blocks(sums.size):
                    sums[block] += np.sign(values[block]).astype(np.int64) * weight
            else:
                add_tensor(sums, values, steps[tensor.name], weight)
        if votes:
            accumulator.add_signs(votes, weight)
        accumulator.total_weight += weight
        accumulator.num_updates += 1

    def fold_sum(self, accumulator: Accumulator, total: ValueSum, scales: Scales) -> None:
        """Count the votes; under masks whoever left a weight as it was votes for plus, as its sign is that of 0."""
        sums = {name: sums for name, sums in total.tensors(scales).items() if name not in total.signs}
        add_sums(accumulator, sums, total.form.units, total.num_updates)
        for name, votes in total.signs.items():
            accumulator.sums[name] += votes

    def finish(self, accumulator: Accumulator, base: State | None, memory: State | None) -> tuple[State, State | None]:
        complete(accumulator)
        base = require_base(base)
        state: State = {}
        for tensor in accumulator.spec.tensors:
            name = tensor.name
            if tensor.is_statistic:
                state[name] = mean(accumulator, name)
                continue
            is_weight = tensor.role == "weight"
            result = np.empty(tensor.shape, np.float32)
            flat, old, sums = result.reshape(-1), base[name].reshape(-1), accumulator.sums[name].reshape(-1)
            change = None if is_weight else mean(accumulator, name).reshape(-1).astype(np.float64)
            for block in blocks(flat.size):
                step = self.step * np.sign(sums[block]).astype(np.float64) if change is None else change[block]
                flat[block] = moved(old[block], step, is_weight=is_weight)
            state[name] = result
        return state, None
