"""How long to wait before trying again: longer each time, never the same for two devices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

__all__ = ["backoff"]

FIRST_S = 0.5
"""Nominal first wait, in seconds."""

CAP_S = 30.0
"""No wait is longer, in seconds."""


def backoff(
    *, first_s: float = FIRST_S, cap_s: float = CAP_S, uniform: Callable[[], float] = random.random
) -> Iterator[float]:
    """Yield waits without end: half of ``min(cap, first * 2**k)`` plus a random part of the other half.

    The random half keeps a fleet from coming back all at once when its coordinator does.

    Args:
      first_s: nominal first wait, in seconds.
      cap_s: bound on every wait, in seconds.
      uniform: gives numbers in [0, 1).

    Yields:
      Seconds, each in [nominal / 2, nominal).
    """
    nominal = min(first_s, cap_s)
    while True:
        yield nominal * (1 + uniform()) / 2
        nominal = min(nominal * 2, cap_s)
