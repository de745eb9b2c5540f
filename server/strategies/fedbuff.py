"""FedBuff: buffered asynchronous averaging, ``w <- w + server_step * sum_i s_i d_i / sum_i s_i``.

A round ends as soon as ``quorum`` updates are there (the buffer). Members that are still training are not stopped: what
they send counts in the round in which it arrives, as the difference to the model that they started from, with weight
``s = n (1 + t)^-staleness_exponent`` where n is the device's examples and t the rounds that have ended since it was
given its task. Weights are rounded to whole examples, at least 1.

Memory: 8 bytes per parameter, whatever the number of devices.
Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022), Algorithm 1, with the weights
of its section 5; weighting by examples is FedAvg's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from server.errors import InvalidJobError
from server.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """FedAvg of differences to whichever model a device started from.

    Attributes:
      staleness_exponent: how fast an update loses weight with every round that ended while it was made.
      max_staleness: rounds after which a device that has not delivered is told to stop.
    """

    name: ClassVar[str] = "fedbuff"

    staleness_exponent: float = 0.5
    max_staleness: float = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("staleness_exponent", 0.0, 10.0)
        self._require("max_staleness", 0, 1000)
        if self.max_staleness != int(self.max_staleness):
            raise InvalidJobError(f"max_staleness of strategy {self.name!r} must be whole, got {self.max_staleness!r}")

    @property
    def needs_differences(self) -> bool:
        return True

    @property
    def late_rounds(self) -> int:
        return int(self.max_staleness)

    def weight_of(self, num_examples: int, staleness: int) -> int:
        return max(1, round(num_examples * (1 + staleness) ** -self.staleness_exponent)) if num_examples > 0 else 0
