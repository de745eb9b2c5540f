"""JSON, read with suspicion: answers, and records that a worn card or a power cut may have damaged."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar

__all__ = ["as_record", "read_json"]

_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}

_T = TypeVar("_T")


def read_json(text: str | bytes) -> Any:
    """Read JSON; raises ValueError for whatever is none that can be read here."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_record(kind: type[_T], value: Any) -> _T:
    """Make a dataclass of texts and numbers out of a JSON object.

    Raises:
      ValueError: a field is missing or unknown, or a value is of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or not set(value) <= set(fields):
        raise ValueError(f"it must be an object with the keys {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"it lacks {name}")
        if name in value and type(value[name]) not in _KINDS[str(field.type)]:
            raise ValueError(f"{name} must be of type {field.type}, got {value[name]!r:.80}")
    return kind(**value)
