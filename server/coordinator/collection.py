"""A round's updates while they are collected: the rows that are durable and the sum that is in memory.

The sum can always be made again from the rows and the payloads they name, so only they matter at a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bnncore.codec import payload_digest
from bnncore.errors import BitfleetError
from bnncore.secure.values import ValueSum
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.coordinator.aggregation import Aggregation, is_mergeable
from server.coordinator.disk import Disk
from server.coordinator.events import ExchangeStep
from server.coordinator.messages import UpdateHeader
from server.coordinator.partial_sums import Part, PartialSum, PartialSums
from server.coordinator.space import Space
from server.coordinator.upload import Upload, decode_update, keep
from server.errors import PayloadLostError
from server.jobs import JobConfig
from server.storage.base import ScoreRecord, UpdateRecord, VersionRecord
from server.strategies import Update, make_strategy

_log = logging.getLogger(__name__)


class Collection:
    """The updates of one round of one job."""

    def __init__(
        self,
        disk: Disk,
        space: Space,
        config: JobConfig,
        spec: ModelSpec,
        base: VersionRecord,
        partial_sums: PartialSums,
    ) -> None:
        self._disk = disk
        self._space = space
        self._config = config
        self._spec = spec
        self._strategy = make_strategy(config.strategy, config.strategy_params)
        self._aggregation = Aggregation(config, spec, disk.blobs, base)
        self._base = base
        self._partial_sums = partial_sums
        self._apart: set[str] = set()
        """Devices whose accepted update is added up by another replica."""
        self._claims = contextlib.ExitStack()
        """On payloads that no row names yet, and on room."""
        self.job_id = base.job_id
        self.round_number = base.version + 1
        self.rows: dict[str, UpdateRecord] = {}
        self.carried: dict[str, VersionRecord] = {}
        """Devices that came into this round at the task of an earlier one, and the version that it starts from."""
        self.keys: dict[str, bytes] = {}
        """Under secure aggregation what each accepted device sent as its keys."""
        self._sum: ValueSum | None = None

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
        """Read the rows back and fold the accepted payloads again, but those that a replica holds which is there.

        One that is lost on disk is no longer accepted.
        """
        rows = await self._disk.run(self._disk.storage.list_updates, self.job_id, self.round_number)
        self.rows = {row.device_id: row for row in rows}
        for device_id in sorted(self.with_status("ACCEPTED")):
            row = self.rows[device_id]
            if row.folded_by is not None and is_mergeable(self._config) and self._partial_sums.is_there(row.folded_by):
                self._set_apart(device_id, row.num_examples)
                continue
            self._claims.enter_context(self._space.held(self._aggregation.spooled_bytes))
            try:
                await asyncio.to_thread(self._fold_again, row)
                self.rows[device_id] = replace(row, folded_by=None)
            except BitfleetError as error:
                await self._lose(row, error)

    async def _lose(self, row: UpdateRecord, error: BitfleetError) -> None:
        """Write down that an accepted update cannot be read any more: its device is asked for it again."""
        _log.error(
            "event=update_lost job=%s round=%d device=%s reason=%r",
            self.job_id, self.round_number, row.device_id, str(error),
        )  # fmt: skip
        await self._write(replace(row, status="ASSIGNED", update_digest=None, folded_by=None))

    def _fold_again(self, row: UpdateRecord) -> None:
        data = self._disk.blobs.get(row.update_digest or "")
        if self._is_secure:
            self.keys[row.device_id] = data
            return
        self._add(row.device_id, decode_update(self._config, self.round_number, data), row.num_examples)

    @property
    def _is_secure(self) -> bool:
        return self._config.secure_aggregation is not None

    def _add(self, device_id: str, update: Update, num_examples: int) -> None:
        base = self.base_of(device_id)
        self._aggregation.add(device_id, update, self._weight_of(device_id, num_examples), base)

    def _weight_of(self, device_id: str, num_examples: int) -> int:
        return self._strategy.weight_of(num_examples, self._base.version - self.base_of(device_id).version)

    def _set_apart(self, device_id: str, num_examples: int) -> None:
        """Leave an update to the replica that adds it up; raises PayloadError when it is more than a round carries."""
        self._aggregation.set_apart(self._weight_of(device_id, num_examples))
        self._apart.add(device_id)

    def assigned(self, device_ids: Iterable[str]) -> list[UpdateRecord]:
        """Give these devices the task; returns the rows for the caller to commit."""
        rows = [
            replace(self._row(device_id), status="ASSIGNED", reason="", exchange_step="")
            for device_id in sorted(device_ids)
        ]
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
          NoRoomError: what the strategy puts aside has no room; the sum is unchanged.
        """
        header = upload.header
        if upload.folded_by is not None:
            self._set_apart(header.device_id, header.num_examples)
            return
        if upload.update is None:
            self.keys[header.device_id] = upload.read()
            return
        if spooled := self._aggregation.spooled_bytes:
            self._claims.enter_context(await self._space.make_room(spooled))
        await asyncio.to_thread(self._add, header.device_id, upload.update, header.num_examples)

    async def accept(self, uploads: Sequence[Upload]) -> None:
        """Make updates that were folded in durable, together.

        Payloads first, rows second: a crash between the two leaves files that no row names, and the devices, which got
        no answer, send again.
        """
        with self._disk.claimed({upload.header.update_digest for upload in uploads}):
            await asyncio.to_thread(keep, self._disk, uploads)
            rows = [replace(self._accepted(upload.header), folded_by=upload.folded_by) for upload in uploads]
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
            loss=header.loss if header.step is None else None,  # what devices measured is in the sum
            peak_pss_bytes=header.peak_pss_bytes,
            validation_examples=header.validation_examples,
            validation_correct=header.validation_correct,
            validation_loss=header.validation_loss,
            joules=header.joules,
            joules_source=header.joules_source,
            received_at=time.time(),
            exchange_step=header.step or "",
        )

    def note_step(self, device_id: str, step: ExchangeStep) -> None:
        """Note that a member of the exchange has taken a step; its row is written at the exchange's end."""
        self.rows[device_id] = replace(self._row(device_id), exchange_step=step)

    async def add_sum(self, total: ValueSum, survivors: frozenset[str]) -> None:
        """Take in the sum of the survivors' updates; the other members of the exchange were lost on the way."""
        await asyncio.to_thread(self._aggregation.add_sum, total)
        self._sum = total
        for device_id in self.with_status("ACCEPTED") - survivors:
            row = self.rows[device_id]
            reason = f"after {row.exchange_step} it took no further step of the exchange in time"
            self.rows[device_id] = replace(row, status="LOST", reason=reason)

    def forget_keys(self, reason: str, *, declined: frozenset[str], spent: frozenset[str]) -> list[UpdateRecord]:
        """Note that an exchange has failed, after which nothing of it counts; returns the rows for the caller to write.

        Members that may be asked again have trained, which their rows go on to say by their step.
        """
        rows = []
        for device_id in sorted(self.with_status("ACCEPTED")):
            row = replace(self.rows[device_id], status="MISSED", reason=reason, update_digest=None)
            if device_id in declined | spent:
                row = replace(row, status="LOST" if device_id in spent else "DECLINED", exchange_step="")
            self.rows[device_id] = row
            rows.append(row)
        self.keys.clear()
        return rows

    @property
    def trained(self) -> frozenset[str]:
        """Return the members of exchanges of the round that have failed."""
        return frozenset(row.device_id for row in self.rows.values() if row.status == "MISSED" and row.exchange_step)

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
        """Return the next model's state, and the digest of the payload of what the strategy remembers, if anything.

        Raises:
          PayloadLostError: accepted updates cannot be read any more, which is written down.
        """
        if self._apart:
            await self._bring_in()
        return await asyncio.to_thread(self._aggregation.finish, self._put)

    async def _bring_in(self) -> None:
        """Merge what others have added up, and fold from its payload each update that is in no such sum."""
        missing: dict[str, Part] = {}
        replicas: dict[str, dict[str, Part]] = {}
        for device_id in sorted(self._apart):
            row = self.rows[device_id]
            part = Part(row.update_digest or "", self._weight_of(device_id, row.num_examples))
            missing[device_id] = replicas.setdefault(row.folded_by or "", {})[device_id] = part
        self._aggregation.end_apart()
        for partial_sum in await self._partial_sums.gather(self._base, replicas):
            if partial_sum.parts.items() <= missing.items() and await asyncio.to_thread(self._merge, partial_sum):
                for device_id in partial_sum.parts:
                    del missing[device_id]
        if missing:
            _log.warning(
                "event=updates_folded_again job=%s round=%d devices=%d", self.job_id, self.round_number, len(missing)
            )
        lost: list[str] = []
        for row in [self.rows[device_id] for device_id in missing]:
            try:
                await asyncio.to_thread(self._fold_again, row)
                self.rows[row.device_id] = replace(row, folded_by=None)
            except BitfleetError as error:
                await self._lose(row, error)
                lost.append(row.device_id)
        if lost:  # the round is taken up again, without them
            raise PayloadLostError(f"updates of round {self.round_number} are lost, of devices {', '.join(lost)}")
        self._apart.clear()

    def _merge(self, partial_sum: PartialSum) -> bool:
        """Merge a sum; False: it is not what it should be, and nothing has changed."""
        parts = partial_sum.parts.values()
        try:
            data = self._disk.blobs.get(partial_sum.digest)
            self._aggregation.merge(data, num_updates=len(parts), weight=sum(part.weight for part in parts))
        except BitfleetError as error:
            _log.error(
                "event=partial_sum_refused job=%s round=%d payload=%s reason=%r",
                self.job_id, self.round_number, partial_sum.digest, str(error),
            )  # fmt: skip
            return False
        return True

    def _put(self, data: bytes) -> str:
        self._claims.enter_context(self._disk.claimed({payload_digest(data)}))
        return self._disk.blobs.put(data)

    def scores(self) -> dict[int, ScoreRecord]:
        """Return how the accepted devices judged the versions that they started from, by version."""
        if self._sum is not None:
            metrics = self._sum.metrics
            examples = metrics.validation_examples
            return {
                self._base.version: ScoreRecord(
                    examples, metrics.validation_correct, examples * metrics.validation_loss
                )
            }
        judged: dict[int, list[UpdateRecord]] = {}
        for device_id in sorted(self.with_status("ACCEPTED")):
            judged.setdefault(self.base_of(device_id).version, []).append(self.rows[device_id])
        return {version: ScoreRecord.of(rows) for version, rows in judged.items()}

    def release(self) -> None:
        """Give back what lies on disk beside the payloads, and what was claimed until the round's end."""
        self._aggregation.close()
        self._claims.close()

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
        for row in rows:
            self._disk.feed.publish_update(row)
