"""Who takes part in a simulation: the devices by name, with their samples, and what goes wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.data import Dataset, dirichlet_shards
from bnncore.errors import ConfigurationError
from bnncore.seeds import derive_seed
from server.simulate.attack import ATTACKS


@dataclass(frozen=True)
class Share:
    """The samples of a device: some of a data set, or all of it.

    Attributes:
      dataset: an open one.
      indices: uint32 [n], which of its samples; None: all.
    """

    dataset: Dataset
    indices: NDArray[np.uint32] | None = None

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self.dataset.num_examples if self.indices is None else len(self.indices)

    @property
    def numbers(self) -> NDArray[np.uint32]:
        """Which of the data set's samples they are, uint32 [n]."""
        return np.arange(self.num_examples, dtype=np.uint32) if self.indices is None else self.indices

    def open(self) -> Dataset:
        """Open them once more; the caller closes what it gets."""
        return self.dataset.subset(self.numbers)


def split(dataset: Dataset, devices: int, alpha: float, seed: int) -> list[Share]:
    """Split a data set over devices; see ``dirichlet_shards``."""
    return [Share(dataset, indices) for indices in dirichlet_shards(dataset.labels, devices, alpha, seed)]


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Devices, and what goes wrong with them.

    Raises:
      ConfigurationError: fields contradict each other; the message names them.
    """

    devices: int
    absent: float = 0.0
    """Chance of each device of a cohort to be away in a round."""
    attackers: int = 0
    """Devices that send poisoned updates."""
    attack: str | None = None
    """What they send, a key of ``attack.ATTACKS``."""
    has_masks: bool = True
    """Whether devices really mask under secure aggregation: without, the same vectors are added up in the same ring."""
    seed: int = 0
    """Decides who is away."""

    def __post_init__(self) -> None:
        if not 0 <= self.absent < 1:
            raise ConfigurationError(f"absent must be in [0, 1), got {self.absent}")
        if self.attackers > self.devices:
            raise ConfigurationError(f"attackers must be at most the devices ({self.devices}), got {self.attackers}")
        if (self.attackers > 0) != (self.attack is not None):
            raise ConfigurationError("attackers and attack need each other: how many devices, and what they send")
        if self.attack is not None and self.attack not in ATTACKS:
            raise ConfigurationError(f"attack must be one of {', '.join(ATTACKS)}, got {self.attack!r}")

    def device_id(self, number: int) -> str:
        """Name the device of a share, counted from 0."""
        return f"device-{number + 1:0{len(str(self.devices))}}"

    def is_attacker(self, number: int) -> bool:
        """Say whether the device of a share sends poison: the first ones, since shards are drawn at random anyway."""
        return number < self.attackers

    def is_absent(self, round_number: int, device_id: str) -> bool:
        """Say whether a device is away in a round: a function of (seed, round, device)."""
        return derive_seed("absent", self.seed, round_number, device_id) < self.absent * 2.0**64
