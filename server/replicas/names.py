"""What replicas are called."""

from __future__ import annotations

import re
import secrets
import socket


def new_replica_id() -> str:
    """Name a replica, for as long as its process lives."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40]
    return f"{host or 'host'}-{secrets.token_hex(3)}"


def application_name(replica_id: str) -> str:
    """Name a replica's connections, as PostgreSQL shows them."""
    return f"bitfleet {replica_id}"[:63]
