"""What is fuzzed: everything that reads a file or a message, with valid input to start from.

A target takes any bytes and returns when they load or when bitfleet refuses them with an error of its own; whatever
else it raises is a finding. Digests would keep mutated bytes away from most of a reader, so three of the targets make
them right again first.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from random_differences import random_difference
from random_states import random_state

from bnncore import checkpoint, resume
from bnncore.codec import CODECS, DifferenceCodec
from bnncore.codec.container import pack, unpack
from bnncore.engine import Engine
from bnncore.errors import BitfleetError
from bnncore.spec import ModelSpec
from bnncore.training import EpochResult, Progress
from bnncore.zoo import binarynet, mlp

SPEC = binarynet((4, 4), (2,), 1, (3,), 2)
SETTINGS = {"epochs": 3}
WAYS = [(codec, kind) for codec in CODECS.values() if not codec.is_difference for kind in codec.kinds]
DIFFERENCE_WAYS = [
    (codec, kind) for codec in CODECS.values() if isinstance(codec, DifferenceCodec) for kind in codec.kinds
]


@cache
def engine() -> Engine:
    """The one that saved runs are loaded into."""
    made = Engine(SPEC, batch_size=2, seed=1)
    made.initialise()
    return made


@cache
def memory_file() -> int:
    """A file without a disk: readers want a path, and thousands are read a second."""
    return os.memfd_create("fuzz")


def file_with(data: bytes) -> Path:
    os.ftruncate(memory_file(), 0)
    os.pwrite(memory_file(), data, 0)
    return Path(f"/proc/self/fd/{memory_file()}")


def read_spec(data: bytes) -> None:
    spec = ModelSpec.from_json(data)
    assert ModelSpec.from_json(spec.to_json()) == spec


def read_payload(data: bytes) -> None:
    refusals: list[BitfleetError] = []
    for codec, kind in WAYS:
        try:
            codec.decode(SPEC, data, kind=kind)
        except BitfleetError as error:
            refusals.append(error)
    if len(refusals) == len(WAYS):
        raise refusals[0]


def read_payload_header(data: bytes) -> None:
    """The header alone, in front of tensors that are right."""
    whole = seeds()["payload"][0]
    body = whole[8 + int.from_bytes(whole[:8], "little") :]
    read_payload(len(data).to_bytes(8, "little") + data + body)


def read_difference(data: bytes) -> None:
    refusals: list[BitfleetError] = []
    for codec, kind in DIFFERENCE_WAYS:
        try:
            difference = codec.decode(SPEC, data, kind=kind)
        except BitfleetError as error:
            refusals.append(error)
        else:
            codec.encode(SPEC, difference, kind=kind)  # what loads is valid
    if len(refusals) == len(DIFFERENCE_WAYS):
        raise refusals[0]


def read_difference_body(data: bytes) -> None:
    """All but the checksum, which is right."""
    read_difference(data + zlib.crc32(data).to_bytes(4, "little"))


def read_checkpoint(data: bytes) -> None:
    checkpoint.load_checkpoint(file_with(data))


def read_training(data: bytes) -> None:
    before = state_of(engine())
    try:
        resume.load_training(file_with(data), engine(), SETTINGS)
    except BitfleetError:
        assert state_of(engine()) == before, "the engine was changed by a file that was refused"
        raise


def state_of(one: Engine) -> tuple[Any, ...]:
    tensors, counters = one.training_state()
    return [array.tobytes() for array in tensors.values()], counters


def read_checkpoint_metadata(data: bytes) -> None:
    tensors, _ = unpack(seeds()["checkpoint"][0])
    read_checkpoint(pack(tensors, signed(data, checkpoint._digest)))


def read_training_metadata(data: bytes) -> None:
    tensors, _ = unpack(seeds()["training"][0])
    read_training(pack(tensors, signed(data, lambda _: resume._digest(tensors))))


def signed(text: bytes, digest: Callable[[dict[str, Any]], str]) -> str:
    """Metadata whose digest is right, if they are such at all."""
    try:
        metadata = json.loads(text)
        if isinstance(metadata, dict):
            metadata.pop("digest", None)
            metadata["digest"] = digest(metadata)
            return json.dumps(metadata)
    except (ValueError, RecursionError):
        pass
    return text.decode(errors="replace")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "spec": read_spec,
    "payload": read_payload,
    "payload_header": read_payload_header,
    "difference": read_difference,
    "difference_body": read_difference_body,
    "checkpoint": read_checkpoint,
    "checkpoint_metadata": read_checkpoint_metadata,
    "training": read_training,
    "training_metadata": read_training_metadata,
}


@cache
def seeds() -> dict[str, list[bytes]]:
    """Valid input by target."""
    state = random_state(SPEC, 1)
    payloads = [codec.encode(SPEC, state, kind=kind) for codec, kind in WAYS]
    differences = [
        codec.encode(SPEC, random_difference(SPEC, 1, density=None if codec.density is None else 0.3), kind=kind)
        for codec, kind in DIFFERENCE_WAYS
    ]
    progress = Progress(steps=4, epochs=[EpochResult(1, 3, 0.5, 90.0, 1.5)], schedule=[0.5], notes=[{"a": 1}])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seed")
        checkpoint.save_checkpoint(path, SPEC, state, extra={"epochs": 3, "accuracy": 97.5})
        saved = path.read_bytes()
        resume.save_training(path, engine(), progress, SETTINGS)
        run = path.read_bytes()
    return {
        "spec": [SPEC.to_json().encode(), mlp((2, 3), (4,), 2).to_json().encode()],
        "payload": payloads,
        "payload_header": [payloads[0][8 : 8 + int.from_bytes(payloads[0][:8], "little")]],
        "difference": differences,
        "difference_body": [data[:-4] for data in differences],
        "checkpoint": [saved],
        "checkpoint_metadata": [unpack(saved)[1].encode()],
        "training": [run],
        "training_metadata": [unpack(run)[1].encode()],
    }


def run_target(name: str, data: bytes) -> bool:
    """Say whether the input loads; anything but bitfleet's own errors passes through."""
    try:
        TARGETS[name](data)
    except BitfleetError:
        return False
    return True


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
