"""FedAdam and FedYogi: an adaptive optimizer at the server, fed with the round's mean difference d.

Per parameter, from m = 0 and v = tau^2::

    m <- beta1 m + (1 - beta1) d
    v <- beta2 v + (1 - beta2) d^2                       FedAdam
    v <- v - (1 - beta2) d^2 sign(v - d^2)               FedYogi
    w <- w + learning_rate m / (sqrt(v) + tau)

Weights stay within [-1, 1]. Running statistics are no parameters: they are the weighted mean of the devices'.
Arithmetic is float64 element by element, m and v are kept as float32: 8 bytes per parameter beside the sums.
Source: Reddi et al., "Adaptive Federated Optimization" (2021), Algorithm 2, with their ``v_-1 = tau^2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from server.strategies.server_optimizer import ServerOptimizer, Slots


@dataclass(frozen=True)
class FedAdam(ServerOptimizer):
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

    def slots(self) -> dict[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
        first = self.beta1 * memory["m"].astype(np.float64) + (1 - self.beta1) * difference
        second = self._second_moment(memory["v"].astype(np.float64), difference * difference)
        memory["m"][:], memory["v"][:] = first, second
        step: NDArray[np.float64] = self.learning_rate * first / (np.sqrt(second) + self.tau)
        return step

    def _second_moment(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi at the server: the second moment moves by an amount that does not depend on how far off it is."""

    name: ClassVar[str] = "fedyogi"

    def _second_moment(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return v - (1 - self.beta2) * square * np.sign(v - square)
