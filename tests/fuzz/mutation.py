"""How valid input is spoiled: in its bytes, in its JSON, in the fields of its protobuf messages.

Digests and lengths would keep mutated bytes away from most of a reader, so what is changed has the structure that the
reader looks for: a JSON document stays one, a message stays a message, a stream stays a row of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["Mutation", "join_frames", "message_mutation", "mutate", "mutate_bytes", "split_frames", "stream_mutation"]

Mutation = Callable[[bytes, random.Random], bytes]

# Values that readers of JSON tend to forget.
VALUES: list[bytes] = [
    *(b"null", b"true", b"false", b"0", b"-1", b"1", b"1.5", b"-0.0", b"1e999", b"NaN", b"-Infinity", b'""', b'"x"'),
    *(b"[]", b"{}", b"[[]]", b"[null]", b'{"":0}', b'"\\ud800"', b'"\\u0000"', b"2147483648", b"18446744073709551616"),
    *(b"9" * 400, b"9" * 5000, b"[" * 3000 + b"]" * 3000, b"1" + b"0" * 30, b'"' + b"a" * 300 + b'"'),
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a valid input in one to four places: in its bytes, or in its JSON where it has some."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice((_change_json, _change_json, _change_bytes))(data, rng)
    return data


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a valid input that holds no JSON."""
    for _ in range(rng.randint(1, 4)):
        data = _change_bytes(data, rng)
    return data


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((0, 1, 1, 2, 8, 100)))
    new = rng.choice((b"", rng.randbytes(1), rng.randbytes(8), rng.choice(VALUES), data[at:end] * 2))
    return data[:at] + new + data[end:]


def _change_json(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if 0 < size <= len(data) - 8:  # a container: its header
        header = _change_json(data[8 : 8 + size], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    try:
        value = json.loads(data)
        return _dumps(_change_value(value, rng))
    except (ValueError, RecursionError):
        return _change_bytes(data, rng)


def _dumps(value: object) -> bytes:
    """JSON in which a ``_Raw`` stands for itself."""
    raws: list[bytes] = []

    def default(raw: object) -> str:
        assert isinstance(raw, _Raw)
        raws.append(raw.text)
        return f"raw value {len(raws) - 1}"

    text = json.dumps(value, separators=(",", ":"), default=default).encode()
    for i, raw in enumerate(raws):
        text = text.replace(f'"raw value {i}"'.encode(), raw)
    return text


class _Raw:
    def __init__(self, text: bytes) -> None:
        self.text = text


def _change_value(value: Any, rng: random.Random) -> Any:
    """Go down to some node, and replace, drop, copy or rename it."""
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:  # JSON within JSON
        return _change_json(value.encode(), rng).decode(errors="replace")
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return _Raw(rng.choice(VALUES))
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.2:
            return {
                ("\ud800" if k == key and rng.random() < 0.3 else k + "x" if k == key else k): v
                for k, v in value.items()
            }
        if action < 0.25:
            return {**value, "more": value[key]}
        return {k: _change_value(v, rng) if k == key else v for k, v in value.items()}
    at = rng.randrange(len(value))
    action = rng.random()
    if action < 0.1:
        return value[:at] + value[at + 1 :]
    if action < 0.2:
        return [*value, value[at]]
    return [_change_value(v, rng) if i == at else v for i, v in enumerate(value)]


def message_mutation(kind: type[Message]) -> Mutation:
    """Give the mutation of one serialised message: mostly some field of it, sometimes its bytes."""

    def mutate_message(data: bytes, rng: random.Random) -> bytes:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return _change_bytes(data, rng)
        for _ in range(rng.randint(1, 4)):
            _change_message(message, rng)
        data = message.SerializeToString()
        return _change_bytes(data, rng) if rng.random() < 0.15 else data

    return mutate_message


def stream_mutation(kind: type[Message]) -> Mutation:
    """Give the mutation of a row of messages (``join_frames``): one is changed, left out, sent twice or moved."""
    change = message_mutation(kind)

    def mutate_stream(data: bytes, rng: random.Random) -> bytes:
        frames = split_frames(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(frames) + 1)
            action = rng.random()
            if at == len(frames):
                frames.append(rng.choice(frames) if frames else rng.randbytes(9))
            elif action < 0.6:
                frames[at] = change(frames[at], rng)
            elif action < 0.7:
                del frames[at]
            elif action < 0.8:
                frames.insert(at, frames[at])
            else:
                frames.insert(rng.randrange(len(frames)), frames.pop(at))
        return join_frames(frames)

    return mutate_stream


_LENGTH_BYTES = 4


def join_frames(frames: list[bytes]) -> bytes:
    """Write messages one after the other, each behind its length."""
    return b"".join(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame for frame in frames)


def split_frames(data: bytes) -> list[bytes]:
    """Undo ``join_frames``; the last message of arbitrary bytes may be cut."""
    frames = []
    while len(data) >= _LENGTH_BYTES:
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        frames.append(data[_LENGTH_BYTES:end])
        data = data[end:]
    return frames


_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    100,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
_REALS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e300, 1e9, float("inf"), float("-inf"), float("nan")]
_TEXTS = [
    "",
    "x",
    "\0",
    "\n",
    "a" * 300,
    "é" * 70,
    "../../etc/passwd",
    "/" * 3,
    "0" * 64,
    "f" * 63,
    "{}",
    "\u202e",
    "%s",
]


def _change_message(message: Message, rng: random.Random) -> None:
    """Set, clear, repeat or go down into some field."""
    present = [field for field, _ in message.ListFields()]
    descriptor: Any = message.DESCRIPTOR  # of a class of its own in each of protobuf's implementations
    field = rng.choice(present if present and rng.random() < 0.8 else list(descriptor.fields))
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_repeated(getattr(message, field.name), field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if inner.DESCRIPTOR.fields:
            _change_message(inner, rng)
    else:
        setattr(message, field.name, _some_value(field, getattr(message, field.name), rng))


def _change_repeated(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    if len(values) and rng.random() < 0.3:
        del values[rng.randrange(len(values))]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if len(values) and rng.random() < 0.7:
            _change_message(rng.choice(values), rng)
        else:
            values.add()
    elif len(values) and rng.random() < 0.5:
        at = rng.randrange(len(values))
        values[at] = _some_value(field, values[at], rng)
    else:
        values.extend([*values, _some_value(field, values[0] if len(values) else None, rng)][: rng.choice((1, 2, 50))])


def _some_value(field: FieldDescriptor, value: Any, rng: random.Random) -> Any:
    """Make a value of a field's type out of the one that it has."""
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return rng.choice([*_REALS, float(value or 0) * 2])
        case FieldDescriptor.TYPE_STRING:
            text = str(value or "")
            return rng.choice([*_TEXTS, text * 2, text[:-1], mutate(text.encode(), rng).decode(errors="replace")])
        case FieldDescriptor.TYPE_BYTES:
            return rng.choice((b"", rng.randbytes(32), mutate_bytes(bytes(value or b""), rng)))
        case FieldDescriptor.TYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 4, 5, 99, -1, (1 << 31) - 1))
    number = rng.choice([*_NUMBERS, int(value or 0) + 1, int(value or 0) * 2])
    bits = 64 if field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT64) else 32
    is_signed = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
    return number % (1 << bits - 1) if is_signed else number % (1 << bits)
