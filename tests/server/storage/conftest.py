"""Real databases: an SQLite file, and a PostgreSQL server of the tests' own where its binaries are installed."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bitfleet.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
