"""What the devices of a simulation remember between their tasks, on disk: memory does not grow with their number.

As on a real device: the models that it holds, what came with its last accepted update, and an update that it has
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
from typing import Protocol

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.durable import replace_file
from bnncore.federated import LocalState, LocalUpdate
from bnncore.federated.local_state import read_local_state, write_local_state
from bnncore.spec import ModelSpec
from bnncore.way import way_to_model
from server.simulate.training import ModelSource

__all__ = ["DeviceMemory", "Download", "Downloads", "Payloads", "pending_updates"]

_MODELS_HELD = 2
"""As many as a device's cache keeps."""
_LOCAL_STATES_KEPT = 2
"""The one before the last too: a simulation that was stopped may do the newest round's task once more."""
_HEADER, _PAYLOAD, _LOCAL_STATE, _MODELS = "header", "payload", "local-state", "models"
_TASK, _MEMBER = "task", "member"
"""Of an exchange."""


class Downloads(Protocol):
    """Where payloads come from."""

    async def download(self, device_id: str, digest: str) -> tuple[bytes, int]:
        """See ``Wire``."""


class Payloads(Protocol):
    """Where payloads lie."""

    def get(self, digest: str) -> bytes:
        """See ``BlobStore``."""


@dataclass(frozen=True)
class Download:
    """What a device got for a task.

    Attributes:
      source: what its model is made from.
      payload_bytes: of payloads that were downloaded for it.
      wire_bytes: of the messages that carried them.
    """

    source: ModelSource
    payload_bytes: int = 0
    wire_bytes: int = 0


class DeviceMemory:
    """One device's.

    Args:
      root: of all devices' memories.
      device_id: whose.
      blobs: where models lie.
    """

    def __init__(self, root: Path, device_id: str, blobs: Payloads) -> None:
        self.device_id = device_id
        self._folder = root / device_id
        self._pending = root / f"{device_id}.pending"
        self._blobs = blobs

    async def find_model(self, task: pb.Task, wire: Downloads) -> Download:
        """Get what a task's model can be made from, with as few bytes as possible, as a device does."""
        bases = [step.base_digest.hex() for step in task.steps]
        held = self._held_before(task.model_digest)
        way = way_to_model(task.model_digest, bases, held.__contains__, from_seed=task.HasField("initial_seed"))
        if way is None:
            model, wire_bytes = await wire.download(self.device_id, task.model_digest)
            return Download(ModelSource(model), len(model), wire_bytes)
        steps, wire_bytes = [], 0
        for step in task.steps[way.first_step :]:
            payload, num_bytes = await wire.download(self.device_id, step.digest.hex())
            steps.append(payload)
            wire_bytes += num_bytes
        base = None if way.base is None else self._blobs.get(way.base)
        return Download(ModelSource(base, tuple(steps)), sum(map(len, steps)), wire_bytes)

    def local_state(self, round_number: int, spec: ModelSpec, local: frozenset[str]) -> LocalState | None:
        """Read what came with the last accepted update of a round before this one; None where there is nothing."""
        earlier = [number for number in self._kept_rounds() if number < round_number]
        return read_local_state(self._local_state(max(earlier)), spec, local) if earlier else None

    def keep(
        self, header: pb.UpdateHeader, local_state: LocalState | None, spec: ModelSpec, local: frozenset[str]
    ) -> None:
        """Take in that an update will be accepted: in a sum that is kept, or made once more in the same round."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if local_state is not None:
            write_local_state(self._local_state(header.round_number), spec, local_state, local)
        self._go_on(header)

    def keep_pending(
        self, header: pb.UpdateHeader, update: LocalUpdate, spec: ModelSpec, local: frozenset[str]
    ) -> None:
        """Write an update down before it is sent."""
        self._pending.mkdir(parents=True, exist_ok=True)
        if update.local_state is not None:
            write_local_state(self._pending / _LOCAL_STATE, spec, update.local_state, local)
        _write(self._pending / _PAYLOAD, update.payload)
        _write(self._pending / _HEADER, header.SerializeToString())  # last: with it the update is complete

    def pending(self) -> tuple[pb.UpdateHeader, bytes] | None:
        """Read the update that was written down and is not settled."""
        try:
            header = pb.UpdateHeader.FromString((self._pending / _HEADER).read_bytes())
        except FileNotFoundError:
            return None
        return header, (self._pending / _PAYLOAD).read_bytes()

    def keep_member(self, task: pb.Task, state: bytes) -> None:
        """Write down where the device is in the exchange of its pending update."""
        _write(self._pending / _MEMBER, state)
        _write(self._pending / _TASK, task.SerializeToString())

    def settle_before(self, task: pb.Task) -> bool:
        """Settle what is pending unless it is this very task's; returns whether that is trained already.

        Whoever gets another task while the word on its last sum is out is in that sum.
        """
        pending = self.pending()
        if pending is None or pending[0].task_id == task.task_id:
            return pending is not None
        self.settle(pending[0], accepted=True)
        return False

    def member(self) -> tuple[pb.Task, bytes] | None:
        """Read where the device is in an exchange; None: it is in none."""
        try:
            task = pb.Task.FromString((self._pending / _TASK).read_bytes())
        except FileNotFoundError:
            return None
        return task, (self._pending / _MEMBER).read_bytes()

    def settle(self, header: pb.UpdateHeader, *, accepted: bool) -> None:
        """Take an answer in; a second time, after an interruption, it changes nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        newest = self._pending / _LOCAL_STATE
        if accepted and newest.exists():
            os.replace(newest, self._local_state(header.round_number))
        self._go_on(header)
        shutil.rmtree(self._pending, ignore_errors=True)

    def _go_on(self, header: pb.UpdateHeader) -> None:
        """Remember a task's model, and forget what no task, not even the same once more, asks for."""
        for number in sorted(self._kept_rounds())[:-_LOCAL_STATES_KEPT]:
            self._local_state(number).unlink()
        held = [*self._held_before(header.model_digest), header.model_digest]
        _write(self._folder / _MODELS, json.dumps(held).encode())

    def _held_before(self, model_digest: str) -> list[str]:
        """Name the models that are in the device's cache when it gets a task's, for the first time or once more."""
        try:
            names = json.loads((self._folder / _MODELS).read_bytes())
        except FileNotFoundError:
            return []
        return [name for name in names if name != model_digest][-_MODELS_HELD:]

    def _local_state(self, round_number: int) -> Path:
        return self._folder / f"{_LOCAL_STATE}.{round_number}"

    def _kept_rounds(self) -> list[int]:
        return [int(path.suffix[1:]) for path in self._folder.glob(f"{_LOCAL_STATE}.*[0-9]")]


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
