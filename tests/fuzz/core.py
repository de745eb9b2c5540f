"""What the core reads: descriptions of networks, payloads of every codec, checkpoints, saved runs, local state.

Digests would keep mutated bytes away from most of a reader, so some of the targets make them right again first.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from bnncore import checkpoint, resume
from bnncore.codec import CODECS, DifferenceCodec, StateCodec, get_state_codec
from bnncore.codec.container import pack, unpack
from bnncore.engine import Engine
from bnncore.errors import BitfleetError
from bnncore.export.interpreter import logits_of
from bnncore.export.packed import pack as pack_file
from bnncore.export.packed import unpack as unpack_file
from bnncore.federated.local_state import LocalState, read_local_state, write_local_state
from bnncore.federated.replica import follow_steps
from bnncore.plan import plan_memory
from bnncore.spec import ModelSpec
from bnncore.training import EpochResult, Progress
from bnncore.zoo import binarynet, mlp, resnete18
from tests.bnncore.random_differences import random_difference
from tests.bnncore.random_states import random_state
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target

SPEC = binarynet((4, 4), (2,), 1, (3,), 2)
SETTINGS = {"epochs": 3}
STATE_CODECS = [codec for codec in CODECS.values() if isinstance(codec, StateCodec)]
DIFFERENCE_CODECS = [codec for codec in CODECS.values() if isinstance(codec, DifferenceCodec)]
LOCAL = frozenset({"norm1.beta", "dense1.weight"})


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


def read_plan(data: bytes) -> None:
    """What a device does first with a network that it is sent."""
    spec = ModelSpec.from_json(data)
    for batch_size in (1, 100):
        plan_memory(spec, batch_size=batch_size)


def read_payload(codec: StateCodec | DifferenceCodec, data: bytes) -> None:
    refusals: list[BitfleetError] = []
    for kind in codec.kinds:
        try:
            tensors: Any = codec.decode(SPEC, data, kind=kind)
        except BitfleetError as error:
            refusals.append(error)
        else:
            codec.encode(SPEC, tensors, kind=kind)  # what loads is valid
    if len(refusals) == len(codec.kinds):
        raise refusals[0]


def read_payload_header(data: bytes) -> None:
    """The header alone, in front of tensors that are right."""
    whole = state_payloads(STATE_CODECS[0])[0]
    body = whole[8 + int.from_bytes(whole[:8], "little") :]
    read_payload(STATE_CODECS[0], len(data).to_bytes(8, "little") + data + body)


def read_difference_body(codec: DifferenceCodec, data: bytes) -> None:
    """All but the checksum, which is right."""
    read_payload(codec, data + zlib.crc32(data).to_bytes(4, "little"))


def read_step(codec: DifferenceCodec, data: bytes) -> None:
    """A step to the next model, applied to a model that is right."""
    follow_steps(SPEC, int8_model(), [data + zlib.crc32(data).to_bytes(4, "little")], codec.name)


def read_kept_state(data: bytes) -> None:
    read_local_state(file_with(data), SPEC, LOCAL)


def read_checkpoint(data: bytes) -> None:
    checkpoint.load_checkpoint(file_with(data))


def read_packed(data: bytes) -> None:
    unpack_file(data)


def read_packed_body(data: bytes) -> None:
    """All but the checksum, which is right; what loads predicts."""
    folded = unpack_file(data + zlib.crc32(data).to_bytes(4, "little")).folded
    if folded.spec.num_values < 10_000:
        logits_of(folded, np.zeros((1, folded.spec.input_features), np.uint8))


def packed_files() -> list[bytes]:
    small = resnete18((8, 8, 1), widths=(2, 2), convs_per_stage=2, classes=3)
    return [pack_file(spec, random_state(spec, 1), classes=["a", "b"]) for spec in (SPEC, small)]


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
    tensors, _ = unpack(saved_files()[0])
    read_checkpoint(pack(tensors, signed(data, checkpoint._digest)))


def read_training_metadata(data: bytes) -> None:
    tensors, _ = unpack(saved_files()[1])
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


@cache
def int8_model() -> bytes:
    return CODECS["int8"].encode(SPEC, random_state(SPEC, 1), kind="model")


@cache
def state_payloads(codec: StateCodec) -> list[bytes]:
    return [codec.encode(SPEC, random_state(SPEC, 1), kind=kind) for kind in codec.kinds]


def difference_payloads(codec: DifferenceCodec, *, steps_alone: bool = False) -> list[bytes]:
    difference = random_difference(SPEC, 1, density=None if codec.density is None else 0.3)
    kinds = [kind for kind in codec.kinds if kind == "step" or not steps_alone]
    return [codec.encode(SPEC, difference, kind=kind) for kind in kinds]


@cache
def saved_files() -> tuple[bytes, bytes, bytes]:
    """A checkpoint, a run that can go on, and what a device keeps of a job."""
    state = random_state(SPEC, 1)
    progress = Progress(steps=4, epochs=[EpochResult(1, 3, 0.5, 90.0, 1.5)], schedule=[0.5], notes=[{"a": 1}])
    int8 = get_state_codec("int8").decode(SPEC, int8_model(), kind="model")
    weights = [tensor.name for tensor in SPEC.tensors if tensor.role == "weight"]
    kept = LocalState(
        {name: int8[name] for name in weights if name not in LOCAL}, {name: int8[name] for name in sorted(LOCAL)}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seed")
        checkpoint.save_checkpoint(path, SPEC, state, extra={"epochs": 3, "accuracy": 97.5})
        saved = path.read_bytes()
        resume.save_training(path, engine(), progress, SETTINGS)
        run = path.read_bytes()
        write_local_state(path, SPEC, kept, LOCAL)
        return saved, run, path.read_bytes()


def some_specs() -> list[bytes]:
    small = resnete18((8, 8, 1), widths=(2, 2), convs_per_stage=2, classes=3)
    return [spec.to_json().encode() for spec in (SPEC, mlp((2, 3), (4,), 2), small)]


def core_targets() -> dict[str, Target]:
    """Give the targets by name."""
    found = {"spec": Target(read_spec, some_specs), "memory plan of a spec": Target(read_plan, some_specs)}
    for codec in STATE_CODECS:
        found[f"payload {codec.name}"] = Target(partial(read_payload, codec), partial(state_payloads, codec))
    found["payload's header"] = Target(
        read_payload_header, lambda: [data[8 : 8 + int.from_bytes(data[:8], "little")] for data in _first_payloads()]
    )
    for difference in DIFFERENCE_CODECS:
        found[f"payload {difference.name}"] = Target(
            partial(read_payload, difference), partial(difference_payloads, difference), mutate_bytes
        )
        found[f"payload {difference.name}, checksum right"] = Target(
            partial(read_difference_body, difference), partial(_bodies, difference, steps_alone=False), mutate_bytes
        )
        found[f"step {difference.name}, applied"] = Target(
            partial(read_step, difference), partial(_bodies, difference, steps_alone=True), mutate_bytes
        )
    return found | {
        "local state": Target(read_kept_state, lambda: [saved_files()[2]]),
        "checkpoint": Target(read_checkpoint, lambda: [saved_files()[0]]),
        "checkpoint's metadata": Target(read_checkpoint_metadata, lambda: [unpack(saved_files()[0])[1].encode()]),
        "packed file": Target(read_packed, packed_files),
        "packed file, checksum right": Target(
            read_packed_body, lambda: [data[:-4] for data in packed_files()], mutate_bytes
        ),
        "saved run": Target(read_training, lambda: [saved_files()[1]]),
        "saved run's metadata": Target(read_training_metadata, lambda: [unpack(saved_files()[1])[1].encode()]),
    }


def _first_payloads() -> list[bytes]:
    return state_payloads(STATE_CODECS[0])[:1]


def _bodies(codec: DifferenceCodec, *, steps_alone: bool) -> list[bytes]:
    return [data[:-4] for data in difference_payloads(codec, steps_alone=steps_alone)]
