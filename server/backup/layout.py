"""What a backup looks like: a tar file that ``tar`` and ``sha256sum --check SHA256SUMS`` understand without us.

::

    backup.json                what it is: format, versions, tables, payloads
    database/TABLE.jsonl       a line with the columns' names, then one for each row
    identity/FILE              the authority, the coordinator's certificate, the first key
    blobs/AB/ABCD...           payloads, named by their SHA-256
    SHA256SUMS                 of all that comes before; a file that was cut off has none
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.storage.state_folder import BLOBS_FOLDER, IDENTITY_FOLDER

FORMAT = 1

HEAD = "backup.json"
SUMS = "SHA256SUMS"
DATABASE = "database"

_NAME = re.compile(
    rf"{HEAD}|{DATABASE}/[a-z_]+\.jsonl|{IDENTITY_FOLDER}/[a-z][a-z0-9_-]*\.[a-z]+|{BLOBS_FOLDER}/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}"
)


def is_member(name: str) -> bool:
    """Say whether a backup may hold a file of this name: nothing that leads out of its folder."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Head:
    """What a backup says of itself."""

    format: int
    bitfleet: str
    """Version that made it."""
    made_at: float
    """Seconds since 1970 (UTC)."""
    schema: str
    """Newest migration of the database that it was made of."""
    tables: dict[str, int]
    """Rows of each table, those that others refer to first."""
    payloads: int
    payload_bytes: int
    holds_identity: bool
    """Whether the key of the fleet's authority is in it; not of a coordinator that is served with --insecure."""
    damaged: list[str]
    """Payloads that rows name and that were missing or damaged when it was made."""
