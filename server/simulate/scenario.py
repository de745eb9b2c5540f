"""What a simulation is of: the data, their split over devices, the job, and what goes wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from server.jobs import JobConfig, parse_job
from server.simulate.attack import ATTACKS

_DEADLINE_S = 1e6
"""A round's: nobody waits in vain in a simulation, so no deadline may pass, however slow the machine is."""


@dataclass(frozen=True)
class Scenario:
    """A simulation; two of the same fields end in the same digest.

    Raises:
      ConfigurationError: fields contradict each other; the message names the options.
    """

    spec: ModelSpec
    dataset: str
    data: Path | None
    """Folder of the data set; None: where its name is enough, or BITFLEET_DATA."""
    classes: tuple[str, ...]
    devices: int
    cohort: int
    rounds: int
    local_steps: int
    batch_size: int = 100
    alpha: float = float("inf")
    """Dirichlet parameter of the split; infinity = all devices alike."""
    strategy: str = "fedavg"
    strategy_params: dict[str, float] = field(default_factory=dict)
    up_codec: str = "int8"
    down_codec: str = "int8"
    statistics_batches: int = 0
    preset: str = "bitfleet"
    optimizer: str | None = None
    step_schedule: str = "linear"
    absent: float = 0.0
    """Chance of each device of a cohort to be away in a round."""
    attackers: int = 0
    """Devices that send poisoned updates."""
    attack: str | None = None
    """What they send, a key of ``attack.ATTACKS``."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cohort > self.devices:
            raise ConfigurationError(f"--cohort must be at most --devices ({self.devices}), got {self.cohort}")
        if not 0 <= self.absent < 1:
            raise ConfigurationError(f"--absent must be in [0, 1), got {self.absent}")
        if self.attackers > self.devices:
            raise ConfigurationError(f"--attackers must be at most --devices ({self.devices}), got {self.attackers}")
        if (self.attackers > 0) != (self.attack is not None):
            raise ConfigurationError("--attackers and --attack need each other: how many devices, and what they send")
        if self.attack is not None and self.attack not in ATTACKS:
            raise ConfigurationError(f"--attack must be one of {', '.join(ATTACKS)}, got {self.attack!r}")

    def device_id(self, number: int) -> str:
        """Name the device of a shard, counted from 0."""
        return f"device-{number + 1:0{len(str(self.devices))}}"

    def is_attacker(self, number: int) -> bool:
        """Say whether the device of a shard sends poison: the first ones, since shards are drawn at random anyway."""
        return number < self.attackers

    def is_absent(self, round_number: int, device_id: str) -> bool:
        """Say whether a device is away in a round: a function of (seed, round, device)."""
        return derive_seed("absent", self.seed, round_number, device_id) < self.absent * 2.0**64

    def job(self) -> JobConfig:
        """Build the job.

        Raises:
          InvalidJobError: the network, a strategy, a codec and so on do not fit each other.
        """
        return parse_job(
            {
                "name": "simulation",
                "model": {"spec": self.spec.to_dict()},
                "classes": list(self.classes),
                "input_shape": list(self.spec.input_shape),
                "rounds": self.rounds,
                "min_devices": self.devices,
                "cohort_size": self.cohort,
                # Whoever is there counts: members that are away, or whose poison was refused, are not waited for.
                "quorum": 1 if self.absent or self.attackers else None,
                "deadline_s": _DEADLINE_S,
                "local_steps": self.local_steps,
                "batch_size": self.batch_size,
                "preset": self.preset,
                "optimizer": self.optimizer,
                "step_schedule": self.step_schedule,
                "strategy": self.strategy,
                "strategy_params": self.strategy_params,
                "up_codec": self.up_codec,
                "down_codec": self.down_codec,
                "statistics_batches": self.statistics_batches,
                "seed": self.seed,
                "evaluation": {"dataset": self.dataset, "data": None if self.data is None else str(self.data)},
            }
        )

    def to_json(self) -> str:
        """Write all fields as canonical JSON, for the work folder: it says what the folder is of."""
        fields: dict[str, Any] = {**asdict(self), "spec": self.spec.to_dict(), "alpha": str(self.alpha)}
        fields["data"] = None if self.data is None else str(self.data)
        return json.dumps(fields, sort_keys=True, indent=1) + "\n"
