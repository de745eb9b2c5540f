"""``Storage`` over SQLAlchemy: SQLite in a file by default, PostgreSQL by URL.

SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that returned is on disk. There is one writer, the
coordinator; the schema is brought up to date when the database is opened.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    delete,
    func,
    insert,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from bnncore.errors import ConfigurationError
from server.errors import ConflictError
from server.storage import tables
from server.storage.backup_lock import may_delete
from server.storage.base import (
    DeviceRecord,
    JobRecord,
    RoundRecord,
    ScoreRecord,
    StepRecord,
    UpdateRecord,
    VersionRecord,
)
from server.storage.engines import make_engine, shown
from server.storage.leases import check_fence
from server.storage.mapping import record_of
from server.storage.pages_sql import SqlPages
from server.storage.promotions_sql import SqlPromotions, promoted, take_turn
from server.storage.schema import bring_up_to_date
from server.storage.sqlite_pages import DamagedDatabaseError, check_pages, is_damage
from server.storage.trust_sql import SqlTrust

_log = logging.getLogger(__name__)

_INSERTS: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
"""``INSERT ... ON CONFLICT`` by dialect."""

_Record = TypeVar("_Record", JobRecord, RoundRecord, UpdateRecord, StepRecord, VersionRecord, DeviceRecord)


def open_storage(url: str, name: str = "") -> SqlStorage:
    """Open a database, creating or migrating its schema.

    Args:
      url: an SQLAlchemy URL: ``sqlite:///path/to/file.db`` or ``postgresql+psycopg://user:password@host/name``.
      name: by which PostgreSQL shows the connections.

    Raises:
      ConfigurationError: the URL is malformed, its driver is not installed, the database cannot be opened, or its
        schema is one that this version may not use.
      DamagedDatabaseError: the disk has damaged it.
    """
    engine = make_engine(url, name)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                check_pages(connection, shown(engine))
            bring_up_to_date(connection)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        if is_damage(error):
            raise DamagedDatabaseError(shown(engine), str(error.__cause__ or error)) from error
        raise ConfigurationError(f"cannot open the database {shown(engine)}: {error}") from error
    except ConfigurationError:
        engine.dispose()
        raise
    return SqlStorage(engine)


@contextlib.contextmanager
def using_database(url: str) -> Iterator[Engine]:
    """Use a database, as it is, for the block.

    Raises:
      ConfigurationError: the URL is malformed, its driver is not installed, or the database cannot be used.
    """
    engine = make_engine(url)
    try:
        yield engine
    except SQLAlchemyError as error:
        raise ConfigurationError(f"cannot use the database {shown(engine)}: {error}") from error
    finally:
        engine.dispose()


class SqlStorage:
    """The database behind an SQLAlchemy engine; see ``Storage`` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.fence: int | None = None
        """Of the rounds' lease as this process holds it; None: there are no others. See ``server.storage.leases``."""
        self.pages = SqlPages(engine)
        self.trust = SqlTrust(engine)
        self.promotions = SqlPromotions(engine)

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use the database at the same time."""
        return self._engine.dialect.name == "postgresql"

    def check(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(select(tables.jobs.c.position).limit(1))

    def may_delete(self) -> contextlib.AbstractContextManager[bool]:
        return may_delete(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _leading(self) -> Iterator[Connection]:
        """Begin a transaction that only the rounds' lead may make; raises LeaseLostError."""
        fence = self.fence  # now: while the database is away, the lease may be lost, and be got again
        with self._engine.begin() as connection:
            if fence is not None:
                check_fence(connection, fence)
            yield connection

    # Jobs

    def add_job(self, job: JobRecord) -> None:
        try:
            with self._leading() as connection:
                connection.execute(insert(tables.jobs).values(asdict(job)))
        except IntegrityError as error:
            raise ConflictError(f"a job with id {job.job_id!r}, or of the same request, exists already") from error

    def get_job(self, job_id: str) -> JobRecord | None:
        return self._one(JobRecord, tables.jobs, job_id=job_id)

    def find_job(self, idempotency_key: str) -> JobRecord | None:
        return self._one(JobRecord, tables.jobs, idempotency_key=idempotency_key)

    def list_jobs(self) -> list[JobRecord]:
        return self._many(JobRecord, tables.jobs, order_by="position")

    def set_job_state(self, job_id: str, state: str, *, finished_at: float | None = None, reason: str = "") -> None:
        with self._leading() as connection:
            connection.execute(
                update(tables.jobs)
                .where(tables.jobs.c.job_id == job_id)
                .values(state=state, finished_at=finished_at, reason=reason)
            )

    # Rounds and updates

    def save_round(self, round_: RoundRecord, assigned: Iterable[UpdateRecord] = ()) -> None:
        with self._leading() as connection:
            _upsert(connection, tables.rounds, [round_])
            _upsert(connection, tables.updates, assigned)
            _forget_steps(connection, round_)

    def get_round(self, job_id: str, round_number: int) -> RoundRecord | None:
        return self._one(RoundRecord, tables.rounds, job_id=job_id, round_number=round_number)

    def list_rounds(self, job_id: str) -> list[RoundRecord]:
        return self._many(RoundRecord, tables.rounds, order_by="round_number", job_id=job_id)

    def recent_overheads(self, limit: int, job_id: str | None = None) -> list[float]:
        columns = tables.rounds.c
        newest = select(columns.overhead_s).where(columns.overhead_s.is_not(None)).order_by(columns.committed_at.desc())
        if job_id is not None:
            newest = newest.where(columns.job_id == job_id)
        with self._engine.connect() as connection:
            return list(connection.execute(newest.limit(limit)).scalars())

    def commit_round(
        self,
        round_: RoundRecord,
        version: VersionRecord,
        updates: Iterable[UpdateRecord] = (),
        scores: Mapping[int, ScoreRecord] = MappingProxyType({}),
    ) -> None:
        columns = tables.rounds.c
        with self._leading() as connection:
            _upsert(connection, tables.versions, [version])
            _upsert(connection, tables.rounds, [round_])
            _upsert(connection, tables.updates, updates)
            _forget_steps(connection, round_)
            for number, score in scores.items():
                connection.execute(
                    update(tables.rounds)
                    .where(columns.job_id == round_.job_id, columns.round_number == number)
                    .values(
                        local_examples=columns.local_examples + score.examples,
                        local_correct=columns.local_correct + score.correct,
                        local_loss_sum=columns.local_loss_sum + score.loss_sum,
                    )
                )

    def set_evaluation(self, job_id: str, round_number: int, *, accuracy: float, loss: float) -> None:
        columns = tables.rounds.c
        with self._leading() as connection:
            connection.execute(
                update(tables.rounds)
                .where(columns.job_id == job_id, columns.round_number == round_number)
                .values(accuracy=accuracy, loss=loss)
            )

    def record_updates(self, updates: Iterable[UpdateRecord]) -> None:
        with self._leading() as connection:
            _upsert(connection, tables.updates, updates)

    def record_steps(self, steps: Iterable[StepRecord]) -> None:
        with self._leading() as connection:
            _upsert(connection, tables.steps, steps)

    def list_steps(self, job_id: str, round_number: int) -> list[StepRecord]:
        keys: dict[str, object] = {"job_id": job_id, "round_number": round_number}
        return self._many(StepRecord, tables.steps, order_by="step, device_id", **keys)

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
        with self._leading() as connection:
            _upsert(connection, tables.versions, [version])

    def replace_versions(self, versions: Iterable[VersionRecord]) -> None:
        wanted = list(versions)
        with self._leading() as connection:
            take_turn(connection, *{version.job_id for version in wanted})
            kept = promoted(connection)
            _upsert(connection, tables.versions, [v for v in wanted if v.is_kept or (v.job_id, v.version) not in kept])

    def get_version(self, job_id: str, version: int) -> VersionRecord | None:
        return self._one(VersionRecord, tables.versions, job_id=job_id, version=version)

    def list_versions(self, job_id: str) -> list[VersionRecord]:
        return self._many(VersionRecord, tables.versions, order_by="version", job_id=job_id)

    def versions_before(self, job_id: str, version: int, limit: int) -> list[VersionRecord]:
        columns = tables.versions.c
        before = select(tables.versions).where(columns.job_id == job_id, columns.version < version)
        with self._engine.connect() as connection:
            rows = connection.execute(before.order_by(columns.version.desc()).limit(limit)).mappings().all()
        return [record_of(VersionRecord, row) for row in reversed(rows)]

    def forget_versions(self, job_id: str, after: int) -> None:
        versions, rounds, updates, steps = tables.versions.c, tables.rounds.c, tables.updates.c, tables.steps.c
        promotions = tables.promotions.c
        with self._leading() as connection:
            take_turn(connection, job_id)
            for table, job, number in (
                (tables.steps, steps.job_id, steps.round_number),
                (tables.updates, updates.job_id, updates.round_number),
                (tables.rounds, rounds.job_id, rounds.round_number),
                (tables.promotions, promotions.job_id, promotions.version),
                (tables.versions, versions.job_id, versions.version),
            ):
                connection.execute(delete(table).where(job == job_id, number > after))

    def find_payload(self, digest: str, device_id: str) -> int | None:
        version, row = tables.versions.c, tables.updates.c
        of_device = tables.versions.join(tables.updates, (row.job_id == version.job_id) & (row.device_id == device_id))
        models = select(version.payload_bytes).select_from(of_device)
        steps = select(version.step_bytes).select_from(of_device)
        found = union_all(
            models.where(
                version.payload_digest == digest, version.version == row.round_number - 1, version.is_kept.is_(True)
            ),
            steps.where(
                version.step_digest == digest, version.version < row.round_number, version.is_step_kept.is_(True)
            ),
        )
        with self._engine.connect() as connection:
            return connection.execute(found.limit(1)).scalar()

    # Devices

    def save_device(self, device: DeviceRecord) -> None:
        with self._engine.begin() as connection:
            _upsert(connection, tables.devices, [device], keep={"first_seen"})

    def list_devices(self) -> list[DeviceRecord]:
        return self._many(DeviceRecord, tables.devices, order_by="device_id")

    # Payloads

    def referenced_digests(self) -> set[str]:
        with self._engine.connect() as connection:
            return referenced_digests(connection)

    def _one(self, kind: type[_Record], table: Table, **keys: object) -> _Record | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(table).where(*_equal(table, keys))).mappings().one_or_none()
        return None if row is None else record_of(kind, row)

    def _many(self, kind: type[_Record], table: Table, *, order_by: str, **keys: object) -> list[_Record]:
        columns = [table.c[name.strip()] for name in order_by.split(",")]
        with self._engine.connect() as connection:
            rows = connection.execute(select(table).where(*_equal(table, keys)).order_by(*columns)).mappings().all()
        return [record_of(kind, row) for row in rows]


def referenced_digests(connection: Connection) -> set[str]:
    """Return the digests of the payloads that rows name; see ``Storage.referenced_digests``."""
    version, row, round_, step = tables.versions.c, tables.updates.c, tables.rounds.c, tables.steps.c
    kept, step_kept = version.is_kept.is_(True), version.is_step_kept.is_(True)
    found = set(connection.execute(select(version.payload_digest).where(kept)).scalars())
    found.update(connection.execute(select(version.state_digest).where(kept)).scalars())
    newest = select(version.job_id, func.max(version.version).label("version")).group_by(version.job_id).subquery()
    is_newest = (newest.c.job_id == version.job_id) & (newest.c.version == version.version)
    found.update(connection.execute(select(version.memory_digest).join(newest, is_newest)).scalars())
    found.update(connection.execute(select(version.step_digest).where(step_kept)).scalars())
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
    found.update(connection.execute(select(step.digest)).scalars())
    return {digest for digest in found if digest}


def _forget_steps(connection: Connection, round_: RoundRecord) -> None:
    """Forget the steps of a round's exchanges but those of the one that it is in."""
    columns = tables.steps.c
    old = delete(tables.steps).where(columns.job_id == round_.job_id, columns.round_number == round_.round_number)
    if round_.state not in ("COMMITTED", "FAILED"):
        old = old.where(columns.exchange != round_.exchange)
    connection.execute(old)


def _equal(table: Table, keys: Mapping[str, object]) -> list[Any]:
    return [table.c[name] == value for name, value in keys.items()]


def _upsert(connection: Connection, table: Table, rows: Iterable[_Record], keep: Iterable[str] = ()) -> None:
    """Insert rows, or update those whose primary key is there, in everything but the columns ``keep``."""
    values = [asdict(row) for row in rows]
    if not values:
        return
    statement = _INSERTS[connection.dialect.name](table)
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in values[0] if name not in keys and name not in set(keep)}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), values)
