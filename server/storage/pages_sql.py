"""``PageStore`` over SQLAlchemy: keyset pagination."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Engine, Select, Table, and_, case, func, select

from server.errors import InvalidCursorError
from server.storage import tables
from server.storage.base import DeviceRecord, JobRecord, RoundRecord, UpdateRecord, VersionRecord
from server.storage.mapping import record_of
from server.storage.pages import CommittedRound, JobSums, ModelRecord, Page, RoundSums
from server.storage.trust import AuditRecord, IdentityRecord

_Record = TypeVar(
    "_Record", JobRecord, RoundRecord, UpdateRecord, VersionRecord, DeviceRecord, IdentityRecord, AuditRecord
)

_AT_ONCE = 500
"""Rows that are fetched at a time."""


class SqlPages:
    """The tables behind an engine; see ``PageStore`` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def jobs(
        self,
        limit: int,
        after: str | None = None,
        *,
        state: str | None = None,
        name: str | None = None,
        newest_first: bool = False,
    ) -> Page[JobRecord]:
        columns = tables.jobs.c
        wanted = _given({columns.state: state, columns.name: name})
        start = self._position(after)
        return self._page(JobRecord, columns.position, wanted, limit, start, is_descending=newest_first)

    def count_jobs(self) -> dict[str, int]:
        state = tables.jobs.c.state
        with self._engine.connect() as connection:
            return dict(connection.execute(select(state, func.count()).group_by(state)).all())

    def job_sums(self, job_ids: Collection[str]) -> dict[str, JobSums]:
        job, columns = tables.jobs.c, tables.rounds.c
        is_committed = columns.state == "COMMITTED"

        def of_job(value: ColumnElement[Any], *order: ColumnElement[Any], where: ColumnElement[bool]) -> Any:
            rows = select(value).where(columns.job_id == job.job_id, is_committed, where)
            return (rows.order_by(*order).limit(1) if order else rows).scalar_subquery()

        accuracy, number = columns.accuracy, columns.round_number
        local = 100.0 * columns.local_correct / columns.local_examples
        is_known, is_judged = accuracy.is_not(None), columns.local_examples > 0
        sums = select(
            job.job_id,
            of_job(func.count(), where=is_committed),
            of_job(accuracy, number.desc(), where=is_known),
            of_job(columns.loss, number.desc(), where=is_known),
            of_job(local, number.desc(), where=is_judged),
            of_job(number, accuracy.desc(), number, where=is_known),
            of_job(number, local.desc(), number, where=is_judged),
        ).where(job.job_id.in_(job_ids))
        is_wanted = [is_committed, columns.job_id.in_(job_ids), columns.overhead_s.is_not(None)]
        overheads = defaultdict[str, list[float]](list)
        with self._engine.connect() as connection:
            rows = connection.execute(sums).all()
            for job_id, overhead_s in connection.execute(select(columns.job_id, columns.overhead_s).where(*is_wanted)):
                overheads[job_id].append(overhead_s)
        medians = {job_id: median(known) for job_id, known in overheads.items()}
        return {job_id: replace(JobSums(*found), overhead_s=medians.get(job_id)) for job_id, *found in rows}

    def committed(self, job_ids: Collection[str], numbers: Collection[int]) -> list[CommittedRound]:
        columns = tables.rounds.c
        light = select(*(columns[field.name] for field in fields(CommittedRound)))
        light = light.where(columns.state == "COMMITTED", columns.job_id.in_(job_ids))
        light = light.where(columns.round_number.in_(numbers))
        with self._engine.connect() as connection:
            rows = connection.execute(light.order_by(columns.job_id, columns.round_number)).all()
        return [CommittedRound(*row) for row in rows]

    def rounds(
        self,
        job_id: str,
        limit: int,
        after: str | None = None,
        *,
        state: str | None = None,
        only: Collection[int] | None = None,
        newest_first: bool = False,
    ) -> Page[RoundRecord]:
        columns = tables.rounds.c
        wanted = [columns.job_id == job_id, *_given({columns.state: state})]
        if only is not None:
            wanted.append(columns.round_number.in_(only))
        start = _number(after)
        return self._page(RoundRecord, columns.round_number, wanted, limit, start, is_descending=newest_first)

    def updates(
        self, job_id: str, round_numbers: Sequence[int], device_ids: Collection[str] | None = None
    ) -> list[UpdateRecord]:
        columns = tables.updates.c
        rows = select(tables.updates).where(columns.job_id == job_id, columns.round_number.in_(round_numbers))
        if device_ids is not None:
            rows = rows.where(columns.device_id.in_(device_ids))
        return self._all(UpdateRecord, rows.order_by(columns.round_number, columns.device_id))

    def round_sums(self, rounds: Sequence[RoundRecord]) -> dict[int, RoundSums]:
        columns, cohorts = tables.updates.c, {round_.round_number: frozenset(round_.cohort) for round_ in rounds}
        is_accepted = columns.status == "ACCEPTED"
        is_lost = and_(columns.status == "LOST", columns.exchange_step != "")
        wanted = [columns.job_id.in_({round_.job_id for round_ in rounds}), columns.round_number.in_(cohorts)]
        sums = select(
            columns.round_number,
            func.count(),
            func.sum(columns.down_bytes),
            func.sum(columns.up_bytes),
            _count(is_accepted),
            _count(columns.status == "REJECTED"),
            func.max(case((is_accepted, columns.seconds))),
            func.max(case((is_accepted, columns.training_seconds))),
            func.avg(case((is_accepted, columns.joules))),
            _count(is_lost),
            _count(and_(is_lost, columns.exchange_step == "KEYS")),
            _count(and_(is_lost, columns.exchange_step == "SHARES")),
        )
        with self._engine.connect() as connection:
            rows = connection.execute(sums.where(*wanted).group_by(columns.round_number)).all()
            found = {number: RoundSums(count, int(down), int(up), *more) for number, count, down, up, *more in rows}
            # Each member of a cohort has a row. Where there are more, some are of devices that were asked before.
            odd = [number for number, sums_ in found.items() if sums_.members != len(cohorts[number])]
            single = select(columns.round_number, columns.device_id, columns.down_bytes, columns.up_bytes)
            others = connection.execute(single.where(wanted[0], columns.round_number.in_(odd))).all() if odd else []
        for number, device_id, down, up in others:
            if device_id not in cohorts[number]:
                its = found[number]
                found[number] = replace(
                    its,
                    members=its.members - 1,
                    down_bytes=its.down_bytes - down,
                    up_bytes=its.up_bytes - up,
                )
        return found

    def models(self, limit: int, after: str | None = None, *, newest_first: bool = False) -> Page[ModelRecord]:
        job, version = tables.jobs.c, tables.versions.c
        has_one = select(version.job_id).where(version.job_id == job.job_id).exists()
        start = self._position(after)
        jobs = self._page(JobRecord, job.position, [has_one], limit, start, is_descending=newest_first)
        ids = [record.job_id for record in jobs.records]
        counted = (
            select(version.job_id, func.max(version.version).label("version"), func.count().label("count"))
            .where(version.job_id.in_(ids))
            .group_by(version.job_id)
            .subquery()
        )
        is_newest = (counted.c.job_id == version.job_id) & (counted.c.version == version.version)
        with self._engine.connect() as connection:
            rows = connection.execute(select(tables.versions, counted.c.count).join(counted, is_newest)).mappings()
            newest = {row["job_id"]: (row["count"], record_of(VersionRecord, row)) for row in rows}
        found = [job for job in jobs.records if job.job_id in newest]  # its versions may have gone since
        models = [ModelRecord(job.job_id, job.name, *newest[job.job_id]) for job in found]
        return Page(models, jobs.total, jobs.next)

    def versions(
        self, job_id: str, limit: int, after: str | None = None, *, newest_first: bool = False
    ) -> Page[VersionRecord]:
        columns = tables.versions.c
        wanted = [columns.job_id == job_id]
        return self._page(VersionRecord, columns.version, wanted, limit, _number(after), is_descending=newest_first)

    def devices(
        self,
        limit: int,
        after: str | None = None,
        *,
        only: Collection[str] | None = None,
        without: Collection[str] = frozenset(),
        containing: str = "",
    ) -> Page[DeviceRecord]:
        device_id = tables.devices.c.device_id
        wanted = [func.lower(device_id).contains(containing.lower(), autoescape=True)] if containing else []
        if only is None and not without:
            return self._page(DeviceRecord, device_id, wanted, limit, after)
        total, ids = 0, list[str]()
        with self._engine.connect().execution_options(yield_per=_AT_ONCE) as connection:
            for name in connection.execute(select(device_id).where(*wanted).order_by(device_id)).scalars():
                if name not in without and (only is None or name in only):
                    total += 1
                    if (after is None or name > after) and len(ids) <= limit:
                        ids.append(name)
        page = select(tables.devices).where(device_id.in_(ids[:limit])).order_by(device_id)
        return Page(self._all(DeviceRecord, page), total, ids[limit - 1] if len(ids) > limit else None)

    def count_devices(self) -> int:
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(tables.devices)).scalar_one()

    def unseen(self, limit: int, after: str | None = None) -> Page[IdentityRecord]:
        columns, device_id = tables.identities.c, tables.devices.c.device_id
        has_connected = select(device_id).where(device_id == columns.device_id).exists()
        return self._page(IdentityRecord, columns.device_id, [columns.state == "ACTIVE", ~has_connected], limit, after)

    def labels(self, device_ids: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        columns = tables.identities.c
        rows = select(columns.device_id, columns.labels)
        if device_ids is not None:
            rows = rows.where(columns.device_id.in_(device_ids))
        with self._engine.connect() as connection:
            return dict(connection.execute(rows).all())

    def audit(
        self, limit: int, after: str | None = None, *, actor: str | None = None, action: str | None = None
    ) -> Page[AuditRecord]:
        columns = tables.audit.c
        wanted = _given({columns.actor: actor})
        if action is not None:
            wanted.append(columns.action.startswith(action, autoescape=True))
        return self._page(AuditRecord, columns.position, wanted, limit, _number(after), is_descending=True)

    def _page(
        self,
        kind: type[_Record],
        key: Column[Any],
        wanted: list[ColumnElement[bool]],
        limit: int,
        after: Any,
        *,
        is_descending: bool = False,
    ) -> Page[_Record]:
        """Read a page of the records that are wanted, in the order of a key."""
        table = key.table
        assert isinstance(table, Table)
        page = select(table).where(*wanted).order_by(key.desc() if is_descending else key).limit(limit + 1)
        if after is not None:
            page = page.where(key < after if is_descending else key > after)
        with self._engine.connect() as connection:
            total = connection.execute(select(func.count()).select_from(table).where(*wanted)).scalar_one()
            rows = connection.execute(page).mappings().all()
        cursor = None
        if len(rows) > limit:
            last = rows[limit - 1]
            cursor = str(last["job_id" if table is tables.jobs else key.name])
        return Page([record_of(kind, row) for row in rows[:limit]], total, cursor)

    def _all(self, kind: type[_Record], rows: Select[Any]) -> list[_Record]:
        with self._engine.connect() as connection:
            return [record_of(kind, row) for row in connection.execute(rows).mappings()]

    def _position(self, job_id: str | None) -> int | None:
        """Return where a job is in the order of jobs."""
        if job_id is None:
            return None
        columns = tables.jobs.c
        with self._engine.connect() as connection:
            position = connection.execute(select(columns.position).where(columns.job_id == job_id)).scalar()
        if position is None:
            raise InvalidCursorError(job_id)
        return int(position)


def _given(values: dict[Column[Any], str | None]) -> list[ColumnElement[bool]]:
    return [column == value for column, value in values.items() if value is not None]


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))


def _number(after: str | None) -> int | None:
    if after is None:
        return None
    if not after.isascii() or not after.isdecimal() or len(after) > 9:
        raise InvalidCursorError(after)
    return int(after)
