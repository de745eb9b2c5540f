"""Lists on pages: a hundred entries at a time, and which rounds of a long job are drawn."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query

from server.api.paging import Paging
from server.storage.pages import Page

ENTRIES_SHOWN = 100
"""Most entries of a list on a page."""
ROUNDS_DRAWN = 100
"""Most rounds in a chart, beside the newest and the best: each costs sums over all of its devices."""


class Shown(Paging):
    """What part of a list a page shows, by its address."""

    limit = ENTRIES_SHOWN

    def __init__(self, after: Annotated[str, Query(max_length=200)] = "") -> None:
        self.after = after or None
        self.total = 0
        """Entries of the whole list."""
        self.next: str | None = None
        """``after`` in the address of the next part; None: this is the last one."""

    def tell(self, page: Page[Any]) -> None:
        """Hear of the page that was read."""
        self.total, self.next = page.total, page.next


ShownPart = Annotated[Shown, Depends()]


def rounds_to_draw(committed: int, best: int | None) -> list[int]:
    """Choose rounds of which a chart is made: all of them, or every second, fourth ... one.

    What is chosen stays while rounds are added, so that curves grow and do not jump.

    Args:
      committed: how many rounds are committed, counted from 1.
      best: a round that is to be seen, if any.
    """
    step = 1
    while committed / step > ROUNDS_DRAWN:
        step *= 2
    chosen = {*range(1, committed + 1, step), committed, best or committed}
    return sorted(chosen) if committed else []
