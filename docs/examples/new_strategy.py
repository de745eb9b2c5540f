"""A new strategy in thirty lines: FedAvg with momentum at the server, compared with plain FedAvg on uneven devices.

Run it with: python docs/examples/new_strategy.py
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnncore import open_dataset
from server.notebook import federate
from server.strategies import ServerOptimizer
from server.strategies.server_optimizer import Slots


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """FedAvgM: v <- momentum v + d, w <- w + rate v, where d is the devices' mean difference.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution" (2019), section 4.
    """

    name: ClassVar[str] = "fedavgm"

    rate: float = 1.0
    momentum: float = 0.5

    def __post_init__(self) -> None:
        self._require("rate", 0.0, 10.0, above=True)
        self._require("momentum", 0.0, 0.99)

    def slots(self) -> dict[str, float]:
        """Remember a velocity for each parameter, 0 before the first round."""
        return {"velocity": 0.0}

    def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
        """Move by the velocity."""
        velocity = self.momentum * memory["velocity"].astype(np.float64) + difference
        memory["velocity"][:] = velocity
        return self.rate * velocity


def main() -> None:
    """Play the same job under both."""
    job = {"model": {"zoo": "mlp", "params": {"widths": [64]}}, "rounds": 6, "local_steps": 10, "batch_size": 20}
    with open_dataset("digits", None, split="train") as samples, open_dataset("digits", None, split="test") as held_out:
        for strategy in ("fedavg", FedAvgM(momentum=0.5)):
            history = federate(
                job, dataset=samples, num_devices=6, alpha=0.3, evaluation=held_out, strategy=strategy, progress=False
            )
            by_round = ", ".join(f"{round_.accuracy:.1f}" for round_ in history)
            print(f"{history.job.strategy}: {by_round} % after each round")


if __name__ == "__main__":
    main()
