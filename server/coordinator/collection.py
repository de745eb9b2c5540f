"""A round's updates while they are collected: the rows that are durable and the sum that is in memory.

The sum can always be made again from the rows and the payloads they name, so only they matter at a crash.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bnncore.codec import get_codec
from bnncore.errors import BitfleetError
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.coordinator.aggregation import Aggregation
from server.coordinator.disk import Disk
from server.coordinator.messages import UpdateHeader
from server.jobs import JobConfig
from server.storage.base import BlobWriter, UpdateRecord, VersionRecord
from server.strategies import Update, make_strategy

_log = logging.getLogger(__name__)


@dataclass
class Upload:
    """An update that has arrived whole: its header, its bytes on disk (not yet kept), its decoded tensors."""

    header: UpdateHeader
    writer: BlobWriter
    update: Update


class Collection:
    """The updates of one round of one job."""

    def __init__(self, disk: Disk, config: JobConfig, spec: ModelSpec, base: VersionRecord) -> None:
        self._disk = disk
        self._config = config
        self._spec = spec
        self._strategy = make_strategy(config.strategy, config.strategy_params)
        self._aggregation = Aggregation(config, spec, disk.blobs, base)
        self._base = base
        self.job_id = base.job_id
        self.round_number = base.version + 1
        self.rows: dict[str, UpdateRecord] = {}
        self.carried: dict[str, VersionRecord] = {}
        """Devices that came into this round at the task of an earlier one, and the version that it starts from."""

    async def take_over(self) -> None:
        """Find the devices that the round before left at their tasks."""
        if self._strategy.late_rounds == 0:
            return
        storage, job_id = self._disk.storage, self.job_id
        for row in await self._disk.run(storage.list_updates, job_id, self.round_number - 1):
            first: UpdateRecord | None = row
            while first is not None and first.status == "CARRIED":
                base = await self._disk.run(storage.get_version, job_id, first.round_number - 1)
                if base is not None:
                    self.carried[row.device_id] = base
                first = await self._disk.run(storage.get_update, job_id, first.round_number - 1, row.device_id)

    def base_of(self, device_id: str) -> VersionRecord:
        """Return the version that a device's task starts from."""
        return self.carried.get(device_id, self._base)

    @property
    def last_call(self) -> frozenset[str]:
        """Return the carried devices that no later round takes an update of."""
        oldest = self._base.version - self._strategy.late_rounds
        return frozenset(device_id for device_id, base in self.carried.items() if base.version <= oldest)

    def with_status(self, *statuses: str) -> frozenset[str]:
        """Return the devices whose row has one of these statuses."""
        return frozenset(device_id for device_id, row in self.rows.items() if row.status in statuses)

    async def recover(self) -> None:
        """Read the rows back and fold the accepted payloads again; one that is lost on disk is no longer accepted."""
        rows = await self._disk.run(self._disk.storage.list_updates, self.job_id, self.round_number)
        self.rows = {row.device_id: row for row in rows}
        for device_id in sorted(self.with_status("ACCEPTED")):
            row = self.rows[device_id]
            try:
                await asyncio.to_thread(self._fold_again, row)
            except BitfleetError as error:
                _log.error(
                    "event=update_lost job=%s round=%d device=%s reason=%r",
                    self.job_id, self.round_number, device_id, str(error),
                )  # fmt: skip
                await self._write(replace(row, status="ASSIGNED", update_digest=None))

    def _fold_again(self, row: UpdateRecord) -> None:
        data = self._disk.blobs.get(row.update_digest or "")
        codec, kind = self._config.update_form(self.round_number)
        update = get_codec(codec).decode(self._spec, data, kind=kind)
        self._add(row.device_id, update, row.num_examples)

    def _add(self, device_id: str, update: Update, num_examples: int) -> None:
        base = self.base_of(device_id)
        weight = self._strategy.weight_of(num_examples, self._base.version - base.version)
        self._aggregation.add(device_id, update, weight, base)

    def assigned(self, device_ids: Iterable[str]) -> list[UpdateRecord]:
        """Give these devices the task; returns the rows for the caller to commit."""
        rows = [replace(self._row(device_id), status="ASSIGNED", reason="") for device_id in sorted(device_ids)]
        self.rows.update((row.device_id, row) for row in rows)
        return rows

    def count(self, device_id: str, *, down: int = 0, up: int = 0) -> None:
        """Count bytes that went to or came from a device; they are written down with its next change of status."""
        row = self.rows.get(device_id)
        if row is not None:
            self.rows[device_id] = replace(row, down_bytes=row.down_bytes + down, up_bytes=row.up_bytes + up)

    async def fold(self, upload: Upload) -> None:
        """Add an update to the sum in memory; ``accept`` must follow.

        Raises:
          PayloadError: the strategy cannot take it; the sum is unchanged.
        """
        header = upload.header
        await asyncio.to_thread(self._add, header.device_id, upload.update, header.num_examples)

    async def accept(self, uploads: Sequence[Upload]) -> None:
        """Make updates that were folded in durable, together.

        Payloads first, rows second: a crash between the two leaves files that no row names, and the devices, which got
        no answer, send again.
        """
        await asyncio.to_thread(self._disk.blobs.keep, [upload.writer for upload in uploads])
        rows = [self._accepted(upload.header) for upload in uploads]
        await self._write(*rows)

    def _accepted(self, header: UpdateHeader) -> UpdateRecord:
        base = self.base_of(header.device_id)
        return replace(
            self._row(header.device_id),
            status="ACCEPTED",
            reason=f"of round {base.version + 1}" if base != self._base else "",
            update_digest=header.update_digest,
            num_examples=header.num_examples,
            payload_bytes=header.total_bytes,
            seconds=header.seconds,
            training_seconds=header.training_seconds,
            steps=header.steps,
            loss=header.loss,
            peak_pss_bytes=header.peak_pss_bytes,
            received_at=time.time(),
        )

    async def note(self, device_id: str, status: str, reason: str, header: UpdateHeader | None = None) -> None:
        """Write down that a device's task ended without an accepted update."""
        if status != "ABANDONED" and self.carried.pop(device_id, None) is not None:  # what it is given next is new
            storage = self._disk.storage
            before = await self._disk.run(storage.get_update, self.job_id, self.round_number - 1, device_id)
            if before is not None:
                await self._disk.run(storage.record_updates, [replace(before, status=status, reason=reason)])
        row = replace(self._row(device_id), status=status, reason=reason, received_at=time.time())
        if header is not None:
            row = replace(row, num_examples=header.num_examples, payload_bytes=header.total_bytes)
        await self._write(row)

    async def finish(self) -> tuple[State, str | None]:
        """Return the next model's state, and the digest of the payload of what the strategy remembers, if anything."""
        return await asyncio.to_thread(self._aggregation.finish)

    def release(self) -> None:
        """Give back what lies on disk beside the payloads."""
        self._aggregation.close()

    def close(self, late: frozenset[str] = frozenset()) -> list[UpdateRecord]:
        """End the collection; returns all rows.

        Whoever had the task and sent nothing has missed the round, or is carried into the next one where ``late``.
        """
        for device_id in self.with_status("ASSIGNED"):
            status = "CARRIED" if device_id in late else "MISSED"
            self.rows[device_id] = replace(self.rows[device_id], status=status)
        return list(self.rows.values())

    def _row(self, device_id: str) -> UpdateRecord:
        return self.rows.get(device_id) or UpdateRecord(self.job_id, self.round_number, device_id, "ASSIGNED")

    async def _write(self, *rows: UpdateRecord) -> None:
        self.rows.update((row.device_id, row) for row in rows)
        await self._disk.run(self._disk.storage.record_updates, rows)
