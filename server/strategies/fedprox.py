"""FedProx: FedAvg at the server; on the device every local step pulls the weights back to the round's model.

The pull is the gradient of ``mu / 2 |w - w0|^2``, so devices with different data drift apart less. It is part of the
task that a device is given (``bnncore.federated.proximal``); the server sees only its effect.
Source: Li et al., "Federated Optimization in Heterogeneous Networks" (2020), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from server.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term on devices.

    Attributes:
      mu: strength of the pull; 0 is FedAvg. A weight comes back by mu times the optimizer's step size a step.
    """

    name: ClassVar[str] = "fedprox"

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("mu", 0.0, 100.0)

    @property
    def proximal_mu(self) -> float:
        return self.mu
