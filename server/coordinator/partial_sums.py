"""What other replicas have added up of a round: found by digest, with the very updates that are in it.

Sums merge exactly, so it never matters who has folded which update, as long as each is in the sum once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from server.storage.base import VersionRecord


class Part(NamedTuple):
    """One update in a sum: the digest of its payload, and its weight."""

    digest: str
    weight: int


@dataclass(frozen=True)
class PartialSum:
    """The sum of some of a round's updates.

    Attributes:
      digest: of the payload that holds it, as ``Accumulator.to_bytes`` wrote it.
      parts: the updates in it, by device.
    """

    digest: str
    parts: Mapping[str, Part]


class PartialSums(Protocol):
    """The replicas that add updates up."""

    def is_there(self, replica: str) -> bool:
        """Say whether a replica is there still, with what it has added up."""

    async def gather(self, base: VersionRecord, replicas: Mapping[str, Mapping[str, Part]]) -> Sequence[PartialSum]:
        """Return what replicas have added up in the round that starts from a version; the ones that fail are left out.

        Args:
          base: the version.
          replicas: the updates that each is to have in its sum, by device, by replica.
        """

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        """Let all of them forget what they have added up in a round that is over, or in all of a job's."""


class NoPartialSums:
    """There is no other replica."""

    def is_there(self, replica: str) -> bool:
        """See ``PartialSums``."""
        del replica
        return False

    async def gather(self, base: VersionRecord, replicas: Mapping[str, Mapping[str, Part]]) -> Sequence[PartialSum]:
        """See ``PartialSums``."""
        del base, replicas
        return ()

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        """See ``PartialSums``."""
