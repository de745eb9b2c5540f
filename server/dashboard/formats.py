"""Numbers, sizes and states as people read them: the filters of the templates. A value that is not known is a dash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

UNKNOWN = "–"

_TONES = {
    "good": ("COMMITTED", "COMPLETED", "ACCEPTED", "RUNNING", "IDLE", "TRAINING", "ACTIVE"),
    "bad": ("FAILED", "REJECTED", "CANCELLED", "REVOKED"),
    "warn": ("LATE", "MISSED", "DECLINED", "ABANDONED", "LOST", "PAUSED"),
}
_TONE_OF = {state: tone for tone, states in _TONES.items() for state in states}


def tone(state: str) -> str:
    """Return how a state is coloured: good, warn, bad or soft."""
    return _TONE_OF.get(state, "soft")


def words(state: str) -> str:
    """Tell a state's name in small letters: ``WAITING_FOR_DATA`` is "waiting for data"."""
    return state.replace("_", " ").lower()


def sentence(words: str) -> str:
    """Make a sentence of an error's words."""
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")


def integer(value: float | None) -> str:
    """Tell a whole number, in groups of three digits."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """Tell a number with so many decimals."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Tell a percentage."""
    return UNKNOWN if value is None else f"{value:.2f} %"


def seconds(value: float | None) -> str:
    """Tell a duration: short ones to the millisecond, long ones in minutes or hours."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: float | None) -> str:
    """Tell a size in bytes, in powers of 1024."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.{2 if value < 10 else 1}f} {unit}"


def joules(value: float | None) -> str:
    """Tell an energy."""
    if value is None:
        return UNKNOWN
    if value < 0.1:
        return f"{value * 1000:.2f} mJ"
    return f"{value:.2f} J" if value < 10 else f"{value:.1f} J" if value < 1000 else f"{value / 1000:.2f} kJ"


def absolute(iso: str) -> str:
    """Tell a time of the API to the second, in UTC."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


FILTERS: dict[str, Callable[..., str]] = {
    "tone": tone,
    "words": words,
    "sentence": sentence,
    "integer": integer,
    "number": number,
    "percent": percent,
    "seconds": seconds,
    "size": size,
    "joules": joules,
    "absolute": absolute,
}
