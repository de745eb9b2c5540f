"""``Storage`` over SQLAlchemy: SQLite in a file by default, PostgreSQL by URL.

SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that returned is on disk. There is one writer, the
coordinator; the schema is brought up to date when the database is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from importlib import resources
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, RowMapping, Table, create_engine, event, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from bnncore.errors import ConfigurationError
from server.errors import ConflictError
from server.storage import tables
from server.storage.base import DeviceRecord, JobRecord, RoundRecord, UpdateRecord, VersionRecord

_log = logging.getLogger(__name__)

_Record = TypeVar("_Record", JobRecord, RoundRecord, UpdateRecord, VersionRecord, DeviceRecord)


def open_storage(url: str) -> SqlStorage:
    """Open a database, creating or migrating its schema.

    Args:
      url: an SQLAlchemy URL: ``sqlite:///path/to/file.db`` or ``postgresql+psycopg://user:password@host/name``.

    Raises:
      ConfigurationError: the URL is malformed, its driver is not installed, or the database cannot be opened.
    """
    try:
        engine = create_engine(make_url(url), poolclass=QueuePool, pool_pre_ping=True)
        shown = engine.url.render_as_string(hide_password=True)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"--database must be a URL of an installed driver: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        with engine.begin() as connection:
            _migrate(connection)
    except SQLAlchemyError as error:
        engine.dispose()
        raise ConfigurationError(f"cannot open the database {shown}: {error}") from error
    return SqlStorage(engine)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(connection: Connection) -> None:
    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Config:
    """Return what Alembic's commands need to work on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("server.storage") / "migrations"))
    config.attributes["connection"] = connection
    return config


class SqlStorage:
    """The database behind an SQLAlchemy engine; see ``Storage`` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()

    # Jobs

    def add_job(self, job: JobRecord) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(tables.jobs).values(asdict(job)))
        except IntegrityError as error:
            raise ConflictError(f"a job with id {job.job_id!r} exists already") from error

    def get_job(self, job_id: str) -> JobRecord | None:
        return self._one(JobRecord, tables.jobs, job_id=job_id)

    def list_jobs(self) -> list[JobRecord]:
        return self._many(JobRecord, tables.jobs, order_by="position")

    def set_job_state(self, job_id: str, state: str, *, finished_at: float | None = None, reason: str = "") -> None:
        with self._engine.begin() as connection:
            connection.execute(
                update(tables.jobs)
                .where(tables.jobs.c.job_id == job_id)
                .values(state=state, finished_at=finished_at, reason=reason)
            )

    # Rounds and updates

    def save_round(self, round_: RoundRecord, assigned: Iterable[UpdateRecord] = ()) -> None:
        with self._engine.begin() as connection:
            _upsert(connection, tables.rounds, asdict(round_))
            for row in assigned:
                _upsert(connection, tables.updates, asdict(row))

    def get_round(self, job_id: str, round_number: int) -> RoundRecord | None:
        return self._one(RoundRecord, tables.rounds, job_id=job_id, round_number=round_number)

    def list_rounds(self, job_id: str) -> list[RoundRecord]:
        return self._many(RoundRecord, tables.rounds, order_by="round_number", job_id=job_id)

    def recent_overheads(self, limit: int) -> list[float]:
        columns = tables.rounds.c
        newest = select(columns.overhead_s).where(columns.overhead_s.is_not(None)).order_by(columns.committed_at.desc())
        with self._engine.connect() as connection:
            return list(connection.execute(newest.limit(limit)).scalars())

    def commit_round(self, round_: RoundRecord, version: VersionRecord, updates: Iterable[UpdateRecord] = ()) -> None:
        with self._engine.begin() as connection:
            _upsert(connection, tables.versions, asdict(version))
            _upsert(connection, tables.rounds, asdict(round_))
            for row in updates:
                _upsert(connection, tables.updates, asdict(row))

    def set_evaluation(self, job_id: str, round_number: int, *, accuracy: float, loss: float) -> None:
        columns = tables.rounds.c
        with self._engine.begin() as connection:
            connection.execute(
                update(tables.rounds)
                .where(columns.job_id == job_id, columns.round_number == round_number)
                .values(accuracy=accuracy, loss=loss)
            )

    def record_updates(self, updates: Iterable[UpdateRecord]) -> None:
        with self._engine.begin() as connection:
            for row in updates:
                _upsert(connection, tables.updates, asdict(row))

    def get_update(self, job_id: str, round_number: int, device_id: str) -> UpdateRecord | None:
        return self._one(UpdateRecord, tables.updates, job_id=job_id, round_number=round_number, device_id=device_id)

    def list_updates(self, job_id: str, round_number: int | None = None) -> list[UpdateRecord]:
        keys: dict[str, object] = {"job_id": job_id}
        if round_number is not None:
            keys["round_number"] = round_number
        return self._many(UpdateRecord, tables.updates, order_by="round_number, device_id", **keys)

    def measured_steps(self, job_id: str, before_round: int) -> dict[str, tuple[int, float]]:
        columns = tables.updates.c
        measured = (
            select(columns.device_id, columns.steps, columns.training_seconds)
            .where(columns.job_id == job_id, columns.round_number < before_round, columns.status == "ACCEPTED")
            .where(columns.steps > 0, columns.training_seconds > 0)
        )
        newest = (
            measured.with_only_columns(columns.device_id, func.max(columns.round_number).label("round_number"))
            .group_by(columns.device_id)
            .subquery()
        )
        is_newest = (newest.c.device_id == columns.device_id) & (newest.c.round_number == columns.round_number)
        with self._engine.connect() as connection:
            rows = connection.execute(measured.join(newest, is_newest)).all()
        return {device_id: (steps, seconds) for device_id, steps, seconds in rows}

    # Model versions

    def add_version(self, version: VersionRecord) -> None:
        with self._engine.begin() as connection:
            _upsert(connection, tables.versions, asdict(version))

    def get_version(self, job_id: str, version: int) -> VersionRecord | None:
        return self._one(VersionRecord, tables.versions, job_id=job_id, version=version)

    def list_versions(self, job_id: str) -> list[VersionRecord]:
        return self._many(VersionRecord, tables.versions, order_by="version", job_id=job_id)

    def find_payload(self, digest: str) -> int | None:
        columns = tables.versions.c
        models = select(columns.payload_bytes).where(columns.payload_digest == digest)
        steps = select(columns.step_bytes).where(columns.step_digest == digest)
        with self._engine.connect() as connection:
            return connection.execute(models.union_all(steps).limit(1)).scalar()

    # Devices

    def save_device(self, device: DeviceRecord) -> None:
        values = asdict(device)
        with self._engine.begin() as connection:
            _upsert(connection, tables.devices, values, keep={"first_seen"})

    def list_devices(self) -> list[DeviceRecord]:
        return self._many(DeviceRecord, tables.devices, order_by="device_id")

    # Payloads

    def referenced_digests(self) -> set[str]:
        version, row, round_ = tables.versions.c, tables.updates.c, tables.rounds.c
        with self._engine.connect() as connection:
            found = set(connection.execute(select(version.payload_digest)).scalars())
            found.update(connection.execute(select(version.state_digest)).scalars())
            newest = (
                select(version.job_id, func.max(version.version).label("version")).group_by(version.job_id).subquery()
            )
            is_newest = (newest.c.job_id == version.job_id) & (newest.c.version == version.version)
            found.update(connection.execute(select(version.memory_digest).join(newest, is_newest)).scalars())
            found.update(connection.execute(select(version.step_digest)).scalars())
            found.update(
                connection.execute(
                    select(row.update_digest)
                    .join(
                        tables.rounds,
                        (round_.job_id == row.job_id) & (round_.round_number == row.round_number),
                    )
                    .where(row.status == "ACCEPTED", round_.state.not_in(("COMMITTED", "FAILED")))
                ).scalars()
            )
        return {digest for digest in found if digest}

    def _one(self, kind: type[_Record], table: Table, **keys: object) -> _Record | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(table).where(*_equal(table, keys))).mappings().one_or_none()
        return None if row is None else _record(kind, row)

    def _many(self, kind: type[_Record], table: Table, *, order_by: str, **keys: object) -> list[_Record]:
        columns = [table.c[name.strip()] for name in order_by.split(",")]
        with self._engine.connect() as connection:
            rows = connection.execute(select(table).where(*_equal(table, keys)).order_by(*columns)).mappings().all()
        return [_record(kind, row) for row in rows]


def _equal(table: Table, keys: Mapping[str, object]) -> list[Any]:
    return [table.c[name] == value for name, value in keys.items()]


def _record(kind: type[_Record], row: RowMapping) -> _Record:
    """Build a record from its row; JSON arrays become tuples."""
    values = {field.name: row[field.name] for field in fields(kind)}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**plain)


def _upsert(connection: Connection, table: Table, values: Mapping[str, Any], keep: Iterable[str] = ()) -> None:
    """Update the row of this primary key, or insert it. Safe because the coordinator is the only writer."""
    keys = {column.name: values[column.name] for column in table.primary_key}
    changed = {name: value for name, value in values.items() if name not in keys and name not in set(keep)}
    result = connection.execute(update(table).where(*_equal(table, keys)).values(changed))
    if result.rowcount == 0:
        connection.execute(insert(table).values(values))
