"""What a job asks of each of its rounds, and how much it may ask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from server.errors import InvalidJobError
from server.jobs import JobConfig
from server.limits import Limits
from server.secure_jobs import SecureChoice


def check_limits(config: JobConfig, limits: Limits) -> None:
    """Check a job before anything of it is made.

    Raises:
      InvalidJobError: it asks too much.
    """
    model_bytes = 4 * config.spec.num_values
    if model_bytes > limits.max_model_bytes:
        raise InvalidJobError(
            f"the model has {model_bytes} bytes as float32, this coordinator takes {limits.max_model_bytes} at most "
            "(max_model_bytes)"
        )
    asked = max(config.min_devices, config.quorum or 1, asked_devices(config.cohort_size, config.over_select))
    if asked > limits.max_cohort:
        raise InvalidJobError(
            f"a round asks {asked} devices, this coordinator {limits.max_cohort} at most (max_cohort)"
        )
    secure = config.secure_aggregation
    if secure is not None and max(asked if secure.degree == 0 else 0, secure.degree + 1) > limits.max_neighbours + 1:
        raise InvalidJobError(
            f"a member of a round would share masks with {max(asked - 1, secure.degree)} others, this coordinator lets "
            f"it with {limits.max_neighbours} at most (max_neighbours); give secure_aggregation a smaller degree"
        )


def most_devices(secure: SecureChoice | None, limits: Limits) -> int:
    """Return how many devices a round asks at most where its job does not say it."""
    if secure is None or secure.degree:
        return limits.max_cohort
    return min(limits.max_cohort, limits.max_neighbours + 1)


def asked_devices(cohort_size: int, over_select: float) -> int:
    """Return how many devices a round gives its task; 0 = all."""
    return math.ceil(cohort_size * (1 + Fraction(repr(over_select))))


@dataclass(frozen=True)
class RoundRules:
    """What a job asks of each of its rounds."""

    round_number: int
    seed: int
    min_devices: int
    cohort_size: int
    """0 = every eligible device."""
    quorum: int | None
    """Accepted updates needed; None = the whole cohort."""
    deadline_s: float
    settle_s: float
    """Seconds between "enough devices" and the choice of the cohort, so that devices that start together all join."""
    max_attempts: int
    over_select: float = 0.0
    """Share of ``cohort_size`` that is asked beyond it; the round closes with the first ``cohort_size`` updates."""
    enough: int | None = None
    """Accepted updates at which the round closes, whoever is still training; None = when nobody is."""
    keeps_late: bool = False
    """Whether members that are still training then go on, for a later round."""
    min_members: int = 0
    """Updates that are added up under masks at least; 0: they are not masked."""

    @property
    def is_secure(self) -> bool:
        """Whether updates are added up under masks."""
        return self.min_members > 0

    @property
    def asked(self) -> int:
        """Devices that are given the task; 0 = all."""
        return asked_devices(self.cohort_size, self.over_select)

    @property
    def needed(self) -> int:
        """Devices without which no cohort is chosen: it could not reach its quorum."""
        return max(self.min_devices, self.quorum or 1, self.min_members)
