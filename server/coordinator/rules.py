"""What a job asks of each of its rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


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

    @property
    def asked(self) -> int:
        """Devices that are given the task; 0 = all."""
        return math.ceil(self.cohort_size * (1 + Fraction(repr(self.over_select))))

    @property
    def needed(self) -> int:
        """Devices without which no cohort is chosen: it could not reach its quorum."""
        return max(self.min_devices, self.quorum or 1)
