"""Payloads on disk: complete under their digest, or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from server.errors import NotFoundError
from server.storage.blobs import LocalBlobs

DATA = bytes(range(256)) * 10
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def files(blobs: LocalBlobs) -> list[Path]:
    return [path for path in blobs._root.rglob("*") if path.is_file()]


def test_a_payload_comes_back_whole_and_in_pieces(blobs: LocalBlobs) -> None:
    assert blobs.put(DATA) == DIGEST

    assert blobs.get(DIGEST) == DATA
    assert blobs.read(DIGEST, 100, 50) == DATA[100:150]
    assert blobs.read(DIGEST, len(DATA) - 1, 50) == DATA[-1:]
    assert blobs.digests() == {DIGEST}


def test_the_same_payload_is_one_file(blobs: LocalBlobs) -> None:
    blobs.put(DATA)
    blobs.put(DATA)
    writer = blobs.writer()
    writer.write(DATA)
    blobs.keep([writer])

    assert len(files(blobs)) == 1


def test_a_payload_appears_when_it_is_kept(blobs: LocalBlobs) -> None:
    writer = blobs.writer()
    for start in range(0, len(DATA), 100):
        writer.write(DATA[start : start + 100])
    assert (writer.size, writer.digest, writer.read()) == (len(DATA), DIGEST, DATA)
    writer.flush()
    assert blobs.digests() == set()

    blobs.keep([writer])

    assert blobs.get(DIGEST) == DATA
    writer.discard()
    assert blobs.digests() == {DIGEST}


def test_payloads_kept_together_are_all_there_and_stay_readable(blobs: LocalBlobs) -> None:
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


def test_a_discarded_payload_leaves_no_file(blobs: LocalBlobs) -> None:
    writer = blobs.writer()
    writer.write(DATA)

    writer.discard()
    writer.discard()

    assert files(blobs) == []
    with pytest.raises(ValueError, match="kept or discarded"):
        writer.write(b"more")
    with pytest.raises(ValueError, match="kept or discarded"):
        blobs.keep([writer])


def test_leftovers_of_a_crash_are_removed(blobs: LocalBlobs) -> None:
    blobs.put(DATA)
    (blobs._root / "tmp" / "0123456789abcdef").write_bytes(b"half")

    LocalBlobs(blobs._root).remove_leftovers()

    assert [path.name for path in files(blobs)] == [DIGEST]


def test_a_deleted_payload_is_not_found(blobs: LocalBlobs) -> None:
    blobs.put(DATA)
    blobs.delete(DIGEST)
    blobs.delete(DIGEST)

    for read in (lambda: blobs.get(DIGEST), lambda: blobs.read(DIGEST, 0, 1)):
        with pytest.raises(NotFoundError, match=DIGEST):
            read()


def test_a_damaged_payload_is_not_returned(blobs: LocalBlobs) -> None:
    blobs.put(DATA)
    blobs.path(DIGEST).write_bytes(DATA[:-1] + b"x")

    with pytest.raises(NotFoundError, match="damaged"):
        blobs.get(DIGEST)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "0", "a/" + DIGEST])
def test_only_a_digest_names_a_payload(blobs: LocalBlobs, name: str) -> None:
    with pytest.raises(NotFoundError, match="64 lower-case hex digits"):
        blobs.get(name)
