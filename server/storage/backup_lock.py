"""Nothing is deleted from an object store while a backup of it is made: a lock beside the rows, which both take.

Of a folder of payloads a backup holds what it needs by a second name (``server.storage.holding``); an object store has
nothing of the kind. The lock is PostgreSQL's, or that of a file beside an SQLite file, where both are on one machine.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from typing import TextIO

from sqlalchemy import Engine, func, select

_DELETING = 0x62660003
"""Of PostgreSQL's advisory locks: held by who deletes payloads, shared by those who make backups."""


@contextlib.contextmanager
def may_delete(engine: Engine) -> Iterator[bool]:
    """Say whether no backup is being made; for the block, if so, none begins."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            yield connection.execute(select(func.pg_try_advisory_xact_lock(_DELETING))).scalar_one()
        return
    with _lock_file(engine) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def while_nothing_is_deleted(engine: Engine) -> Iterator[None]:
    """Wait for who deletes payloads now; for the block nobody does."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(select(func.pg_advisory_lock_shared(_DELETING)))
            try:
                yield
            finally:
                connection.execute(select(func.pg_advisory_unlock_shared(_DELETING)))
        return
    with _lock_file(engine) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _lock_file(engine: Engine) -> TextIO:
    return open(f"{engine.url.database}-backup", "w")
