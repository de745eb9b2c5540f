"""FedAvg in fixed point: ``w = sum_i n_i w_i / sum_i n_i``, exact until the one division at the end.

Every value is turned once into an integer of ``UNIT`` steps and everything after that is integer addition, so the
sum does not depend on order. Units, chosen so that ``int64`` cannot overflow with at most 2^30 examples in a round:

====================  =====================  ==========================================================
tensor                steps per 1.0          why
====================  =====================  ==========================================================
weight, int8          2^24 per 1/127         exact: an int8 weight is a whole number of 1/127
weight, float32       127 * 2^24             the same unit, so both kinds may meet in one sum
beta                  2^22                   |beta| < 2^10
mean, mean_abs_dev    2^(31 - b)             |pre-activation| <= 2^b, known from the layer's fan-in
====================  =====================  ==========================================================

Memory: 8 bytes per parameter, whatever the number of devices. With one device it returns that device's update.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), Alg. 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import PayloadError
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.strategies.base import Accumulator

MAX_EXAMPLES = 2**20
"""The largest weight of one update."""
MAX_TOTAL_EXAMPLES = 2**30
"""The largest sum of weights in a round: 2^30 * 2^32 < 2^63."""

_MAX_STEPS = 2**32
_WEIGHT_SHIFT = 24
_WEIGHT_STEPS = 127 * 2**_WEIGHT_SHIFT
_BETA_BITS = 10


class FedAvg:
    """Mean of the updates, weighted by ``num_examples``."""

    name = "fedavg"

    def init(self, spec: ModelSpec) -> Accumulator:
        sums = {name: np.zeros(shape, dtype=np.int64) for name, shape in spec.tensor_shapes().items()}
        return Accumulator(spec, sums)

    def fold(self, accumulator: Accumulator, state: State, num_examples: int) -> None:
        if not 1 <= num_examples <= MAX_EXAMPLES:
            raise PayloadError(f"num_examples must be 1 to {MAX_EXAMPLES}, got {num_examples}")
        total = accumulator.num_examples + num_examples
        if total > MAX_TOTAL_EXAMPLES:
            raise PayloadError(f"a round carries at most {MAX_TOTAL_EXAMPLES} examples, this update would make {total}")
        steps = _steps_by_tensor(accumulator.spec)
        for name in accumulator.sums:
            _check_magnitude(name, state[name], steps[name])
        for name, total_steps in accumulator.sums.items():
            total_steps += _to_fixed(state[name], steps[name]) * num_examples
        accumulator.num_examples = total
        accumulator.num_updates += 1

    def merge(self, accumulator: Accumulator, other: Accumulator) -> Accumulator:
        total = accumulator.num_examples + other.num_examples
        if total > MAX_TOTAL_EXAMPLES:
            raise PayloadError(f"a round carries at most {MAX_TOTAL_EXAMPLES} examples, the merged sums hold {total}")
        return Accumulator(
            accumulator.spec,
            sums={name: sums + other.sums[name] for name, sums in accumulator.sums.items()},
            num_examples=total,
            num_updates=accumulator.num_updates + other.num_updates,
        )

    def finish(self, accumulator: Accumulator) -> State:
        if accumulator.num_updates == 0:
            raise PayloadError("at least one update is needed to make a model, none was folded in")
        steps = _steps_by_tensor(accumulator.spec)
        return {
            name: _divide(total_steps, accumulator.num_examples, steps[name])
            for name, total_steps in accumulator.sums.items()
        }


def _steps_by_tensor(spec: ModelSpec) -> dict[str, int]:
    """Return the fixed-point steps per 1.0 of each tensor.

    A pre-activation is a sum of fan_in products of +-1 with +-1, or with x = 2u - 255 in the first layer.
    """
    steps: dict[str, int] = {}
    for block in spec.blocks:
        largest = block.fan_in * (255 if block.is_first else 1)
        bits = math.ceil(math.log2(largest)) + 1  # one bit more, for rounding of a statistic that sits on the bound
        steps[f"{block.linear}.weight"] = _WEIGHT_STEPS
        steps[f"{block.norm}.beta"] = _MAX_STEPS >> _BETA_BITS
        steps[f"{block.norm}.mean"] = _MAX_STEPS >> bits
        steps[f"{block.norm}.mean_abs_dev"] = _MAX_STEPS >> bits
    return steps


def _check_magnitude(name: str, tensor: NDArray[Any], steps: int) -> None:
    limit = 1.0 if steps == _WEIGHT_STEPS else _MAX_STEPS / steps
    if tensor.dtype == np.int8:
        return
    worst = float(np.max(np.abs(tensor.astype(np.float64)), initial=0.0))
    if not worst <= limit:  # also refuses NaN
        raise PayloadError(f"tensor {name!r} must lie within +-{limit:g}, its largest magnitude is {worst:g}")


def _to_fixed(tensor: NDArray[Any], steps: int) -> NDArray[np.int64]:
    if tensor.dtype == np.int8:
        return tensor.astype(np.int64) << _WEIGHT_SHIFT
    # float32 times an integer below 2^32 is exact in float64 up to 2^53 steps; rint is the only rounding.
    return np.rint(tensor.astype(np.float64) * steps).astype(np.int64)


def _divide(total_steps: NDArray[np.int64], num_examples: int, steps: int) -> NDArray[Any]:
    """Divide once, so that only the ratio of the weights matters, not their scale.

    Quotient and remainder are exact integers; remainder / num_examples is one correctly rounded division of a ratio
    that stays the same when all weights are multiplied.
    """
    quotient, remainder = np.divmod(total_steps, num_examples)
    mean_steps = quotient.astype(np.float64) + remainder.astype(np.float64) / num_examples
    return (mean_steps / steps).astype(np.float32)
