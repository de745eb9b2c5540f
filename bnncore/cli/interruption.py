"""Ctrl-C and SIGTERM as a wish that is granted between two steps, not in the middle of one.

An exception that a signal raises anywhere may be lost: Python ignores what is raised while an object is taken down.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["Interruption", "noticed"]


class Interruption:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self.wanted = False


@contextlib.contextmanager
def noticed() -> Iterator[Interruption]:
    """Note the first Ctrl-C or SIGTERM instead of stopping at once; a second one stops at once."""
    interruption = Interruption()

    def note(number: int, frame: object) -> None:
        if interruption.wanted:
            raise KeyboardInterrupt
        interruption.wanted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
