"""Model versions: how one is made, made durable, and read back. All functions block; call them off the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from bnncore.codec import NONE_LOCAL, get_codec, get_difference_codec, get_state_codec
from bnncore.engine import Engine
from bnncore.federated.replica import apply_step, make_step, model_codec
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State, weights_digest
from server.coordinator.messages import ModelStep
from server.jobs import JobConfig
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore

MOST_STEPS = 32
"""Most steps that a task names: of every codec fewer take as many bytes as the model."""

FULL_CODEC = "float32"
"""The codec of the full state, the master, that the coordinator keeps beside the model that devices hold."""


def initial_state(config: JobConfig) -> State:
    """Make version 0, a function of the job's (spec, optimizer, seed): a device can make the same."""
    preset = resolve_preset(config.preset, config.optimizer)
    engine = Engine(config.spec, batch_size=1, preset=preset, seed=config.seed)
    engine.initialise(config.seed)
    return engine.state()


InitialState = Callable[[JobConfig], State]


@dataclass(frozen=True)
class VersionWriter:
    """Writes a job's model versions into the blob store.

    Where ``down_codec`` writes differences, the full state is the master and the payload is the replica that all
    devices hold (``bnncore.federated.replica``); the version that is evaluated, digested and exported is the replica.
    """

    job_id: str
    spec: ModelSpec
    down_codec: str
    blobs: BlobStore
    local: AbstractSet[str] = NONE_LOCAL
    """Names of the tensors that stay on devices; those of the full state never change."""

    def write(
        self, version: int, state: State, created_at: float, *, base: VersionRecord | None = None
    ) -> VersionRecord:
        """Make a version's payloads durable; the caller commits the record that names them.

        Args:
          version: its number.
          state: weights, beta and statistics.
          created_at: seconds since 1970.
          base: the version before it, from which devices are to be sent a step if the codec writes differences; None:
            there is none.
        """
        codec = model_codec(self.down_codec)
        step: bytes | None = None
        if base is None or not self._sends_steps:
            payload = codec.encode(self.spec, state, kind="model")
        else:
            steps = get_difference_codec(self.down_codec)
            replica = codec.decode(self.spec, self.blobs.get(base.payload_digest), kind="model")
            difference = make_step(self.spec, state, replica, steps, self.local)
            step = steps.encode(self.spec, difference, kind="step", local=self.local)
            payload = codec.encode(self.spec, apply_step(replica, difference), kind="model")
        full = get_state_codec(FULL_CODEC).encode(self.spec, state, kind="update")
        return VersionRecord(
            job_id=self.job_id,
            version=version,
            codec=codec.name,
            payload_digest=self.blobs.put(payload),
            payload_bytes=len(payload),
            state_digest=self.blobs.put(full),
            weights_digest=self._digest(full, payload),
            created_at=created_at,
            step_digest=None if step is None else self.blobs.put(step),
            step_bytes=0 if step is None else len(step),
        )

    def write_statistics(
        self, version: int, statistics: State, created_at: float, *, base: VersionRecord
    ) -> VersionRecord:
        """Make a version that differs from the one before it in its statistics alone; see ``write``."""
        state = {**read_state(self.blobs, self.spec, base), **statistics}
        full = get_state_codec(FULL_CODEC).encode(self.spec, state, kind="update")
        return replace(
            base,
            version=version,
            state_digest=self.blobs.put(full),
            weights_digest=self._digest(full, self.blobs.get(base.payload_digest)),
            created_at=created_at,
            step_digest=None,
            step_bytes=0,
        )

    @property
    def _sends_steps(self) -> bool:
        return get_codec(self.down_codec).is_difference

    def _digest(self, full: bytes, payload: bytes) -> str:
        state = get_state_codec(FULL_CODEC).decode(self.spec, full, kind="update")
        if self._sends_steps:
            replica = model_codec(self.down_codec).decode(self.spec, payload, kind="model")
            state = {name: replica.get(name, array) for name, array in state.items()}
        return weights_digest(self.spec, state)


def read_state(blobs: BlobStore, spec: ModelSpec, record: VersionRecord) -> State:
    """Read a version's full float32 state, statistics included."""
    return get_state_codec(FULL_CODEC).decode(spec, blobs.get(record.state_digest), kind="update")


def statistics_version(version: int, *, rounds: int, statistics_batches: int) -> int:
    """Say which version has the statistics of a version's weights.

    Itself, unless devices take them of what they are sent: then the next one, but where the closing exchange made it.
    """
    return version + 1 if statistics_batches and version <= rounds else version


def read_deployed_state(
    blobs: BlobStore, spec: ModelSpec, record: VersionRecord, statistics: VersionRecord | None = None
) -> State:
    """Read a version as devices hold it (through its codec), with statistics added for evaluation.

    Args:
      blobs: where payloads are.
      spec: the network.
      record: the version.
      statistics: the version whose statistics are of ``record``'s weights (``statistics_version``). None: its own.
    """
    full = read_state(blobs, spec, statistics or record)
    deployed = get_state_codec(record.codec).decode(spec, blobs.get(record.payload_digest), kind="model")
    return {name: deployed.get(name, full[name]) for name in full}


def read_exported_state(
    blobs: BlobStore, spec: ModelSpec, record: VersionRecord, down_codec: str, statistics: VersionRecord | None = None
) -> State:
    """Read a version as ``weights_digest`` names it: the full state, or the replica where devices are sent steps.

    Args:
      blobs: where payloads are.
      spec: the network.
      record: the version.
      down_codec: the job's.
      statistics: as in ``read_deployed_state``; with it the state predicts as it was judged, and has another digest.
    """
    if get_codec(down_codec).is_difference:
        return read_deployed_state(blobs, spec, record, statistics)
    state = read_state(blobs, spec, record)
    if statistics is not None:
        taken = read_state(blobs, spec, statistics)
        state |= {tensor.name: taken[tensor.name] for tensor in spec.tensors if tensor.is_statistic}
    return state


def steps_to(versions: Sequence[VersionRecord]) -> tuple[tuple[ModelStep, ...], bool]:
    """List the newest steps to the last of a job's versions that have fewer bytes than its model.

    Args:
      versions: the newest ones, by number and without a gap; ``MOST_STEPS`` and one are enough.

    Returns:
      The steps, oldest first, and whether they begin at version 0.
    """
    steps: list[ModelStep] = []
    left = versions[-1].payload_bytes
    for base, version in zip(versions[-2::-1], versions[::-1], strict=False):
        if version.payload_digest == base.payload_digest:
            continue
        if version.step_digest is None or version.step_bytes >= left:
            return tuple(reversed(steps)), False
        left -= version.step_bytes
        steps.append(ModelStep(base.payload_digest, version.step_digest, version.step_bytes))
    return tuple(reversed(steps)), versions[0].version == 0
