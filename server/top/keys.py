"""Keys that are pressed while something is shown."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def pressed_keys() -> Iterator[Keys]:
    """Read keys as they are pressed, in the block; the terminal is as it was afterwards."""
    if not sys.stdin.isatty():
        yield Keys(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Keys:
    """A terminal's keys."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def has_quit(self, within_s: float) -> bool:
        """Wait so long for ``q``, or shorter when any key comes."""
        if self._descriptor is None:
            select.select([], [], [], within_s)
            return False
        if not select.select([self._descriptor], [], [], within_s)[0]:
            return False
        pressed = os.read(self._descriptor, 1024)  # an arrow is three bytes; what is left of it would hide the next key
        return not pressed or b"q" in pressed.lower()
