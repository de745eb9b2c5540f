"""Fixed point: every value becomes a whole number of steps once, and all that follows is integer addition.

So a sum does not depend on order. Units, chosen so that ``int64`` cannot overflow with weights of at most 2^30 in a
round:

====================  =====================  ==========================================================
tensor                steps per 1.0          why
====================  =====================  ==========================================================
weight, int8, int16   2^24 per 1/127         exact: such a weight is a whole number of 1/127
weight, signs, int32  2^16 per fine unit     exact: a fine unit is 1/256 of 1/127
weight, float32       127 * 2^24             the same unit, so all kinds may meet in one sum
beta, bias, weight    2^22                   real-valued parameters: |beta| < 2^10
of a real layer
mean, mean_abs_dev    2^(31 - b)             |pre-activation| <= 2^b, known from the fan-in of a binary layer; after a
                                             real-valued one b is 16, or 20 if it reads the samples, which reach 255
====================  =====================  ==========================================================

Differences have the same units; one of a weight lies within +-2, or 2^16 fine units. Everything is done in blocks, so
no function here needs memory in proportion to a tensor beyond what it returns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor, statistic_bounds
from bnncore.errors import PayloadError
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.strategies.base import Accumulator, Update

MAX_WEIGHT = 2**20
"""The largest weight of one update."""
MAX_TOTAL_WEIGHT = 2**30
"""The largest sum of weights in a round: 2^30 * 2^33 = 2^63, which no value reaches."""

WEIGHT_SHIFT = 24
FINE_SHIFT = 16
_WEIGHT_UNITS = 127 * 2**WEIGHT_SHIFT
_MAX_STEPS = 2**32
_REAL_BITS = 10
"""A real-valued parameter lies within +-2^10."""
_REAL_BOUND, _SAMPLES_BOUND = 2**16, 2**20
_BLOCK = 1 << 16
_UNITS: dict[np.dtype[Any], float] = {
    np.dtype(np.float32): 1.0,
    np.dtype(np.int8): 127.0,
    np.dtype(np.int16): 127.0,
    np.dtype(np.int32): 127.0 * 256,
}
"""Units per 1.0 of what may stand in an update."""


@functools.lru_cache(maxsize=8)
def steps_by_tensor(spec: ModelSpec) -> Mapping[str, int]:
    """Return the fixed-point steps per 1.0 of each tensor, in the spec's order."""
    bounds = statistic_bounds(spec)
    sees_samples = spec.tensors[0].name
    steps: dict[str, int] = {}
    layer = ""
    for tensor in spec.tensors:
        if tensor.role in ("weight", "real_weight"):
            layer = tensor.name
        if tensor.role == "weight":
            steps[tensor.name] = _WEIGHT_UNITS
        elif tensor.is_statistic:
            bound = bounds.get(tensor.name, _SAMPLES_BOUND if layer == sees_samples else _REAL_BOUND)
            # one bit more, for rounding of a statistic that sits on the bound
            steps[tensor.name] = _MAX_STEPS >> bound.bit_length()
        else:
            steps[tensor.name] = _MAX_STEPS >> _REAL_BITS
    return MappingProxyType(steps)


def blocks(size: int, length: int = _BLOCK) -> Iterator[slice]:
    """Cut ``range(size)`` into slices of at most ``length``."""
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def check_update(accumulator: Accumulator, update: Update, weight: int) -> None:
    """Check what ``add_update`` is about to add.

    Raises:
      PayloadError: the weight or a value is more than the fixed point can carry, or not a number.
    """
    check_values(accumulator.spec, update, weight, is_difference=accumulator.is_difference)
    check_total(accumulator.total_weight + weight)


def check_total(total: int) -> None:
    """Check the sum of a round's weights; raises PayloadError where it is more than the fixed point can carry."""
    if total > MAX_TOTAL_WEIGHT:
        raise PayloadError(f"a round carries at most {MAX_TOTAL_WEIGHT} examples, this update would make {total}")


def check_values(spec: ModelSpec, update: Update, weight: int, *, is_difference: bool) -> None:
    """Check one update by itself.

    Raises:
      PayloadError: the weight or a value is more than the fixed point can carry, or not a number.
    """
    if not 1 <= weight <= MAX_WEIGHT:
        raise PayloadError(f"num_examples must be 1 to {MAX_WEIGHT}, got {weight}")
    for name, steps in steps_by_tensor(spec).items():
        tensor = update[name]
        if not isinstance(tensor, SignTensor):  # whose scales cannot be too large: 2^16 fine units are 2.02
            _check_magnitude(name, tensor, steps, is_difference=is_difference)


def _check_magnitude(name: str, tensor: NDArray[Any], steps: int, *, is_difference: bool) -> None:
    """Check that a tensor's values lie within what ``steps`` are for; also refuses NaN."""
    limit = 1.0 if steps == _WEIGHT_UNITS and not is_difference else _MAX_STEPS / steps
    worst = max(-float(tensor.min()), float(tensor.max())) / _UNITS[tensor.dtype]
    if not worst <= limit:
        raise PayloadError(f"tensor {name!r} must lie within +-{limit:g}, its largest magnitude is {worst:g}")


def add_update(accumulator: Accumulator, update: Update, weight: int) -> None:
    """Add ``weight`` times an update that was checked."""
    steps = steps_by_tensor(accumulator.spec)
    signs: dict[str, SignTensor] = {}
    for name, sums in accumulator.sums.items():
        tensor = update[name]
        if isinstance(tensor, SignTensor):
            signs[name] = tensor
        else:
            add_tensor(sums.reshape(-1), tensor.reshape(-1), steps[name], weight)
    if signs:
        accumulator.add_signs(signs, weight << FINE_SHIFT)
    accumulator.total_weight += weight
    accumulator.num_updates += 1


def add_tensor(sums: NDArray[np.int64], values: NDArray[Any], steps: int, weight: int) -> None:
    """Add ``weight`` times a tensor to its sums; both are flat."""
    for block in blocks(sums.size):
        sums[block] += to_fixed(values[block], steps) * weight


def add_sums(
    accumulator: Accumulator,
    sums: Mapping[str, NDArray[np.int64]],
    units: Mapping[str, float],
    num_updates: int,
) -> None:
    """Add whole-number sums of many updates, each of weight 1; tensors that have none are left as they are.

    Args:
      accumulator: to add to.
      sums: int64 of each tensor's shape.
      units: what 1.0 is in them, of which the accumulator's steps are a multiple.
      num_updates: how many updates were added up.

    Raises:
      PayloadError: they are more than a round carries; nothing has changed.
    """
    total = accumulator.total_weight + num_updates
    if total > MAX_TOTAL_WEIGHT:
        raise PayloadError(f"a round carries at most {MAX_TOTAL_WEIGHT} updates, these would make {total}")
    steps = steps_by_tensor(accumulator.spec)
    for name, values in sums.items():
        accumulator.sums[name] += values * _factor(steps[name], units[name])
    accumulator.total_weight = total
    accumulator.num_updates += num_updates


def _factor(steps: int, units: float) -> int:
    factor = Fraction(steps) / Fraction(units)
    if factor.denominator != 1:
        raise PayloadError(f"{steps} steps per 1.0 must be a multiple of the {units} units that sums are told in")
    return factor.numerator


def merge_sums(accumulator: Accumulator, other: Accumulator) -> Accumulator:
    """Add two accumulators of the same network.

    Raises:
      PayloadError: their weights are more than one round carries.
    """
    total = accumulator.total_weight + other.total_weight
    if total > MAX_TOTAL_WEIGHT:
        raise PayloadError(f"a round carries at most {MAX_TOTAL_WEIGHT} examples, the merged sums hold {total}")
    accumulator.settle()
    other.settle()
    return Accumulator(
        accumulator.spec,
        sums={name: sums + other.sums[name] for name, sums in accumulator.sums.items()},
        is_difference=accumulator.is_difference,
        total_weight=total,
        num_updates=accumulator.num_updates + other.num_updates,
    )


def to_fixed(tensor: NDArray[Any], steps: int) -> NDArray[np.int64]:
    """Turn values into whole steps; int8 and int16 are weights in units of 1/127, int32 in fine units."""
    if tensor.dtype != np.float32:
        return tensor.astype(np.int64) << (FINE_SHIFT if tensor.dtype == np.int32 else WEIGHT_SHIFT)
    # float32 times an integer below 2^32 is exact in float64 up to 2^53 steps; rint is the only rounding.
    return np.rint(tensor.astype(np.float64) * steps).astype(np.int64)


def divide(total_steps: NDArray[np.int64], total_weight: int, steps: int) -> NDArray[np.float64]:
    """Divide once, so that only the ratio of the weights matters, not their scale.

    Quotient and remainder are exact integers; remainder / total_weight is one correctly rounded division of a ratio
    that stays the same when all weights are multiplied.
    """
    quotient, remainder = np.divmod(total_steps, total_weight)
    mean_steps: NDArray[np.float64] = quotient.astype(np.float64) + remainder.astype(np.float64) / total_weight
    return mean_steps / steps


def mean(accumulator: Accumulator, name: str) -> NDArray[np.float32]:
    """Return a tensor's weighted mean."""
    steps, sums = steps_by_tensor(accumulator.spec)[name], accumulator.sums[name]
    result = np.empty(sums.shape, np.float32)
    flat, flat_sums = result.reshape(-1), sums.reshape(-1)
    for block in blocks(flat.size):
        flat[block] = divide(flat_sums[block], accumulator.total_weight, steps)
    return result


def complete(accumulator: Accumulator) -> None:
    """Make an accumulator's sums ready to be divided.

    Raises:
      PayloadError: nothing was folded in.
    """
    require_updates(accumulator.num_updates)
    accumulator.settle()


def require_updates(num_updates: int) -> None:
    """Refuse to make a model of nothing.

    Raises:
      PayloadError: there was no update.
    """
    if num_updates == 0:
        raise PayloadError("at least one update is needed to make a model, none was folded in")


def require_base(base: State | None) -> State:
    """Refuse to apply differences to nothing.

    Raises:
      PayloadError: there is no base.
    """
    if base is None:
        raise PayloadError("differences were folded in: the model that the round started from is needed")
    return base


def moved(base: NDArray[np.float32], step: NDArray[np.float64], *, is_weight: bool) -> NDArray[np.float32]:
    """Add a step to parameters, in float64, and keep them in range: [-1, 1], or +-2^10 where they are real-valued."""
    limit = 1.0 if is_weight else 2.0**_REAL_BITS
    return np.clip(base.astype(np.float64) + step, -limit, limit).astype(np.float32)
