"""Updates that are added up where they are made: a worker hands over a sum, and who is in it, in place of updates.

It is the sum that the coordinator would have made: of the same strategy, by the same code, exact, so that it never
matters who was added up with whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.federated import LocalState, LocalUpdate
from server.coordinator.aggregation import Aggregation
from server.coordinator.partial_sums import Part
from server.coordinator.upload import decode_update
from server.jobs import JobConfig
from server.simulate.training import Lesson, header_of
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore
from server.strategies import make_strategy

__all__ = ["Adder", "Handed", "RoundStart"]


@dataclass(frozen=True)
class RoundStart:
    """What a round's updates are added up against.

    Attributes:
      job: whose round.
      base: the version that it starts from.
    """

    job: JobConfig
    base: VersionRecord

    @property
    def digests(self) -> tuple[str, str]:
        """Of the version's payloads, which are needed."""
        return self.base.payload_digest, self.base.state_digest


@dataclass(frozen=True)
class Handed:
    """What some devices' training came to.

    Attributes:
      headers: of their updates, serialised, in the order of their tasks.
      local_states: what each keeps.
      parts: what is in the sum, by device.
      total: the sum, as ``Accumulator.to_bytes`` wrote it.
    """

    headers: tuple[bytes, ...]
    local_states: tuple[LocalState | None, ...]
    parts: Mapping[str, Part]
    total: bytes


class _Payloads:
    """As much of a blob store as adding up uses."""

    def __init__(self, payloads: Mapping[str, bytes | memoryview]) -> None:
        self._payloads = payloads

    def get(self, digest: str) -> bytes | memoryview:
        return self._payloads[digest]


class Adder:
    """Adds up the updates of some devices.

    Args:
      start: of the round.
      payloads: those of its version, by digest.
    """

    def __init__(self, start: RoundStart, payloads: Mapping[str, bytes | memoryview]) -> None:
        job = start.job
        self._start = start
        self._sum = Aggregation(job, job.spec, cast(BlobStore, _Payloads(payloads)), start.base)
        self._strategy = make_strategy(job.strategy, job.strategy_params)
        self._headers: list[bytes] = []
        self._local_states: list[LocalState | None] = []
        self._parts: dict[str, Part] = {}

    def add(self, lesson: Lesson, update: LocalUpdate) -> None:
        """Add a device's update.

        Raises:
          PayloadError: the strategy cannot take it.
        """
        header = header_of(pb.Task.FromString(lesson.task), lesson.device_id, update, lesson.downloaded_bytes)
        weight = self._strategy.weight_of(update.num_examples, staleness=0)
        tensors = decode_update(self._start.job, lesson.round_number, update.payload)
        self._sum.add(lesson.device_id, tensors, weight, self._start.base)
        self._headers.append(header.SerializeToString())
        self._local_states.append(update.local_state)
        self._parts[lesson.device_id] = Part(header.update_digest, weight)

    def hand_over(self) -> Handed:
        """Give the sum."""
        return Handed(tuple(self._headers), tuple(self._local_states), self._parts, self._sum.to_bytes())
