"""Databases with the newest schema and nothing in them: a copy costs less than the migrations."""

import functools
import tempfile
from pathlib import Path

from server.storage.sql import open_storage


def lay_database(path: Path) -> str:
    """Lay an empty SQLite file of the newest schema where there is none; give its URL."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty_database())
    return f"sqlite:///{path}"


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bitfleet.db"
        open_storage(f"sqlite:///{path}").close()
        return path.read_bytes()
