"""All rows of a database, out and in again, whichever kind it is: what a backup keeps of it.

Reading sees one moment, however long it takes and whatever is written meanwhile. Rows go into a database that has
nothing yet, under the schema that they were read from, which is then brought up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alembic import command
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, func, insert, inspect, select

from bnncore.errors import ConfigurationError
from server.storage.schema import alembic_config, bring_up_to_date
from server.storage.sql import referenced_digests, using_database
from server.storage.tables import metadata, schema_info

Row = list[Any]
"""The values of one row, in the order of its table's columns; plain enough for JSON."""

_AT_ONCE = 500
"""Rows that are read or written together."""


class Reading:
    """A database as it was at one moment."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self.schema = schema
        """The newest migration that was applied."""

    @property
    def tables(self) -> dict[str, list[str]]:
        """The names of all tables, those that others refer to first, and of their columns."""
        kept = [table for table in metadata.sorted_tables if table is not schema_info]
        return {table.name: [column.name for column in table.columns] for table in kept}

    def rows(self, table: str) -> Iterator[Row]:
        """Yield a table's rows in the order of their keys."""
        statement = select(metadata.tables[table]).order_by(*metadata.tables[table].primary_key.columns)
        for row in self._connection.execution_options(yield_per=_AT_ONCE).execute(statement):
            yield list(row)

    def payloads(self) -> set[str]:
        """Return the digests of the payloads that the rows name."""
        return referenced_digests(self._connection)


@contextlib.contextmanager
def read_database(url: str) -> Iterator[Reading]:
    """Look at a database, as it is now, for the block. Coordinators may go on writing to it.

    Raises:
      ConfigurationError: it cannot be opened, has no schema, or that of another version of bitfleet.
    """
    with using_database(url) as engine:
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
            raise ConfigurationError(f"there is no database {engine.url.database}; is this the right state folder?")
        level = "AUTOCOMMIT" if engine.dialect.name == "sqlite" else "REPEATABLE READ"
        with engine.connect().execution_options(isolation_level=level) as connection:
            if level == "AUTOCOMMIT":  # sqlite3 itself begins no transaction to read in
                connection.exec_driver_sql("BEGIN")
            schema = MigrationContext.configure(connection).get_current_revision()
            newest = ScriptDirectory.from_config(alembic_config(connection)).get_current_head()
            if schema is None or schema != newest:
                has = "no schema" if schema is None else f"schema {schema}"
                raise ConfigurationError(
                    f"the database has {has}, this version of bitfleet has {newest}: is it the right database? "
                    "Use the version that serves it, or serve it once with this one"
                )
            yield Reading(connection, schema)
            connection.rollback()


def write_database(url: str, schema: str, tables: Iterable[tuple[str, Sequence[str], Iterator[Row]]]) -> None:
    """Fill an empty database and bring it up to date; all or nothing.

    Args:
      url: the database.
      schema: ``Reading.schema`` of the rows.
      tables: name, columns and rows of each table, those that others refer to first.

    Raises:
      ConfigurationError: it cannot be opened or is not empty, or the schema is of a newer version of bitfleet.
    """
    with using_database(url) as engine:
        file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        is_new = file is not None and not file.exists()
        try:
            with engine.begin() as connection:
                _write(connection, schema, tables)
        except BaseException:
            if file is not None and is_new:  # SQLite keeps half a schema
                file.unlink(missing_ok=True)
            raise


def _write(connection: Connection, schema: str, tables: Iterable[tuple[str, Sequence[str], Iterator[Row]]]) -> None:
    if inspect(connection).get_table_names():
        raise ConfigurationError("the database to restore to must be empty, this one has tables already")
    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if schema not in known:
        raise ConfigurationError(
            f"the backup is of a newer version of bitfleet (schema {schema}), this one knows up to {max(known)}"
        )
    command.upgrade(config, schema)
    found = MetaData()
    found.reflect(connection)
    for name, columns, rows in tables:
        _fill(connection, found.tables[name], columns, rows)
    bring_up_to_date(connection)


def _fill(connection: Connection, table: Table, columns: Sequence[str], rows: Iterator[Row]) -> None:
    while batch := [dict(zip(columns, row, strict=True)) for _, row in zip(range(_AT_ONCE), rows, strict=False)]:
        connection.execute(insert(table), batch)
    if connection.dialect.name == "postgresql":  # which counts on from where it was itself
        for column in table.primary_key.columns:
            sequence = connection.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar()
            if sequence is not None:
                last = connection.execute(select(func.max(column))).scalar()
                connection.execute(select(func.setval(sequence, last or 1, last is not None)))
