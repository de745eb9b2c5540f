"""How a weight gradient changes a layer: every optimizer in the order of operations of native/src/update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.optimizer import OptimizerConfig
from bnncore.reference.randomness import padded_index, random_halves, random_words, round_stochastic

__all__ = ["Moments", "Normaliser", "adam", "update_weights"]

_F = np.float32


@dataclass
class Moments:
    """State of a layer beside its latent weights, each [N, K]: int64 for the 8-bit optimizers, float32 for the others.

    ``latent8`` uses neither, only ``adam`` the second.
    """

    first: NDArray[Any]
    second: NDArray[Any]


@dataclass
class Normaliser:
    """The mean magnitude of a layer's weight gradients, averaged over the first steps and fixed from then on."""

    total: float = 0.0
    count: int = 0

    def gain(self, grad: NDArray[np.int64], unit: np.float32, o: OptimizerConfig) -> np.float32:
        """Give what a unit of ``grad``, worth ``unit``, is worth after normalisation; take it into account."""
        measured = float(unit) * float(np.abs(grad).sum()) / grad.size
        is_first = self.count == 0
        if is_first:  # the first step is measured before it is used
            self.total, self.count = measured, 1
        mean_abs = self.total / self.count
        if not is_first and self.count < o.normaliser_steps:
            self.total += measured
            self.count += 1
        return _F(float(unit) / mean_abs) if mean_abs > 0 else _F(0)


def update_weights(
    o: OptimizerConfig,
    weights: NDArray[Any],
    moments: Moments,
    grad: NDArray[np.int64],
    gain: np.float32,
    step_scale: float,
    step: int,
    stream: tuple[int, int],
) -> None:
    """Fold a weight gradient into latent weights [N, K] and moments, in place.

    Args:
      o: the optimizer's constants.
      weights: latent weights; under bop any numbers of the weights' signs.
      moments: as wide as the weights.
      grad: int64 [N, K].
      gain: what a unit of it is worth: for 8-bit optimizers after normalisation.
      step_scale: the schedule's factor.
      step: number of this step, from 1.
      stream: of this block and step, whose rows of weights begin a block of numbers each. A weight draws half a word,
        or, where its momentum is rounded too, the whole.
    """
    size = _F(o.step_size) * _F(step_scale)
    g = grad.astype(_F)
    u, m = weights, moments.first
    if o.name == "adam":
        adam(o, u, m, moments.second, g * gain, size, step)
        np.clip(u, _F(-1), _F(1), out=u)
        return
    if o.name == "sgd":
        m[...] = _F(o.momentum) * m + g * (gain * np.sqrt(_F(g.size)))
        u[...] = np.clip(u - size * m, _F(-1), _F(1))
        return
    rows, columns = grad.shape
    index = padded_index((rows, columns))
    if o.name == "latent8":
        u[...] = round_stochastic(u.astype(_F) - g * (gain * (size * _F(127))), random_halves(stream, index))
    elif o.name == "latent8m":
        words = random_words(stream, index)
        low, high = words & np.uint32(0xFFFF), words >> np.uint32(16)
        inflow = (_F(1) - _F(o.momentum)) * _F(o.momentum_unit)
        m[...] = round_stochastic(m.astype(_F) * _F(o.momentum) + g * (gain * inflow), low)
        u[...] = round_stochastic(u.astype(_F) - m.astype(_F) * (size * _F(127) / _F(o.momentum_unit)), high)
    elif o.name == "bop":
        gamma = _F(o.gamma) * _F(step_scale)
        inflow = gamma * _F(127) / _F(o.range)
        m[...] = round_stochastic(m.astype(_F) * (_F(1) - gamma) + g * (gain * inflow), random_halves(stream, index))
        along = np.where(u < 0, -m, m).astype(_F)
        u[...] = np.where(along > _F(o.threshold) * _F(127) / _F(o.range), -u, u)
    else:
        raise ValueError(f"the reference knows no optimizer {o.name!r}")


def adam(
    o: OptimizerConfig,
    value: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    grad: NDArray[Any],
    size: np.float32,
    step: int,
) -> None:
    """Move float32 parameters by Adam, in place; ``size`` is the step size, ``step`` counts from 1."""
    b1, b2 = _F(o.beta1), _F(o.beta2)
    power1 = power2 = 1.0
    for _ in range(step):
        power1 *= float(b1)
        power2 *= float(b2)
    first[...] = b1 * first + (_F(1) - b1) * grad
    second[...] = b2 * second + (_F(1) - b2) * (grad * grad)
    corrected, inverse = _F(float(size) / (1.0 - power1)), _F(1.0 / (1.0 - power2))
    value[...] = value - corrected * first / (np.sqrt(second * inverse) + _F(o.epsilon))
