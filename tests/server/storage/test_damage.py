"""Damaged files: found out, told, and never built upon."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bnncore.errors import ConfigurationError
from server.errors import PayloadLostError
from server.storage.base import JobRecord, RoundRecord, UpdateRecord, VersionRecord
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage

DATA = bytes(range(256)) * 10
DIGEST = hashlib.sha256(DATA).hexdigest()
PAGE = 4096


def make_database(path: Path) -> None:
    storage = open_storage(f"sqlite:///{path}")
    storage.add_job(JobRecord("job", "digits", "RUNNING", "{}", "{}" * 500, created_at=1.0))
    for number in range(1, 80):
        storage.save_round(RoundRecord("job", number, "COMMITTED", attempt=1, opened_at=2.0, reason="x" * 900))
    storage.close()


@pytest.mark.parametrize("page", ["first", "inner", "cut"])
def test_a_damaged_database_is_not_opened_and_the_word_says_what_to_do(tmp_path: Path, page: str) -> None:
    path = tmp_path / "bitfleet.db"
    make_database(path)
    content = bytearray(path.read_bytes())
    if page == "cut":
        del content[len(content) // 2 :]
    else:
        place = 0 if page == "first" else len(content) - 6 * PAGE
        content[place : place + PAGE] = bytes([0xA5]) * PAGE
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"damaged: .*Nothing was changed.*bitfleet-server restore"):
        open_storage(f"sqlite:///{path}")
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_payload_is_neither_read_nor_taken_for_there(tmp_path: Path, damage: str) -> None:
    blobs = LocalBlobs(tmp_path)
    blobs.put(DATA)
    path = blobs.path(DIGEST)
    match damage:
        case "changed":
            path.write_bytes(DATA[:-1] + b"?")
        case "cut":
            path.write_bytes(DATA[:-1])
        case "gone":
            path.unlink()

    with pytest.raises(PayloadLostError):
        blobs.get(DIGEST)
    assert not blobs.holds(DIGEST)

    blobs.put(DATA)
    assert blobs.get(DIGEST) == DATA


def test_versions_are_forgotten_with_the_rounds_and_updates_that_made_them(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'bitfleet.db'}")
    for job in ("job", "other"):
        storage.add_job(JobRecord(job, "digits", "RUNNING", "{}", "{}", created_at=1.0))
        for number in range(4):
            storage.add_version(VersionRecord(job, number, "int8", "2" * 64, 1, "3" * 64, "4" * 64, created_at=7.5))
        for number in range(1, 5):
            update = UpdateRecord(job, number, "a", "ACCEPTED")
            storage.save_round(RoundRecord(job, number, "COMMITTED", attempt=1, opened_at=2.0), [update])

    storage.forget_versions("job", 2)

    assert [version.version for version in storage.list_versions("job")] == [0, 1, 2]
    assert [round_.round_number for round_ in storage.list_rounds("job")] == [1, 2]
    assert [update.round_number for update in storage.list_updates("job")] == [1, 2]
    assert len(storage.list_versions("other")) == len(storage.list_rounds("other")) == 4
    storage.close()
