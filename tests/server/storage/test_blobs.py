"""Payloads in a folder and in an object store: complete under their digest, or absent."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.errors import NotFoundError
from server.settings import Settings
from server.storage.blob_stores import open_blobs
from server.storage.blobs import LocalBlobs
from server.storage.payloads import BlobStore, key_of
from tests.s3_server import S3Server

DATA = bytes(range(256)) * 10
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "folder":
        return Settings(state=tmp_path)
    server: S3Server = request.getfixturevalue("s3_server")
    return Settings(state=tmp_path, blobs=server.url_of(os.urandom(4).hex()))


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


def files(state: Path) -> list[Path]:
    return [path for path in state.rglob("*") if path.is_file()]


def test_a_payload_comes_back_whole_and_in_pieces(blobs: BlobStore) -> None:
    assert blobs.put(DATA) == DIGEST

    assert blobs.get(DIGEST) == DATA
    assert blobs.read(DIGEST, 100, 50) == DATA[100:150]
    assert blobs.read(DIGEST, len(DATA) - 1, 50) == DATA[-1:]
    assert blobs.digests() == {DIGEST}


def test_the_same_payload_is_there_once_and_newly_written(blobs: BlobStore) -> None:
    began_at = time.time()
    blobs.put(DATA)
    writer = blobs.writer()
    writer.write(DATA)
    blobs.keep([writer])

    (stored,) = blobs.stored()
    assert (stored.digest, stored.size, blobs.size(DIGEST)) == (DIGEST, len(DATA), len(DATA))
    for written_at in (stored.written_at, blobs.last_written(DIGEST)):
        assert began_at - 2 < (written_at or 0) < time.time() + 2  # clocks of seconds
    blobs.check()


def test_a_payload_appears_when_it_is_kept(blobs: BlobStore) -> None:
    writer = blobs.writer()
    for start in range(0, len(DATA), 100):
        writer.write(DATA[start : start + 100])
    assert (writer.size, writer.digest, bytes(writer.read())) == (len(DATA), DIGEST, DATA)
    writer.flush()
    assert blobs.digests() == set()

    blobs.keep([writer])

    assert blobs.get(DIGEST) == DATA
    writer.discard()
    assert blobs.digests() == {DIGEST}


def test_payloads_kept_together_are_all_there_and_stay_readable(blobs: BlobStore) -> None:
    writers = [blobs.writer() for _ in range(3)]
    for i, writer in enumerate(writers):
        writer.write(DATA + bytes([i]))
    views = [writer.read() for writer in writers]

    blobs.keep(writers)

    digests = [hashlib.sha256(DATA + bytes([i])).hexdigest() for i in range(3)]
    assert blobs.digests() == set(digests)
    assert [blobs.get(digest) for digest in digests] == [DATA + bytes([i]) for i in range(3)]
    for digest in digests:
        blobs.delete(digest)
    assert views == [DATA + bytes([i]) for i in range(3)]


def test_a_discarded_payload_leaves_no_file(blobs: BlobStore, settings: Settings) -> None:
    writer = blobs.writer()
    writer.write(DATA)

    writer.discard()
    writer.discard()

    assert blobs.digests() == set()
    assert files(settings.state) == []
    with pytest.raises(ValueError, match="kept or discarded"):
        writer.write(b"more")
    with pytest.raises(ValueError, match="kept or discarded"):
        blobs.keep([writer])


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    LocalBlobs(tmp_path).put(DATA)
    (tmp_path / "tmp" / "0123456789abcdef").write_bytes(b"half")

    LocalBlobs(tmp_path).remove_leftovers()

    assert [path.name for path in files(tmp_path)] == [DIGEST]


def test_a_deleted_payload_is_not_found(blobs: BlobStore) -> None:
    blobs.put(DATA)
    written_at = blobs.last_written(DIGEST)
    assert written_at is not None
    assert not blobs.delete(DIGEST, unless_since=written_at - 10)
    assert blobs.delete(DIGEST, unless_since=written_at + 10)
    assert not blobs.delete(DIGEST)

    reads: tuple[Callable[[], bytes], ...] = (lambda: blobs.get(DIGEST), lambda: blobs.read(DIGEST, 0, 1))
    for read in reads:
        with pytest.raises(NotFoundError, match=DIGEST):
            read()


def test_a_damaged_payload_is_not_returned(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    blobs.put(DATA)
    (tmp_path / key_of(DIGEST)).write_bytes(DATA[:-1] + b"x")

    assert not blobs.holds(DIGEST)
    with pytest.raises(NotFoundError, match="damaged"):
        blobs.get(DIGEST)


def test_only_a_digest_names_a_payload(blobs: BlobStore) -> None:
    for name in ("", "../../etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "0", "a/" + DIGEST):
        with pytest.raises(NotFoundError, match="64 lower-case hex digits"):
            blobs.get(name)
