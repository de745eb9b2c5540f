"""What ``bitfleet-server simulate`` is of: the data, their split over devices, the job, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError
from bnncore.spec import ModelSpec
from server.jobs import JobConfig, parse_job
from server.simulate.cast import Cast

_DEADLINE_S = 1e6
"""A round's: nobody waits in vain in a simulation, so no deadline may pass, however slow the machine is."""

_PHASE_S = 86_400.0
"""Of an exchange's step, in the same way."""


def timeless_job(values: Mapping[str, Any], cast: Cast) -> JobConfig:
    """Validate a job, given by its keys, as one that a cast of devices plays outside of time.

    Raises:
      ConfigurationError: attackers cannot be told from others in it.
      InvalidJobError: the network, a strategy, a codec and so on do not fit each other.
    """
    if values.get("secure_aggregation") is not None and cast.attackers:
        raise ConfigurationError("attackers cannot be told from others under secure aggregation; leave one of them out")
    changed: dict[str, Any] = {"device_labels": {}, "min_devices": cast.devices, "deadline_s": _DEADLINE_S}
    secure = values.get("secure_aggregation")
    if isinstance(secure, Mapping):
        changed["secure_aggregation"] = {**secure, "phase_s": _PHASE_S}
    values = {key: value for key, value in values.items() if key != "starts_at"}
    job = parse_job({**values, **changed})
    if job.quorum is not None or not (cast.absent or cast.attackers):
        return job
    # Whoever is there counts: members that are away, or whose poison was refused, are not waited for.
    changed["quorum"] = 1 if job.secure_aggregation is None else job.secure_aggregation.min_members
    return parse_job({**values, **changed})


@dataclass(frozen=True, kw_only=True)
class Scenario(Cast):
    """A simulation; two of the same fields end in the same digest.

    Raises:
      ConfigurationError: fields contradict each other; the message names the options.
    """

    spec: ModelSpec
    dataset: str
    data: Path | None
    """Folder of the data set; None: where its name is enough, or BITFLEET_DATA."""
    classes: tuple[str, ...]
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
    local_tensors: tuple[str, ...] = ()
    """Patterns of the names of tensors that stay on devices."""
    local_validation: float = 0.0
    preset: str = "bitfleet"
    optimizer: str | None = None
    step_schedule: str = "linear"
    secure: dict[str, float] | None = None
    """Secure aggregation: keys of the job's ``secure_aggregation``; None: updates travel in the clear."""
    privacy: dict[str, Any] | None = None
    """Differential privacy: keys of the job's ``privacy``; None: none. Its noise is never of the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort > self.devices:
            raise ConfigurationError(f"--cohort must be at most --devices ({self.devices}), got {self.cohort}")

    def job(self) -> JobConfig:
        """Build the job.

        Raises:
          InvalidJobError: the network, a strategy, a codec and so on do not fit each other.
        """
        return timeless_job(
            {
                "name": "simulation",
                "model": {"spec": self.spec.to_dict()},
                "classes": list(self.classes),
                "input_shape": list(self.spec.input_shape),
                "rounds": self.rounds,
                "cohort_size": self.cohort,
                "secure_aggregation": self.secure,
                "privacy": self.privacy,
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
                "local_tensors": list(self.local_tensors),
                "local_validation": self.local_validation,
                "seed": self.seed,
                "evaluation": {"dataset": self.dataset, "data": None if self.data is None else str(self.data)},
            },
            self,
        )

    def to_json(self) -> str:
        """Write all fields as canonical JSON, for the work folder: it says what the folder is of."""
        fields: dict[str, Any] = {**asdict(self), "spec": self.spec.to_dict(), "alpha": str(self.alpha)}
        fields["data"] = None if self.data is None else str(self.data)
        return json.dumps(fields, sort_keys=True, indent=1) + "\n"
