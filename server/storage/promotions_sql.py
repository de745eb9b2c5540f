"""``PromotionStore`` over SQLAlchemy, beside the rest of the database."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

from server.errors import ConflictError, NotFoundError
from server.storage import tables
from server.storage.promotions import PromotionRecord

_COLUMNS = tables.promotions.c


class SqlPromotions:
    """The table behind an engine; see ``PromotionStore`` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, promotion: PromotionRecord) -> None:
        version = tables.versions.c
        with self._engine.begin() as connection:
            take_turn(connection, promotion.job_id)
            kept = connection.execute(
                select(version.is_kept).where(version.job_id == promotion.job_id, version.version == promotion.version)
            ).scalar()
            if not kept:
                why = "has no" if kept is None else "no longer keeps the bytes of"
                raise NotFoundError(
                    f"model {promotion.job_id!r} {why} version {promotion.version}, so it cannot be promoted"
                )
            standing = _standing(connection, promotion.job_id)
            if standing and standing[-1]["version"] == promotion.version:
                raise ConflictError(
                    f"version {promotion.version} of model {promotion.job_id!r} is the promoted one already"
                )
            connection.execute(insert(tables.promotions).values(asdict(promotion)))

    def withdraw(self, job_id: str, at: float, by: str) -> PromotionRecord:
        with self._engine.begin() as connection:
            take_turn(connection, job_id)
            standing = _standing(connection, job_id)
            if len(standing) < 2:
                found = "one promotion" if standing else "no promotion"
                raise ConflictError(
                    f"model {job_id!r} has {found}: there is no earlier version to roll back to; promote one"
                )
            connection.execute(
                update(tables.promotions)
                .where(_COLUMNS.position == standing[-1]["position"])
                .values(withdrawn_at=at, withdrawn_by=by)
            )
        return _record(standing[-2])

    def history(self, job_id: str) -> list[PromotionRecord]:
        rows = select(tables.promotions).where(_COLUMNS.job_id == job_id).order_by(_COLUMNS.position)
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(rows).mappings()]

    def standing(self) -> dict[str, list[int]]:
        rows = select(_COLUMNS.job_id, _COLUMNS.version).where(_COLUMNS.withdrawn_at.is_(None))
        found: dict[str, list[int]] = {}
        with self._engine.connect() as connection:
            for job_id, version in connection.execute(rows.order_by(_COLUMNS.position)):
                found.setdefault(job_id, []).append(version)
        return found


def _standing(connection: Connection, job_id: str) -> list[RowMapping]:
    rows = select(tables.promotions).where(_COLUMNS.job_id == job_id, _COLUMNS.withdrawn_at.is_(None))
    return list(connection.execute(rows.order_by(_COLUMNS.position)).mappings())


def _record(row: RowMapping) -> PromotionRecord:
    return PromotionRecord(**{field.name: row[field.name] for field in fields(PromotionRecord)})


def take_turn(connection: Connection, *job_ids: str) -> None:
    """Have other coordinators' changes of the jobs' promotions wait for this transaction's end, or wait for theirs."""
    job = tables.jobs.c
    jobs = select(job.position).where(job.job_id.in_(job_ids)).order_by(job.position)
    connection.execute(jobs.with_for_update(key_share=True))  # not in the way of rows that refer to the jobs


def promoted(connection: Connection) -> set[tuple[str, int]]:
    """Return the (job, version) pairs whose promotion was not withdrawn."""
    rows = connection.execute(select(_COLUMNS.job_id, _COLUMNS.version).where(_COLUMNS.withdrawn_at.is_(None)))
    return {(job_id, version) for job_id, version in rows}
