"""How often one may ask: so many times a minute from one address or device, and from all together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from server.errors import TooManyRequestsError

_WINDOW_S = 60.0


class Throttle:
    """Counts requests in windows of a minute; memory is bounded by what one window takes.

    Args:
      per_origin: most requests from one address or device in a window.
      in_all: most requests in a window; None: as many as those allow.
    """

    def __init__(
        self, *, per_origin: int, in_all: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_origin = per_origin
        self._in_all = in_all
        self._clock = clock
        self._window = -1
        self._counts: Counter[str] = Counter()
        self._num_admitted = 0

    def admit(self, origin: str) -> None:
        """Count a request.

        Raises:
          TooManyRequestsError: there were too many; the message says when to come again.
        """
        now = self._clock()
        window = int(now // _WINDOW_S)
        if window != self._window:
            self._window, self._counts, self._num_admitted = window, Counter(), 0
        is_full = self._in_all is not None and self._num_admitted >= self._in_all
        if is_full or self._counts[origin] >= self._per_origin:
            left_s = (window + 1) * _WINDOW_S - now
            raise TooManyRequestsError(f"too many requests in this minute; try again in {left_s:.0f} s")
        self._counts[origin] += 1
        self._num_admitted += 1

    def forgive(self, origin: str) -> None:
        """Take back what ``admit`` counted: the request proved to be none of those that are bounded."""
        if self._counts[origin] > 0:  # else it was of an earlier window
            self._counts[origin] -= 1
            self._num_admitted -= 1
