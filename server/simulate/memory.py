"""What the devices of a simulation remember between their tasks, on disk: memory does not grow with their number.

As on a real device: the models that it holds, what its last accepted update could not say, and an update that it has
not heard the answer to. A model is the same bytes on every device, so a device's own file only names it; the bytes lie
once for all, in the coordinator's blob folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.durable import replace_file
from bnncore.federated import LocalUpdate
from bnncore.federated.feedback import read_feedback, write_feedback
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.way import way_to_model
from server.simulate.wire import Wire
from server.storage.base import BlobStore

__all__ = ["DeviceMemory", "ModelSource", "pending_updates"]

_MODELS_HELD = 2
"""As many as a device's cache keeps."""
_HEADER, _PAYLOAD, _FEEDBACK = "header", "payload", "feedback"


@dataclass(frozen=True)
class ModelSource:
    """What a task's model is made from.

    Attributes:
      model: a model's payload; None: the one that the job's seed makes.
      steps: payloads of the steps from it to the task's model.
      payload_bytes: of payloads that were downloaded for it.
      wire_bytes: of the messages that carried them.
    """

    model: bytes | None
    steps: tuple[bytes, ...] = ()
    payload_bytes: int = 0
    wire_bytes: int = 0


class DeviceMemory:
    """One device's.

    Args:
      root: of all devices' memories.
      device_id: whose.
      blobs: where models lie.
    """

    def __init__(self, root: Path, device_id: str, blobs: BlobStore) -> None:
        self.device_id = device_id
        self._folder = root / device_id
        self._pending = root / f"{device_id}.pending"
        self._blobs = blobs

    async def find_model(self, task: pb.Task, wire: Wire) -> ModelSource:
        """Get what a task's model can be made from, with as few bytes as possible, as a device does."""
        bases = [step.base_digest.hex() for step in task.steps]
        held = self._held()
        way = way_to_model(task.model_digest, bases, held.__contains__, from_seed=task.HasField("initial_seed"))
        if way is None:
            model, wire_bytes = await wire.download(self.device_id, task.model_digest)
            return ModelSource(model, (), len(model), wire_bytes)
        steps, wire_bytes = [], 0
        for step in task.steps[way.first_step :]:
            payload, num_bytes = await wire.download(self.device_id, step.digest.hex())
            steps.append(payload)
            wire_bytes += num_bytes
        base = None if way.base is None else self._blobs.get(way.base)
        return ModelSource(base, tuple(steps), sum(map(len, steps)), wire_bytes)

    def feedback(self, spec: ModelSpec) -> State | None:
        """Read what the last accepted update could not say; None where there is nothing."""
        path = self._folder / _FEEDBACK
        return read_feedback(path, spec) if path.exists() else None

    def keep_pending(self, header: pb.UpdateHeader, update: LocalUpdate, spec: ModelSpec) -> None:
        """Write an update down before it is sent."""
        self._pending.mkdir(parents=True, exist_ok=True)
        if update.feedback is not None:
            write_feedback(self._pending / _FEEDBACK, spec, update.feedback)
        _write(self._pending / _PAYLOAD, update.payload)
        _write(self._pending / _HEADER, header.SerializeToString())  # last: with it the update is complete

    def settle(self, header: pb.UpdateHeader, *, accepted: bool) -> None:
        """Take an answer in; a second time, after an interruption, it changes nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        newest = self._pending / _FEEDBACK
        if accepted and newest.exists():
            os.replace(newest, self._folder / _FEEDBACK)
        held = [digest for digest in self._held() if digest != header.model_digest]
        _write(self._folder / "models", json.dumps([*held, header.model_digest][-_MODELS_HELD:]).encode())
        shutil.rmtree(self._pending, ignore_errors=True)

    def _held(self) -> list[str]:
        try:
            return list(json.loads((self._folder / "models").read_bytes()))
        except FileNotFoundError:
            return []


def pending_updates(root: Path) -> Iterator[tuple[pb.UpdateHeader, bytes]]:
    """Read the updates that a simulation which was stopped had no answer to, in the order of the devices' names."""
    for folder in sorted(root.glob("*.pending")):
        try:
            header = pb.UpdateHeader.FromString((folder / _HEADER).read_bytes())
        except FileNotFoundError:
            shutil.rmtree(folder)  # stopped while it was written: it was not sent
            continue
        yield header, (folder / _PAYLOAD).read_bytes()


def _write(path: Path, data: bytes) -> None:
    with replace_file(path) as file:
        file.write(data)
