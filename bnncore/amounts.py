"""Amounts of memory as people write them. Needs nothing but the standard library: the agent loads it."""

from __future__ import annotations

import re

__all__ = ["read_bytes"]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def read_bytes(text: str) -> int:
    """Read an amount of memory: 500000, 64MiB, 1.5g.

    Raises:
      ValueError: it is none; the message says what is.
    """
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"must be an amount such as 64MiB or 500000, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])
