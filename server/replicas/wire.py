"""What replicas tell each other, as JSON: the coordinator's plain values, and its errors by their names.

A moment on one replica's monotonic clock means nothing on another's: it travels as seconds from now.
"""

from __future__ import annotations

import base64
import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, cast

from bnncore.errors import BitfleetError
from server import errors
from server.coordinator.messages import TaskOrder
from server.errors import InvalidJobError, NotReadyError, ServerError
from server.job_problems import JobProblem
from server.storage.refusal import is_refusal

_Value = TypeVar("_Value")

_PLAIN = {str, int, float, bool, type(None)}

_Reader = Callable[[Any, float], Any]
"""Makes a value of what JSON holds, and of this replica's monotonic clock."""

_MOMENTS = {(TaskOrder, "deadline_at")}
"""Fields that are moments on the monotonic clock."""


def to_json(value: object, *, now: float = 0.0) -> Any:
    """Turn a dataclass, and what is in it, into what JSON holds.

    Args:
      value: a dataclass, tuple, list, set, mapping with text keys, enum, bytes, or a plain value.
      now: this replica's monotonic clock.
    """
    if type(value) in _PLAIN:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        told = {field.name: getattr(value, field.name) for field in fields(value)}
        for name in told:
            if (type(value), name) in _MOMENTS:
                told[name] -= now
        return {name: to_json(part, now=now) for name, part in told.items()}
    if isinstance(value, Mapping):
        return {str(key): to_json(part, now=now) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return [to_json(part, now=now) for part in sorted(value)]
    if isinstance(value, tuple | list):
        return [to_json(part, now=now) for part in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def from_json(kind: type[_Value], data: Any, *, now: float = 0.0) -> _Value:
    """Build a value of a dataclass, as its annotations say, from what ``to_json`` made of it.

    Fields that are not known here are left out, and missing ones keep their defaults: the other replica may be of a
    newer or an older version.
    """
    readers = _readers(cast("Any", kind))
    return kind(**{name: readers[name](part, now) for name, part in data.items() if name in readers})


def error_to_json(error: BaseException) -> dict[str, Any]:
    """Tell an error by its class's name and its text; what is no error of ours is the replica's own fault."""
    if not isinstance(error, ServerError):
        refuses = "its disk or database takes nothing now" if is_refusal(error) else "see its log"
        why = str(error) if isinstance(error, BitfleetError) else f"{type(error).__name__}; {refuses}"
        error = NotReadyError(f"the replica that was asked failed: {why}")
    told: dict[str, Any] = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, InvalidJobError):
        told["problems"] = to_json(error.problems)
    return told


def error_from_json(data: Mapping[str, Any]) -> ServerError:
    """Build the error again; one that is not known here is a NotReadyError of the same text."""
    kind = getattr(errors, str(data["kind"]), None)
    if not (isinstance(kind, type) and issubclass(kind, ServerError)):
        kind = NotReadyError
    if issubclass(kind, InvalidJobError):
        return kind(data["text"], [from_json(JobProblem, problem) for problem in data.get("problems", ())])
    error = kind.__new__(kind)  # some make their text of what they are given
    Exception.__init__(error, data["text"])
    return error


@functools.cache
def _readers(kind: type) -> dict[str, _Reader]:
    """Return what reads each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader_of(hints[field.name]) for field in fields(cast("Any", kind))}
    for owner, name in _MOMENTS:
        if owner is kind:
            readers[name] = operator.add
    return readers


def _reader_of(hint: Any) -> _Reader:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in inner if one is not types.NoneType]
        if len(kinds) > 1:
            return _plain  # values of either kind
        read = _reader_of(kinds[0])
        return lambda data, now: None if data is None else read(data, now)
    if origin is tuple and inner[-1] is not Ellipsis:
        each = [_reader_of(one) for one in inner]
        return lambda data, now: tuple(one(part, now) for one, part in zip(each, data, strict=True))
    if origin in (tuple, frozenset, set, list):
        read = _reader_of(inner[0])
        return lambda data, now: origin(read(part, now) for part in data)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        read = _reader_of(inner[1])
        return lambda data, now: {key: read(part, now) for key, part in data.items()}
    if is_dataclass(hint):
        return lambda data, now: from_json(cast("type", hint), data, now=now)
    if hint is bytes:
        return lambda data, now: base64.b64decode(data)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda data, now: hint(data)
    return _plain


def _plain(data: Any, now: float) -> Any:
    return data
