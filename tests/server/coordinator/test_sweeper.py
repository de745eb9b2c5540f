"""What a shared store keeps for a while, and what it is rid of: on a real object store."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from server.coordinator.disk import Disk
from server.coordinator.space import Space
from server.coordinator.sweeper import GRACE_S, Sweeper
from server.settings import Settings
from server.storage.base import JobRecord, VersionRecord
from server.storage.blob_stores import open_blobs
from server.storage.refusal import StoreAwayError
from server.storage.s3_bucket import Bucket
from server.storage.sql import open_storage
from tests.s3_server import S3Server


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def version(model: bytes, state: bytes) -> VersionRecord:
    return VersionRecord("job", 0, "raw", digest_of(model), len(model), digest_of(state), "weights", 0.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return time.time() + self.now


async def test_a_shared_store_keeps_what_is_young_claimed_or_named(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    list_bucket = Bucket.list

    def counted(bucket: Bucket) -> Any:
        listed.append("all")
        return list_bucket(bucket)

    monkeypatch.setattr(Bucket, "list", counted)
    blobs = open_blobs(Settings(state=tmp_path, blobs=s3_server.url_of("swept")))
    disk = Disk(open_storage(f"sqlite:///{tmp_path / 'db'}"), blobs)
    space = Space(disk, quota_bytes=1000, min_free_bytes=2**60)
    clock = Clock()
    sweeper = Sweeper(disk, clock)
    try:
        disk.storage.add_job(JobRecord("job", "job", "RUNNING", "{}", "{}", 0.0))
        disk.storage.add_version(version(b"model", b"state"))
        named = {blobs.put(b"model"), blobs.put(b"state")}
        idle, claimed = blobs.put(b"idle"), blobs.put(b"claimed")
        disk.remove_unreferenced({idle})

        assert await sweeper.sweep() == 0
        assert listed == ["all"]  # when it was opened
        assert await sweeper.sweep() == 0
        assert listed == ["all"] * 2
        assert blobs.digests() == named | {idle, claimed}
        assert space.used_bytes == len(b"modelstate")  # what nobody needs takes no room
        assert space.free_bytes() is None

        clock.now = GRACE_S + 60
        with disk.claimed({claimed}):
            disk.check_kept({claimed})
            assert await sweeper.sweep() == 1
            assert blobs.digests() == named | {claimed}
            with pytest.raises(StoreAwayError, match="store it again"):  # had another coordinator stored it before
                disk.check_kept({idle})
            blobs.put(b"idle")
            disk.check_kept({idle})
        with disk.storage.may_delete():  # as a backup that is made
            assert await sweeper.sweep() == 0
        assert await sweeper.sweep() == 2
        assert space.used_bytes == blobs.used_bytes == len(b"modelstate")
        assert blobs.digests() == named
    finally:
        await disk.close()
