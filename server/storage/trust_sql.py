"""``TrustStore`` over SQLAlchemy, beside the rest of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from server.errors import ConflictError, NotFoundError, UnauthenticatedError
from server.storage import tables
from server.storage.announcements import announce
from server.storage.trust import AuditRecord, IdentityRecord, KeyRecord, SessionRecord, TokenRecord

_Record = TypeVar("_Record", IdentityRecord, TokenRecord, KeyRecord, SessionRecord, AuditRecord)


class SqlTrust:
    """The tables behind an engine; see ``TrustStore`` for the contract."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_identities(self) -> list[IdentityRecord]:
        return self._all(IdentityRecord, tables.identities, "device_id")

    def get_identity(self, device_id: str) -> IdentityRecord | None:
        return self._one(IdentityRecord, tables.identities, tables.identities.c.device_id == device_id)

    def enrol(self, identity: IdentityRecord, token_digest: str, now: float, entry: AuditRecord) -> IdentityRecord:
        name, columns = identity.device_id, tables.identities.c
        try:
            with self._engine.begin() as connection:
                token = self._use(connection, token_digest, now)
                identity = replace(identity, labels=token.labels)
                # Where it left, its row makes room; any other row of this id stands in the way.
                connection.execute(delete(tables.identities).where(columns.device_id == name, columns.state == "LEFT"))
                taken = connection.execute(select(columns.state).where(columns.device_id == name)).scalar()
                if taken is not None:
                    raise _name_is_taken(name, taken)
                connection.execute(insert(tables.identities).values(asdict(identity)))
                _append(connection, replace(entry, detail=f"{entry.detail} token={token.token_id}".strip()))
                _announce(connection, "device", name)
        except IntegrityError as error:  # at the same moment, by another coordinator
            raise _name_is_taken(name, "ACTIVE") from error
        return identity

    def _use(self, connection: Connection, digest: str, now: float) -> TokenRecord:
        columns = tables.tokens.c
        used = connection.execute(
            update(tables.tokens)
            .where(columns.digest == digest, columns.uses_left > 0, columns.expires_at > now)
            .values(uses_left=columns.uses_left - 1)
        )
        row = connection.execute(select(tables.tokens).where(columns.digest == digest)).mappings().one_or_none()
        if used.rowcount == 1 and row is not None:
            return _record(TokenRecord, row)
        if row is None:
            raise UnauthenticatedError("there is no such token; ask the operator for one (token create)")
        state = "has expired" if row["expires_at"] <= now else "is used up"
        raise UnauthenticatedError(f"the token {state}; ask the operator for a new one (token create)")

    def change_identity(
        self, device_id: str, changes: Mapping[str, object], entry: AuditRecord, *, of_key: str | None = None
    ) -> IdentityRecord | None:
        columns = tables.identities.c
        wanted = update(tables.identities).where(columns.device_id == device_id, columns.state != "REVOKED")
        if of_key is not None:
            wanted = wanted.where(columns.key_digest == of_key, columns.state == "ACTIVE")
        with self._engine.begin() as connection:
            changed = connection.execute(wanted.values(changes).returning(tables.identities)).mappings().one_or_none()
            if changed is None:
                return None
            _append(connection, entry)
            _announce(connection, "device", device_id)
        return _record(IdentityRecord, changed)

    def add_token(self, token: TokenRecord, entry: AuditRecord) -> None:
        with self._engine.begin() as connection:
            connection.execute(insert(tables.tokens).values(asdict(token)))
            _append(connection, entry)

    def list_tokens(self) -> list[TokenRecord]:
        return self._all(TokenRecord, tables.tokens, "created_at")

    def delete_token(self, token_id: str, entry: AuditRecord) -> None:
        with self._engine.begin() as connection:
            if connection.execute(delete(tables.tokens).where(tables.tokens.c.token_id == token_id)).rowcount == 0:
                raise NotFoundError(f"there is no token {token_id!r}; list them with: bitfleet-server token list")
            _append(connection, entry)

    def add_key(self, key: KeyRecord, entry: AuditRecord) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(tables.keys).values(asdict(key)))
                _append(connection, entry)
                _announce(connection, "key", key.key_id)
        except IntegrityError as error:
            raise ConflictError(f"there is a key named {key.name!r} already; choose another name") from error

    def list_keys(self) -> list[KeyRecord]:
        return self._all(KeyRecord, tables.keys, "created_at")

    def find_key(self, digest: str) -> KeyRecord | None:
        return self._one(KeyRecord, tables.keys, tables.keys.c.digest == digest)

    def revoke_key(self, key_id: str, now: float, entry: AuditRecord) -> None:
        columns = tables.keys.c
        with self._engine.begin() as connection:
            ended = connection.execute(
                update(tables.keys)
                .where(columns.key_id == key_id, columns.revoked_at.is_(None))
                .values(revoked_at=now, name=columns.name + f" (revoked {key_id})")
            )
            if ended.rowcount == 0:
                raise NotFoundError(f"no living key has id {key_id!r}; list them with: bitfleet-server key list")
            _append(connection, entry)
            _announce(connection, "key", key_id)

    def add_session(self, session: SessionRecord, now: float, most: int) -> None:
        columns = tables.sessions.c
        newest = select(columns.digest).order_by(columns.ends_at.desc()).limit(most)
        with self._engine.begin() as connection:
            connection.execute(insert(tables.sessions).values(asdict(session)))
            connection.execute(
                delete(tables.sessions).where(or_(columns.ends_at <= now, columns.digest.not_in(newest)))
            )
            _announce(connection, "session", session.digest)

    def find_session(self, digest: str) -> SessionRecord | None:
        return self._one(SessionRecord, tables.sessions, tables.sessions.c.digest == digest)

    def end_session(self, digest: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(tables.sessions).where(tables.sessions.c.digest == digest))
            _announce(connection, "session", digest)

    def record(self, entry: AuditRecord) -> None:
        with self._engine.begin() as connection:
            _append(connection, entry)

    def _all(self, kind: type[_Record], table: Table, order: str) -> list[_Record]:
        with self._engine.connect() as connection:
            rows = connection.execute(select(table).order_by(table.c[order])).mappings().all()
        return [_record(kind, row) for row in rows]

    def _one(self, kind: type[_Record], table: Table, is_it: ColumnElement[bool]) -> _Record | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(table).where(is_it)).mappings().one_or_none()
        return None if row is None else _record(kind, row)


def _name_is_taken(device_id: str, state: str) -> ConflictError:
    word = "was revoked" if state == "REVOKED" else "is enrolled already, with another key"
    return ConflictError(f"a device named {device_id!r} {word}; choose another --device-id")


def _announce(connection: Connection, of: str, name: str) -> None:
    announce(connection, "trust.changed", of=of, name=name)


def _append(connection: Connection, entry: AuditRecord) -> None:
    connection.execute(insert(tables.audit).values(asdict(entry)))


def _record(kind: type[_Record], row: RowMapping) -> _Record:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(kind)}
    return kind(**values)
