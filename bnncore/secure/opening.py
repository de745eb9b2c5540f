"""How a member's secret is opened from the shares that its holders reveal, some of which may be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping

from bnncore.errors import PayloadError
from bnncore.secure.shamir import join, value_at

__all__ = ["Check", "Opening"]

Check = Callable[[bytes], bool]
"""Whether this is the secret that was committed to."""
_MAX_TRIALS = 500
"""Sets of shares tried at most: enough to leave out any two of 30."""


class Opening:
    """One secret that is being opened.

    Args:
      places: each holder's position.
      needed: shares that open it.
      is_secret: recognises it.

    Attributes:
      wrong: holders whose shares are not of the same polynomial as those that opened it. Two that lie in concert may
        have others named; the secret is the right one all the same.
      secret: the secret; empty until it was opened.
    """

    def __init__(self, places: Mapping[str, int], needed: int, is_secret: Check) -> None:
        self._places = places
        self._needed = needed
        self._is_secret = is_secret
        self._shares: dict[str, bytes] = {}
        self.wrong: set[str] = set()
        self.secret = b""

    @property
    def is_ready(self) -> bool:
        """Whether enough shares came."""
        return len(self._shares) >= self._needed

    def add(self, holder: str, share: bytes) -> None:
        """Take a holder's share."""
        self._shares[holder] = share

    def open(self, doubted: Collection[str] = ()) -> bool:
        """Find the secret, and those whose shares are not of it; False when the right shares are too few.

        Args:
          doubted: holders that sent wrong shares of another secret: theirs are used last.
        """
        if self.secret:
            return True
        trusted = sorted(self._shares, key=lambda holder: (holder in doubted, holder))
        for chosen in itertools.islice(self._choices(trusted), _MAX_TRIALS):
            points = {self._places[holder]: self._shares[holder] for holder in chosen}
            try:
                secret = join(points)
            except PayloadError:
                continue
            if self._is_secret(secret):
                self.secret = secret
                self.wrong = {
                    holder
                    for holder in self._shares.keys() - set(chosen)
                    if value_at(self._places[holder], points) != self._shares[holder]
                }
                return True
        return False

    def _choices(self, holders: list[str]) -> Iterator[tuple[str, ...]]:
        """Give sets of as many shares as needed: first without the last ones, then without few others, then more."""
        spare = len(holders) - self._needed
        yield tuple(holders[: self._needed])
        for left_out in range(1, spare + 1):
            for without in itertools.combinations(holders[: self._needed], left_out):
                kept = [holder for holder in holders if holder not in without]
                yield tuple(kept[: self._needed])
