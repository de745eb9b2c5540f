"""Payloads in a real S3 server that is killed and started again, with what goes wrong there."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from bnncore.errors import ConfigurationError
from server.errors import PayloadLostError
from server.settings import Settings
from server.storage.blob_stores import open_blobs
from server.storage.payloads import key_of
from server.storage.refusal import is_refusal
from server.storage.s3_blobs import S3Blobs
from server.storage.s3_bucket import PART_BYTES
from tests.s3_server import S3Server

WAITS_S = 0.5
"""How long a writer is watched waiting; one that has not come so far yet waits as well."""

SMALL = bytes(range(256)) * 10
LONG = os.urandom(PART_BYTES + 100_000)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_at(server: S3Server, folder: Path, prefix: str, **options: str) -> S3Blobs:
    blobs = open_blobs(Settings(state=folder, blobs=server.url_of(prefix, **options)))
    assert isinstance(blobs, S3Blobs)
    return blobs


def test_payloads_survive_the_server_and_a_damaged_one_is_found(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.storage.s3_bucket._ATTEMPTS", 2)  # waits less
    blobs = open_at(s3_server, tmp_path, "survive")
    writer = blobs.writer()
    writer.write(LONG)
    blobs.keep([writer])
    other, began_at = digest_of(SMALL), time.time()
    assert blobs.put(SMALL) == other

    s3_server.kill()
    with pytest.raises(OSError, match="does not answer") as away:
        blobs.holds(other)
    assert is_refusal(away.value)
    with pytest.raises(OSError, match="does not answer"):
        blobs.put(b"later")
    s3_server.start()

    again = open_at(s3_server, tmp_path / "other", "survive")
    assert again.get(digest_of(LONG)) == LONG
    assert again.read(digest_of(LONG), PART_BYTES - 5, 10) == LONG[PART_BYTES - 5 : PART_BYTES + 5]
    assert again.used_bytes == len(LONG) + len(SMALL)
    assert {one.digest: one.size for one in again.stored()} == {digest_of(LONG): len(LONG), other: len(SMALL)}
    assert began_at - 2 < (again.last_written(other) or 0) < time.time() + 2  # clocks of seconds
    assert again.last_written(digest_of(b"nothing")) is None
    with urlopen(again.url_for(other, 600)) as answer:
        assert answer.read() == SMALL

    s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"survive/{other[:2]}/{other}", Body=SMALL[:-1] + b"x")
    assert not again.holds(other)
    reads: tuple[Callable[[], bytes], ...] = (lambda: again.get(other), lambda: again.read(other, 0, 5))
    for read in reads:
        with pytest.raises(PayloadLostError, match="damaged"):
            read()
    again.put(SMALL)
    assert again.get(other) == SMALL


def test_what_cannot_be_used_is_told_at_the_start(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("server.storage.s3_bucket._ATTEMPTS", 2)
    good = s3_server.url_of("start")
    cases = [
        (good.replace("models", "no-such-bucket"), "no such bucket; create it first"),
        (s3_server.url_of("start", endpoint="http://127.0.0.1:1"), "does not answer"),
    ]
    for url, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            open_blobs(Settings(state=tmp_path, blobs=url))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(ConfigurationError, match="credentials are refused"):
        open_blobs(Settings(state=tmp_path, blobs=good))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigurationError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        open_blobs(Settings(state=tmp_path, blobs=good))

    assert "not-the-secret" not in caplog.text
    assert "Signature=" not in caplog.text


def test_a_key_that_may_only_read_serves_for_a_backup_alone(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = open_at(s3_server, tmp_path, "read").put(SMALL)
    s3_server.client().put_bucket_acl(Bucket=s3_server.bucket, ACL="public-read")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.other_key)
    settings = Settings(state=tmp_path, blobs=s3_server.url_of("read"))

    with pytest.raises(ConfigurationError, match=r"must be right and allow .* writing .*\(.* PutObject operation"):
        open_blobs(settings)

    assert open_blobs(settings, is_written=False).get(digest) == SMALL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hidden@models/fleet", "must not hold credentials"),
        ("s3://models/fleet?endpoint=https://key:hidden@host", "must not hold credentials"),
        ("s3://models/fleet?endpoint=key:hidden@host", "must not hold credentials"),
        ("s3://models/fleet?endpoint=https://[::1", "endpoint of --blobs is malformed"),
        ("s3://[models/fleet", "--blobs is malformed"),
        ("https://models/fleet", "must be s3://BUCKET/PREFIX"),
        ("s3://Models", "must be s3://BUCKET/PREFIX"),
        ("s3://models/a b", "must be s3://BUCKET/PREFIX"),
        ("s3://models?endpoint=host:9000", "must be http"),
        ("s3://models?key=hidden", "knows the options endpoint, region, got key"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        Settings(blobs=url)

    assert "hidden" not in str(refused.value)


def test_a_read_that_breaks_in_the_middle_is_begun_anew(s3_server: S3Server, tmp_path: Path) -> None:
    blobs = open_at(s3_server, tmp_path, "middle")
    data = os.urandom(5 * PART_BYTES)  # more than lies in sockets' buffers
    digest = blobs.put(data)
    begun = 0

    def consume(pieces: Iterator[bytes]) -> bytes:
        nonlocal begun
        begun += 1
        first = next(pieces)
        if begun == 1:
            s3_server.kill()
            s3_server.start()
        return first + b"".join(pieces)

    assert blobs._bucket.fetch(key_of(digest), consume) == data
    assert begun == 2


def test_what_is_written_while_it_is_removed_is_there_afterwards(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_at(s3_server, tmp_path, "both")
    digest = blobs.put(SMALL)
    delete = blobs._bucket.delete
    with ThreadPoolExecutor() as pool:

        def delete_late(key: str) -> None:
            written = pool.submit(blobs.put, SMALL)
            with pytest.raises(TimeoutError):
                written.result(timeout=WAITS_S)
            delete(key)

        monkeypatch.setattr(blobs._bucket, "delete", delete_late)
        assert blobs.delete(digest, unless_since=time.time() + 60)

    assert blobs.holds(digest)


_VICTIM = """
import sys
from pathlib import Path
from server.settings import Settings
from server.storage.blob_stores import open_blobs
from server.storage.s3_bucket import PART_BYTES

blobs = open_blobs(Settings(state=Path(sys.argv[1]), blobs=sys.argv[2]))
data = bytes(PART_BYTES)

def read(offset, length):
    if offset:
        print("half", flush=True)
        sys.stdin.read()
    return data

print(sorted(p.name for p in Path(sys.argv[1], "uploads").iterdir()), flush=True)
blobs.send("0" * 64, 2 * PART_BYTES, read)
"""


def test_a_process_that_is_killed_in_the_middle_leaves_nothing_to_be_seen(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", _VICTIM, str(tmp_path), s3_server.url_of("killed")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert [next(victim.stdout) for _ in range(2)] == ["[]\n", "half\n"]
        victim.send_signal(signal.SIGKILL)

    blobs = open_at(s3_server, tmp_path, "killed")
    client = s3_server.client()

    def half_sent() -> int:
        found = client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix="killed/")
        return len(found.get("Uploads", []))

    assert blobs.digests() == set()
    assert list((tmp_path / "uploads").iterdir()) == []
    blobs.remove_leftovers()
    assert half_sent() == 1  # it may be somebody's who is still at it
    monkeypatch.setattr("server.storage.s3_bucket._HALF_SENT_S", -60.0)
    abort = blobs._bucket._client.abort_multipart_upload

    def abort_after_another(**upload: str) -> None:
        client.abort_multipart_upload(**upload)  # by a replica that led before, say
        abort(**upload)

    monkeypatch.setattr(blobs._bucket._client, "abort_multipart_upload", abort_after_another)
    blobs.remove_leftovers()
    assert half_sent() == 0
