"""Model versions: how one is made, made durable, and read back. All functions block; call them off the event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnncore.codec import get_state_codec
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State, weights_digest
from server.jobs import JobConfig
from server.storage.base import BlobStore, VersionRecord

FULL_CODEC = "float32"
"""The codec of the full state that the coordinator keeps beside the payload that devices download."""


def initial_state(config: JobConfig) -> State:
    """Make version 0, a function of the job's (spec, optimizer, seed): a device can make the same."""
    preset = resolve_preset(config.preset, config.optimizer)
    engine = Engine(config.spec, batch_size=1, preset=preset, seed=config.seed)
    engine.initialise(config.seed)
    return engine.state()


InitialState = Callable[[JobConfig], State]


@dataclass(frozen=True)
class VersionWriter:
    """Writes a job's model versions into the blob store."""

    job_id: str
    spec: ModelSpec
    down_codec: str
    blobs: BlobStore

    def write(self, version: int, state: State, created_at: float) -> VersionRecord:
        """Make a version's two payloads durable; the caller commits the record that names them.

        Args:
          version: its number.
          state: weights, beta and statistics.
          created_at: seconds since 1970.
        """
        payload = get_state_codec(self.down_codec).encode(self.spec, state, kind="model")
        full_codec = get_state_codec(FULL_CODEC)
        full = full_codec.encode(self.spec, state, kind="update")
        return VersionRecord(
            job_id=self.job_id,
            version=version,
            codec=self.down_codec,
            payload_digest=self.blobs.put(payload),
            payload_bytes=len(payload),
            state_digest=self.blobs.put(full),
            weights_digest=weights_digest(self.spec, full_codec.decode(self.spec, full, kind="update")),
            created_at=created_at,
        )


def read_state(blobs: BlobStore, spec: ModelSpec, record: VersionRecord) -> State:
    """Read a version's full float32 state, statistics included."""
    return get_state_codec(FULL_CODEC).decode(spec, blobs.get(record.state_digest), kind="update")


def read_deployed_state(blobs: BlobStore, spec: ModelSpec, record: VersionRecord) -> State:
    """Read a version as devices receive it (through its codec), with the merged statistics added for evaluation."""
    full = read_state(blobs, spec, record)
    deployed = get_state_codec(record.codec).decode(spec, blobs.get(record.payload_digest), kind="model")
    return {name: deployed.get(name, full[name]) for name in full}
