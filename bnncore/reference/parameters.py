"""What a residual network trains beside its binary weights, and the delayed scales of its 8-bit gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.optimizer import OptimizerConfig
from bnncore.reference.norm import channels_of
from bnncore.reference.optimizers import Moments, adam
from bnncore.state import State

__all__ = ["Norm", "Parameter", "Scale"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_F = np.float32


@dataclass
class Scale:
    """A delayed scale: the decayed maximum of a gradient in real units; 0 means not measured yet."""

    largest: np.float32 = field(default_factory=lambda: _F(0))

    def measure(self, largest: np.float32, o: OptimizerConfig) -> None:
        """Take a first measurement; later ones change nothing."""
        if self.largest == 0:
            self.largest = _F(largest) / _F(o.headroom)

    def unit(self, o: OptimizerConfig) -> np.float32:
        """Give what a unit of the 8-bit gradient is worth."""
        return self.largest * (_F(o.headroom) / _F(127)) if self.largest > 0 else _F(1)

    def see(self, largest: np.float32, o: OptimizerConfig) -> None:
        """Remember this step's largest magnitude for the next."""
        self.largest = max(_F(largest), self.largest * _F(o.scale_decay))


class Parameter:
    """Real numbers that Adam trains: a beta, a bias, the weights of a real-valued layer."""

    def __init__(self, value: NDArray[Any]) -> None:
        self.value: Floats = value.astype(_F)
        self.moments = Moments(np.zeros_like(self.value), np.zeros_like(self.value))

    def update(self, grad: Floats, o: OptimizerConfig, step_scale: float, step: int) -> None:
        """Make one step of Adam; ``step`` counts from 1."""
        adam(o, self.value, self.moments.first, self.moments.second, grad, _F(o.beta_step_size) * _F(step_scale), step)


class Norm:
    """A batch norm, with the scale of its gradient."""

    def __init__(self, name: str, state: State) -> None:
        self.beta = Parameter(state[f"{name}.beta"])
        self.mean: Floats = state[f"{name}.mean"].copy()
        self.mean_abs_dev: Floats = state[f"{name}.mean_abs_dev"].copy()
        self.scale = Scale()

    def moments(self, y: Ints, exponent: int, step: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give mean and mean absolute deviation of y [J, N], 2^exponent units of which are 1.

        In step ``step`` they are its own, and the running ones follow; where that is None they are the running ones.
        """
        if step is None:
            mean, mean_abs_dev = (np.ldexp(v.astype(np.float64), exponent) for v in (self.mean, self.mean_abs_dev))
            return mean, mean_abs_dev
        c = channels_of(y)
        keep = _F(1) - _F(1) / _F(min(step + 1, 10))
        for running, value in ((self.mean, c.mean), (self.mean_abs_dev, c.mean_abs_dev)):
            running[...] = keep * running + (_F(1) - keep) * np.ldexp(value, -exponent).astype(_F)
        return c.mean, c.mean_abs_dev
