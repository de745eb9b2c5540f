"""What strategies share that step from the round's model along the devices' mean difference: ``w <- w + step(d)``.

A new one of this kind says how long the step is, and what it remembers; sums, ranges, running statistics, secure
aggregation and recovery after a crash are done here. The mean difference d is exact (integers until one division), so
the step is the same whatever the order in which updates came::

    @dataclass(frozen=True)
    class FedAvgM(ServerOptimizer):
        name: ClassVar[str] = "fedavgm"
        momentum: float = 0.9

        def slots(self) -> dict[str, float]:
            return {"velocity": 0.0}

        def step(self, difference, memory):
            velocity = self.momentum * memory["velocity"] + difference
            memory["velocity"][:] = velocity
            return velocity

Memory: 8 bytes per parameter for the sums, and 4 for each slot.
Source: Reddi et al., "Adaptive Federated Optimization" (2021), Algorithm 1, where ``step`` is ServerOpt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnncore.state import State
from server.errors import ServerError
from server.strategies.base import Accumulator
from server.strategies.fixed_point import blocks, complete, divide, mean, moved, require_base, steps_by_tensor
from server.strategies.summing import SummingStrategy

Slots = Mapping[str, NDArray[np.float32]]
"""What is remembered of some parameters, by the name of the slot: arrays to read and to write to."""


class ServerOptimizer(SummingStrategy):
    """A step along the mean difference; a subclass is a frozen dataclass with ``name``, its parameters and ``step``."""

    @property
    def needs_differences(self) -> bool:
        return True

    def slots(self) -> Mapping[str, float]:
        """Return the names of what is remembered for each parameter, with their values before the first round."""
        return {}

    @abstractmethod
    def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
        """Return how far some parameters move; the caller keeps weights within [-1, 1].

        It is called for pieces of a tensor, so each parameter must move by what is known of itself alone.

        Args:
          difference: float64 [n], the devices' mean difference to the model that the round started from.
          memory: float32 [n] of each slot, as the round before left it; what is written into it is remembered.

        Returns:
          float64 [n].
        """

    def finish(self, accumulator: Accumulator, base: State | None, memory: State | None) -> tuple[State, State | None]:
        complete(accumulator)
        base = require_base(base)
        steps, first = steps_by_tensor(accumulator.spec), self.slots()
        state: State = {}
        new_memory: State = {}
        for tensor in accumulator.spec.tensors:
            name = tensor.name
            if tensor.is_statistic:  # no parameter: the weighted mean of the devices'
                state[name] = mean(accumulator, name)
                continue
            kept = {
                slot: np.full(tensor.shape, value, np.float32) if memory is None else memory[f"{slot}/{name}"].copy()
                for slot, value in first.items()
            }
            result = np.empty(tensor.shape, np.float32)
            flat, old, sums = result.reshape(-1), base[name].reshape(-1), accumulator.sums[name].reshape(-1)
            flat_kept = {slot: array.reshape(-1) for slot, array in kept.items()}
            for block in blocks(flat.size):
                difference = divide(sums[block], accumulator.total_weight, steps[name])
                step = self.step(difference, {slot: array[block] for slot, array in flat_kept.items()})
                self._check_step(name, step, difference)
                flat[block] = moved(old[block], step, is_weight=tensor.role == "weight")
            state[name] = result
            new_memory |= {f"{slot}/{name}": array for slot, array in kept.items()}
        return state, new_memory or None

    def _check_step(self, tensor: str, step: NDArray[np.float64], difference: NDArray[np.float64]) -> None:
        if np.shape(step) != difference.shape or not np.isfinite(step).all():
            raise ServerError(
                f"the step of strategy {self.name!r} must be {difference.size} finite numbers, one for each of the "
                f"differences it was given; for tensor {tensor!r} it has shape {np.shape(step)}"
                f"{'' if np.isfinite(step).all() else ' and holds a value that is not finite'}"
            )
