"""Ctrl-C and SIGTERM end the demo by unwinding it, and never between two steps that belong together."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """Turn both signals into SystemExit(130) for the block.

    Not into KeyboardInterrupt: one that passes through code made by ``exec``, as in an import, makes the interpreter
    end itself with SIGINT even where it was caught.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(130)

    with _handled_by(end):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold both signals back until the block is done: a process is started and noted, or all of them are ended."""
    received: list[int] = []
    with _handled_by(lambda number, frame: received.append(number)):
        yield
    if received:
        signal.raise_signal(received[0])


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
