"""The database's schema: who brings it up to date, and which versions of bitfleet may use it side by side.

A migration belongs to one of two steps. One that *expands* adds tables, and columns that may be left out; whatever
version came before goes on as if nothing had happened. One that *contracts* takes away what a version before needs.
Each says in ``oldest_reader`` which revision a version must know at least to use the schema that it leaves; the table
``schema_info`` tells that to versions which do not know the migration itself.
"""

from __future__ import annotations

import functools
from importlib import resources

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, func, insert, select, text
from sqlalchemy.exc import OperationalError

from bnncore.errors import ConfigurationError
from server.storage.tables import schema_info

_MIGRATING, _USING = 0x62660001, 0x62660002
"""Of PostgreSQL's advisory locks: held by who migrates, and shared, with a revision, by all who are at work."""

SAY_IN_USE = f"SELECT pg_advisory_lock_shared({_USING}, %s)"
"""What a process says with ``newest_revision`` on a connection to PostgreSQL that it keeps for as long as it works."""

_LOCK_TIMEOUT_S = 10.0
"""A migration that waits for a table holds up all who come after it for that table."""
_IN_USE = ("55P03", "40P01")
"""PostgreSQL's codes for a lock that did not come in time, and for one that waited in a circle."""


def alembic_config(connection: Connection) -> Config:
    """Return what Alembic's commands need to work on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("server.storage") / "migrations"))
    config.attributes["connection"] = connection
    return config


@functools.cache
def newest_revision() -> int:
    """Return the newest revision that this version knows."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("server.storage") / "migrations"))
    return int(ScriptDirectory.from_config(config).get_current_head() or 0)


def bring_up_to_date(connection: Connection, config: Config | None = None) -> None:
    """Apply the migrations that are missing, in the caller's transaction and after any other process that does.

    A schema of a newer version that this one may use is left as it is.

    Args:
      connection: in a transaction.
      config: Alembic's, where it is not this version's own.

    Raises:
      ConfigurationError: the schema is of a newer version that this one cannot share it with, or a process is at work
        that could not use the new schema, or a table is in use for too long.
    """
    config = config or alembic_config(connection)
    scripts = ScriptDirectory.from_config(config)
    is_shared = connection.dialect.name == "postgresql"
    if is_shared:
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision: script for script in scripts.walk_revisions()}
    head = scripts.get_current_head()
    assert head is not None
    if found is not None and found not in known:
        _check_newer(connection, found, head)
        return
    oldest_reader: str = known[head].module.oldest_reader
    if found != head:
        if is_shared:
            _check_users(connection, head, oldest_reader)
        _upgrade(connection, config, head)
    if connection.execute(select(schema_info.c.oldest_reader)).scalar_one_or_none() != oldest_reader:
        connection.execute(delete(schema_info))
        connection.execute(insert(schema_info).values(oldest_reader=oldest_reader))


def _upgrade(connection: Connection, config: Config, head: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
    try:
        command.upgrade(config, head)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in _IN_USE:
            raise
        raise ConfigurationError(
            f"the database could not be brought up to schema {head}: a table was in use for "
            f"{_LOCK_TIMEOUT_S:g} s. Nothing was changed; start again when no backup or long query is under way"
        ) from error


def _check_newer(connection: Connection, found: str, head: str) -> None:
    oldest_reader = connection.execute(select(schema_info.c.oldest_reader)).scalar_one()
    if int(oldest_reader) > int(head):
        raise ConfigurationError(
            f"the database has schema {found}, of a newer version of bitfleet, and needs a version that knows schema "
            f"{oldest_reader}; this one knows up to {head}. Upgrade this coordinator; nothing was changed"
        )


def _check_users(connection: Connection, head: str, oldest_reader: str) -> None:
    """Refuse to take away what a process that is at work needs."""
    users = connection.execute(
        text(
            "SELECT DISTINCT objid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
            "WHERE locktype = 'advisory' AND classid = :using AND objsubid = 2 AND datname = current_database()"
        ),
        {"using": _USING},
    ).scalars()
    too_old = sorted(f"{user:04d}" for user in users if user < int(oldest_reader))
    if too_old:
        raise ConfigurationError(
            f"coordinators are at work that know the schema up to {', '.join(too_old)} only; schema {head} is of use "
            f"to those from {oldest_reader} on. Upgrade them first, to a version in between; nothing was changed"
        )
