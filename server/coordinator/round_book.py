"""What is written down of a round: its record, and at its end the version that it made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bnncore.state import State
from server.coordinator.round_parts import RoundParts
from server.coordinator.round_state import Phase
from server.storage.base import RoundRecord, ScoreRecord, UpdateRecord, VersionRecord


class RoundBook:
    """One round's record.

    Args:
      parts: what the round is played with.
      record: as it stands in storage.
    """

    def __init__(self, parts: RoundParts, record: RoundRecord) -> None:
        self._parts = parts
        self.record = record

    async def save(self, rows: Iterable[UpdateRecord] = (), **changes: Any) -> None:
        """Change fields of the record, and write it with these rows in one transaction."""
        self.record = replace(self.record, **changes)
        await self._parts.disk.run(self._parts.disk.storage.save_round, self.record, list(rows))
        self._parts.disk.feed.publish_round(self.record)

    def stopped_clock(self) -> dict[str, Any]:
        """Return the record's fields of an attempt that collects no more."""
        record = self.record
        seconds = 0.0 if record.collecting_since is None else max(0.0, time.time() - record.collecting_since)
        return {"collecting_since": None, "collected_s": record.collected_s + seconds}

    async def write_version(self, state: State, memory_digest: str | None) -> VersionRecord:
        """Make the payloads of the round's version durable; returns the record that is to be committed."""
        parts, number = self._parts, self.record.round_number
        write = parts.writer.write_statistics if parts.config.is_closing(number) else parts.writer.write
        version = await asyncio.to_thread(write, number, state, time.time(), base=parts.base)
        return replace(version, memory_digest=memory_digest)

    async def commit(
        self,
        version: VersionRecord,
        rows: list[UpdateRecord],
        scores: Mapping[int, ScoreRecord],
        **changes: Any,
    ) -> None:
        """Commit the round with its version, in one transaction."""
        self.record = replace(
            self.record,
            state=Phase.COMMITTED,
            committed_at=time.time(),
            weights_digest=version.weights_digest,
            reason="",
            **changes,
        )
        disk = self._parts.disk
        await disk.run(disk.storage.commit_round, self.record, version, rows, scores)
        disk.feed.publish_round(self.record)
        disk.feed.publish_version(version)
