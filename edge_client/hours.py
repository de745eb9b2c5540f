"""The hours of the day in which a device's owner lets it train, by the device's own clock and time zone."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Hours", "read_hours"]

_SPAN = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True)
class Hours:
    """Spans of a day, in minutes since midnight: the first minute is in, the last is not.

    One that ends before it begins crosses midnight.
    """

    spans: tuple[tuple[int, int], ...]

    def include(self, minute: int) -> bool:
        """Say whether a minute of the day lies in one of the spans."""
        return any(
            first <= minute < last if first < last else minute >= first or minute < last for first, last in self.spans
        )

    def __str__(self) -> str:
        return ",".join(f"{_clock(first)}-{_clock(last)}" for first, last in self.spans)


def read_hours(text: str) -> Hours:
    """Read spans such as ``22:00-06:00,12:30-13:30``.

    Raises:
      ValueError: they are none; the message begins with what they must be.
    """
    spans = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"must be spans of the day such as 22:00-06:00,12:30-13:30, got {text!r:.80}")
        first, last = (_minute(int(match[hour]), int(match[hour + 1]), part) for hour in (1, 3))
        if first == last:
            raise ValueError(f"must be spans that last; {part.strip()} does not. A whole day is 00:00-24:00")
        spans.append((first, last))
    return Hours(tuple(spans))


def _minute(hour: int, minute: int, text: str) -> int:
    if hour > 24 or minute > 59 or (hour == 24 and minute):
        raise ValueError(f"must be times from 00:00 to 24:00, got {text.strip()!r:.80}")
    return 60 * hour + minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
