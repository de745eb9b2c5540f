"""Whether the pages of an SQLite file are what they were; asked when it is opened, before anything is written to it."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from bnncore.errors import ConfigurationError

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedDatabaseError(ConfigurationError):
    """The disk has damaged the database.

    Args:
      shown: the database, as people know it.
      finding: what SQLite says of it.
    """

    def __init__(self, shown: str, finding: str) -> None:
        super().__init__(
            f"the database {shown} is damaged: {finding}. Nothing was changed. Keep a copy of its folder, then put the "
            "last backup back (bitfleet-server restore), or save what can be read: "
            "sqlite3 bitfleet.db .recover | sqlite3 recovered.db"
        )


def check_pages(connection: Connection, shown: str) -> None:
    """Have SQLite read all pages and compare what they say of each other.

    Raises:
      DamagedDatabaseError: they contradict each other.
    """
    findings = [str(line) for line in connection.execute(text("PRAGMA quick_check(3)")).scalars()]
    if findings != ["ok"]:
        raise DamagedDatabaseError(shown, " ".join(" ".join(findings).split()))


def is_damage(error: BaseException) -> bool:
    """Say whether an error is SQLite's for a damaged page."""
    origin = error.orig if isinstance(error, DatabaseError) else error
    return isinstance(origin, sqlite3.DatabaseError) and origin.sqlite_errorcode & 0xFF in _DAMAGE
