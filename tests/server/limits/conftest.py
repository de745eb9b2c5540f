"""A secure coordinator for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.identity.house import SecureHouse, open_secure_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as running:
        yield running
