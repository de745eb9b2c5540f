"""Functions for a process of ``tests/test_faults.py`` to be killed in."""

from __future__ import annotations

import os


def outer() -> None:
    say(b"outer")
    inner(b"inner")


def inner(data: bytes) -> None:
    say(data)


def say(data: bytes) -> None:
    os.write(1, data + b" ")
