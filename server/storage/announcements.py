"""What the database itself tells all coordinators over it: changes, in the very transaction that makes them.

On PostgreSQL an announcement is heard when its transaction is committed, and only then, whatever becomes of the
coordinator that made it; on SQLite there is nobody else to tell.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, func, select

CHANNEL = "bitfleet_database"
"""PostgreSQL's channel; a payload is ``{"kind": KIND, "body": {...}}``, in ASCII."""


def announce(connection: Connection, kind: str, **body: str) -> None:
    """Announce what the open transaction changes.

    Args:
      connection: in a transaction.
      kind: what has changed.
      body: which one; short.
    """
    if connection.dialect.name == "postgresql":
        payload = json.dumps({"kind": kind, "body": body}, separators=(",", ":"))
        connection.execute(select(func.pg_notify(CHANNEL, payload)))
