"""What devices measured, inside the sum: a coordinator learns the cohort's means and no device's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import PayloadError

__all__ = ["MetricSums", "Metrics"]

_FRACTION = 2**16
_LOSS_FRACTION = 2**6
_MAX_LOSS = 2.0**8
_LARGEST = 2**32 - 1


@dataclass(frozen=True)
class Metrics:
    """One device's measurements.

    Attributes:
      loss: mean of the local steps, nats; told up to 256, in units of 2^-16.
      accuracy: mean of the local steps, 0 to 1, in units of 2^-16.
      validation_examples: of the device's validation part; 0: it has none.
      validation_correct: classified right of those.
      validation_loss: mean over those, nats; told times their number, in units of 2^-6.
    """

    loss: float = 0.0
    accuracy: float = 0.0
    validation_examples: int = 0
    validation_correct: int = 0
    validation_loss: float = 0.0

    def to_numbers(self) -> NDArray[np.int64]:
        """Give int64 [5], each within 0 .. 2^32 - 1.

        Raises:
          PayloadError: one is not finite, negative, or an accuracy above 1.
        """
        if not (self.loss >= 0 and 0 <= self.accuracy <= 1 and self.validation_loss >= 0):
            raise PayloadError(f"losses must be at least 0 and accuracy within 0 to 1, got {self}")
        if not 0 <= self.validation_correct <= self.validation_examples <= _LARGEST or math.isinf(self.loss):
            raise PayloadError(f"a loss must be finite, and no more be right than were looked at, got {self}")
        total = min(self.validation_loss, _MAX_LOSS) * self.validation_examples * _LOSS_FRACTION
        return np.array(
            [
                round(min(self.loss, _MAX_LOSS) * _FRACTION),
                round(self.accuracy * _FRACTION),
                self.validation_examples,
                self.validation_correct,
                min(round(total), _LARGEST),
            ],
            dtype=np.int64,
        )


@dataclass(frozen=True)
class MetricSums:
    """A cohort's measurements.

    Attributes:
      loss: mean over devices, nats.
      accuracy: mean over devices, 0 to 1.
      validation_examples: of all devices.
      validation_correct: classified right of those.
      validation_loss: mean over those examples, nats; 0 where there are none.
    """

    loss: float
    accuracy: float
    validation_examples: int
    validation_correct: int
    validation_loss: float

    @classmethod
    def from_sums(cls, sums: NDArray[np.int64], num_members: int) -> MetricSums:
        """Read the sum of ``Metrics.to_numbers`` of so many devices."""
        loss, accuracy, examples, correct, total = (int(number) for number in sums)
        return cls(
            loss / _FRACTION / num_members,
            accuracy / _FRACTION / num_members,
            examples,
            correct,
            total / _LOSS_FRACTION / examples if examples else 0.0,
        )
