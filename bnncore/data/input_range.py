"""The range of real numbers: how what a sensor measures becomes the 8-bit input of a network.

The same constants on every device make the same number mean the same thing, so a job names them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import DataError

__all__ = ["InputRange"]


@dataclass(frozen=True)
class InputRange:
    """What becomes 0 and what becomes 255.

    Attributes:
      low: smallest value of each channel, which is the last axis of a sample; or one value for all.
      high: largest value of each channel, each above its ``low``; as many.

    Raises:
      DataError: they are not as above, or not finite.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", tuple(map(float, self.low)))
        object.__setattr__(self, "high", tuple(map(float, self.high)))
        if not self.low or len(self.low) != len(self.high):
            raise DataError(
                f"a range must have as many low as high values, one or more, got {len(self.low)} and {len(self.high)}"
            )
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not 0 < high - low < math.inf:
                raise DataError(f"a range must have finite low < high, got {low:g} and {high:g} of channel {channel}")

    @staticmethod
    def parse(text: str) -> InputRange:
        """Read ``LOW,HIGH``, the same for all channels.

        Raises:
          DataError: the text is something else.
        """
        try:
            low, high = map(float, text.split(","))
        except ValueError as error:
            raise DataError(f"a range must be LOW,HIGH, such as -2,2, got {text!r}") from error
        return InputRange((low,), (high,))

    @staticmethod
    def from_dict(value: dict[str, Any]) -> InputRange:
        """Read what ``to_dict`` gave."""
        return InputRange(tuple(value["low"]), tuple(value["high"]))

    def to_dict(self) -> dict[str, list[float]]:
        """Give it as a job's ``input_range`` and a checkpoint have it."""
        return {"low": list(self.low), "high": list(self.high)}

    def check_fits(self, input_shape: Sequence[int]) -> None:
        """Raise DataError unless it is for samples of this shape."""
        if len(self.low) not in (1, input_shape[-1]):
            raise DataError(
                f"a range for samples of shape {list(input_shape)} must have 1 or {input_shape[-1]} low and high "
                f"values (one for each channel, the last axis), got {len(self.low)}"
            )

    def quantise(self, values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Turn values into u = round((clip(v, low, high) - low) * 255 / (high - low)), ties to even.

        Args:
          values: [..., channels], not NaN.

        Returns:
          uint8 of the same shape.

        Memory: 16 bytes a value.
        """
        low, high = np.array(self.low), np.array(self.high)
        scaled = np.clip(values.astype(np.float64), low, high)
        scaled -= low
        scaled *= 255 / (high - low)
        np.rint(scaled, out=scaled)
        return scaled.astype(np.uint8)
