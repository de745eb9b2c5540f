"""Krum and Multi-Krum: keep the updates that have the closest neighbours.

With n updates of which f may lie, the score of one is the sum of its squared distances to the n - f - 2 nearest others
(at least one). Krum takes the update of the lowest score, Multi-Krum the mean of the n - f lowest. f is the fraction
``attackers`` of n rounded up, at most (n - 3) / 2 as the method asks. Ties go to the name that sorts first.

Distances are taken over weights and beta, not over running statistics. They are exact: values become whole numbers
(weights: 256 per 1/127; beta: 1024 per 1.0), and a block's scalar products are sums of integers below 2^53, which
float64 carries exactly in any order.

Weights of updates do not count. With one device they return that device's update.
Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore.spec import ModelSpec
from bnncore.state import State
from server.strategies.base import UpdateReader
from server.strategies.fixed_point import blocks, require_updates, steps_by_tensor, to_fixed
from server.strategies.trimmed import VALUES_AT_ONCE, TrimmedRule

_WEIGHT_DISTANCE_STEPS = 127 * 256
_BETA_DISTANCE_STEPS = 1024


@dataclass(frozen=True)
class MultiKrum(TrimmedRule):
    """Mean of the updates that are closest to the others.

    Attributes:
      attackers: fraction of the updates that may lie.
    """

    name: ClassVar[str] = "multikrum"

    attackers: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("attackers", 0.0, 0.49)

    def aggregate(
        self, spec: ModelSpec, readers: Sequence[UpdateReader], base: State | None, *, is_difference: bool
    ) -> State:
        require_updates(len(readers))
        readers = sorted(readers, key=lambda reader: reader.name)
        liars = min(math.ceil(Fraction(repr(self.attackers)) * len(readers)), max(0, (len(readers) - 3) // 2))
        distances = squared_distances(spec, readers)
        neighbours = max(1, len(readers) - liars - 2)
        scores = [sum(sorted(row[:index] + row[index + 1 :])[:neighbours]) for index, row in enumerate(distances)]
        best = sorted(range(len(readers)), key=lambda index: scores[index])
        kept = [readers[index] for index in best[: self._kept(len(readers), liars)]]
        return super().aggregate(spec, kept, base, is_difference=is_difference)

    def _kept(self, num_updates: int, liars: int) -> int:
        return num_updates - liars

    def _left_out(self, num_updates: int) -> int:
        return 0


@dataclass(frozen=True)
class Krum(MultiKrum):
    """The one update that is closest to the others."""

    name: ClassVar[str] = "krum"

    def _kept(self, num_updates: int, liars: int) -> int:
        return 1


def squared_distances(spec: ModelSpec, readers: Sequence[UpdateReader]) -> list[list[int]]:
    """Return the exact squared distance between every two updates, in units of ``2^-4 / (127 * 256)^2``.

    Memory: one block of every update as float64.
    """
    count = len(readers)
    units = steps_by_tensor(spec)
    products = np.zeros((count, count), dtype=object)  # whole numbers without bound
    for tensor in spec.tensors:
        if tensor.is_statistic:
            continue
        is_weight = tensor.role == "weight"
        # 127 * 256 / 1024 = 127 / 4: products of beta count (127 / 4)^2 times, and all are multiplied by 16
        factor = 16 if is_weight else 127**2
        steps = _WEIGHT_DISTANCE_STEPS if is_weight else _BETA_DISTANCE_STEPS
        # weights: products below 2^33; beta below 2^42: sums of these many stay below 2^53
        at_most = 1 << 20 if is_weight else 1 << 11
        for block in blocks(math.prod(tensor.shape), min(at_most, max(1, VALUES_AT_ONCE // count))):
            values = np.stack(
                [_whole(reader.read(tensor.name, block), units[tensor.name], steps) for reader in readers]
            )
            products += (values @ values.T).astype(np.int64).astype(object) * factor
    squares = [int(products[index, index]) for index in range(count)]
    return [[squares[i] + squares[j] - 2 * int(products[i, j]) for j in range(count)] for i in range(count)]


def _whole(values: NDArray[Any], units: int, steps: int) -> NDArray[np.float64]:
    """Round values to whole steps, halves up, from the fixed point of sums."""
    ratio = units // steps
    return ((to_fixed(values, units) + ratio // 2) // ratio).astype(np.float64)
