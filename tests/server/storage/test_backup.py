"""A backup, of either kind of database into either kind: whole, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from bnncore.errors import ConfigurationError
from server.backup import make_backup, restore_backup
from server.backup.layout import SUMS
from server.settings import Settings
from server.storage.blob_stores import open_blobs
from server.storage.blobs import LocalBlobs
from server.storage.promotions import PromotionRecord
from server.storage.rows import read_database
from server.storage.sql import SqlStorage, open_storage, using_database
from server.storage.state_folder import RESTORING, owned
from server.storage.tables import leases
from server.storage.trust import AuditRecord, IdentityRecord, KeyRecord, SessionRecord, TokenRecord
from tests.s3_server import S3Server
from tests.server.storage.test_contract import ACCEPTED, DEVICE, JOB, ROUND, SHARES, VERSION

NOTE = AuditRecord(3.5, "key:first", "make a token", "127.0.0.1", "1 use")


def fill(state: Path, url: str) -> None:
    """Leave what a coordinator leaves: a row in every table, payloads, an identity."""
    blobs = LocalBlobs(state / "blobs")
    payload, memory, update = (blobs.put(word * 50_000) for word in (b"model", b"memory", b"update"))
    blobs.put(b"an orphan")
    version = replace(VERSION, payload_digest=payload, state_digest=payload, memory_digest=memory)
    storage = open_storage(url)
    storage.add_job(replace(JOB, job_id="before"))
    storage.add_job(JOB)
    storage.save_device(DEVICE)
    storage.add_version(version)
    storage.promotions.add(PromotionRecord("job-1", 1, 2.5, "key:first"))
    storage.save_round(replace(ROUND, accuracy=float("nan")), [replace(ACCEPTED, update_digest=update)])
    storage.record_steps([replace(SHARES, digest=update)])
    storage.trust.add_key(KeyRecord("k", "first", "admin", "5" * 64, 1.5), NOTE)
    storage.trust.add_token(TokenRecord("t", "6" * 64, {"site": "läb"}, 3, 1.5, 2.5), NOTE)
    storage.trust.enrol(IdentityRecord("a", "7" * 64, "ACTIVE", {}, 1.5, 2.5), "6" * 64, 2.0, NOTE)
    storage.trust.add_session(SessionRecord("8" * 64, "5" * 64, 2.5), 2.0, 10)
    storage.close()
    with using_database(url) as engine, engine.begin() as connection:
        row = {"name": "rounds", "holder": "a-1", "fence": 3, "backend_pid": 7, "since": 2.5, "store": "s3://b"}
        connection.execute(insert(leases).values(row))
    (state / "identity").mkdir(mode=0o700)
    (state / "identity" / "authority.pem").write_text("a key")
    (state / "endpoint.json").write_text("{}")


def content(url: str) -> dict[str, list[object]]:
    with read_database(url) as reading:
        return {table: [json.dumps(row) for row in reading.rows(table)] for table in reading.tables}


def at(state: Path, url: str, **more: Any) -> Settings:
    return Settings(state=state, database=url, **more)


def backup_of(state: Path, url: str) -> bytes:
    output = io.BytesIO()
    make_backup(at(state, url), output)
    return output.getvalue()


@pytest.fixture
def house(tmp_path: Path) -> tuple[Path, str]:
    """A state folder and its database."""
    state = tmp_path / "state"
    state.mkdir()
    url = f"sqlite:///{state / 'bitfleet.db'}"
    fill(state, url)
    return state, url


@pytest.fixture
def there(tmp_path: Path) -> tuple[Path, str]:
    """Where a backup may be put back."""
    return tmp_path / "there", f"sqlite:///{tmp_path / 'there' / 'bitfleet.db'}"


def test_all_of_a_coordinator_comes_back_in_either_kind_of_database(
    tmp_path: Path, database_url: str, house: tuple[Path, str], there: tuple[Path, str]
) -> None:
    kept = tmp_path / "other"
    head = restore_backup(io.BytesIO(backup_of(*house)), at(kept, database_url))  # SQLite to either
    restore_backup(io.BytesIO(backup_of(kept, database_url)), at(*there))  # either to SQLite

    assert all(head.tables.values()), head.tables
    assert content(database_url) == content(house[1]) == content(there[1])
    digests = LocalBlobs(house[0] / "blobs").digests()
    for state in (kept, there[0]):
        blobs = LocalBlobs(state / "blobs")
        assert len(blobs.digests()) == 3  # without the orphan
        assert blobs.digests() < digests
        assert all(blobs.get(digest) for digest in blobs.digests())
        key = state / "identity" / "authority.pem"
        assert key.read_text() == "a key"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (key, key.parent)] == [0o600, 0o700]
        assert {path.name for path in state.iterdir()} <= {"lock", "bitfleet.db", "identity", "blobs"}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_payloads_in_an_object_store_and_an_authority_that_is_shared_come_back(
    tmp_path: Path, database_url: str, s3_server: S3Server, house: tuple[Path, str], there: tuple[Path, str]
) -> None:
    shared = tmp_path / "shared"
    replicas = at(tmp_path / "replica", database_url, blobs=s3_server.url_of("backup"), identity=shared)
    restore_backup(io.BytesIO(backup_of(*house)), replicas)
    store = open_blobs(replicas)
    names = {path.name for path in (replicas.state / "identity").iterdir()}
    lost, *_ = sorted(store.digests())
    store.delete(lost)
    output = io.BytesIO()
    head = make_backup(replace(replicas, state=tmp_path / "no" / "replica"), output)
    restore_backup(io.BytesIO(output.getvalue()), at(*there))

    assert ((shared / "authority.pem").read_text(), names) == ("a key", set())
    assert (head.payloads, head.damaged, head.holds_identity) == (2, [lost], True)
    assert LocalBlobs(there[0] / "blobs").digests() == store.digests()
    assert (there[0] / "identity" / "authority.pem").read_text() == "a key"
    assert content(there[1]) == content(house[1])
    with pytest.raises(ConfigurationError, match="has an authority already"):
        restore_backup(io.BytesIO(output.getvalue()), at(tmp_path / "more", there[1], identity=shared))


def test_what_was_put_back_can_be_written_to(database_url: str, tmp_path: Path, house: tuple[Path, str]) -> None:
    restore_backup(io.BytesIO(backup_of(*house)), at(tmp_path / "other", database_url))
    storage = open_storage(database_url)
    try:
        storage.add_job(replace(JOB, job_id="after"))
        storage.trust.record(replace(NOTE, at=9.5))

        assert [job.job_id for job in storage.list_jobs()] == ["before", "job-1", "after"]
        assert storage.pages.audit(limit=10).total == 4
    finally:
        storage.close()


class Busy:
    """A coordinator that closes a round many times a second: a new payload is named, the old one goes."""

    def __init__(self, storage: SqlStorage, blobs: LocalBlobs) -> None:
        self._storage, self._blobs = storage, blobs
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.rounds = 0

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        before: str | None = None
        while not self._is_over.is_set():
            digest = self._blobs.put(b"%d" % self.rounds)
            self._storage.add_version(replace(VERSION, payload_digest=digest, state_digest=digest))
            if before is not None:
                self._blobs.delete(before)
            before = digest
            self.rounds += 1
            time.sleep(0.01)


def test_a_backup_of_a_coordinator_at_work_is_of_one_moment(
    database_url: str, tmp_path: Path, there: tuple[Path, str]
) -> None:
    state = tmp_path / "state"
    storage, blobs = open_storage(database_url), LocalBlobs(state / "blobs")
    storage.add_job(JOB)
    try:
        with Busy(storage, blobs) as busy:
            while busy.rounds < 3:
                time.sleep(0.01)
            backups = [backup_of(state, database_url) for _ in range(5)]
            rounds = busy.rounds
    finally:
        storage.close()

    assert rounds > 3
    for number, backup in enumerate(backups):
        folder = there[0] / str(number)
        url = f"sqlite:///{folder / 'bitfleet.db'}"
        head = restore_backup(io.BytesIO(backup), at(folder, url))
        with read_database(url) as reading:
            assert reading.payloads() == LocalBlobs(folder / "blobs").digests()
        assert head.damaged == []
    assert [path.name for path in state.iterdir()] == ["blobs"]
    assert not list((state / "blobs" / "backups").iterdir())  # what held the payloads is gone


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_payload_that_is_not_whole_is_left_out_and_named(
    house: tuple[Path, str], there: tuple[Path, str], harm: str
) -> None:
    blobs = LocalBlobs(house[0] / "blobs")
    digest = blobs.put(b"memory" * 50_000)
    if harm == "damaged":
        with blobs.path(digest).open("r+b") as file:
            file.write(b"X")
    else:
        blobs.delete(digest)

    output = io.BytesIO()
    head = make_backup(at(*house), output)

    assert head.damaged == [digest]
    restore_backup(io.BytesIO(output.getvalue()), at(*there))
    assert len(LocalBlobs(there[0] / "blobs").digests()) == 2


def repacked(
    backup: bytes, change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]]
) -> bytes:
    """Make an archive of what ``change`` gives for each of its files."""
    output = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(backup)) as old, tarfile.open(fileobj=output, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            for entry, data in change(member, b"" if file is None else file.read()):
                entry.size = len(data)
                new.addfile(entry, io.BytesIO(data))
    return output.getvalue()


def with_member(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[bytes], bytes]:
    def change(member: tarfile.TarInfo, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        if member.name == SUMS:
            evil = tarfile.TarInfo(name)
            evil.type, evil.linkname = kind, "/etc/passwd"
            yield evil, b""
        yield member, data

    return lambda backup: repacked(backup, change)


def with_text(name: str, old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(member: tarfile.TarInfo, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        yield member, data.replace(old, new) if member.name == name else data

    return lambda backup: repacked(backup, change)


def without(name: str) -> Callable[[bytes], bytes]:
    def change(member: tarfile.TarInfo, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        if member.name != name:
            yield member, data

    return lambda backup: repacked(backup, change)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda backup: b"", "no whole backup"),
        (lambda backup: b"this is no archive" * 1000, "no whole backup"),
        (lambda backup: backup[:1500], "no whole backup"),
        (lambda backup: backup[: len(backup) // 2], "no whole backup"),
        (lambda backup: backup.rstrip(b"\0")[:-512], "no whole backup"),
        (without(SUMS), "its end is missing"),
        (without("database/rounds.jsonl"), "1 of its files are .* such as database/rounds.jsonl"),
        (lambda backup: backup.replace(b"modelmodel", b"modelModel", 1), "1 of its files are .* such as blobs/"),
        (
            with_text("identity/authority.pem", b"a key", b"b key"),
            "1 of its files are .* such as identity/authority.pem",
        ),
        (with_member("../evil"), "'../evil' is no part of a backup"),
        (with_member("/tmp/evil"), "is no part of a backup"),
        (with_member("identity/link.pem", tarfile.SYMTYPE), "does not belong there"),
        (with_member("backup.json"), "'backup.json' does not belong there"),
        (with_text("backup.json", b'"format": 1', b'"format": 2'), r"has format 2 .*, this version reads 1"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused_and_leaves_nothing(
    house: tuple[Path, str], there: tuple[Path, str], harm: Callable[[bytes], bytes], words: str
) -> None:
    backup = backup_of(*house)

    with pytest.raises(ConfigurationError, match=words):
        restore_backup(io.BytesIO(harm(backup)), at(*there))

    assert [path.name for path in there[0].iterdir()] == ["lock"]
    restore_backup(io.BytesIO(backup), at(*there))
    assert content(there[1]) == content(house[1])


def test_a_backup_of_a_newer_schema_is_refused(house: tuple[Path, str], there: tuple[Path, str]) -> None:
    output = io.BytesIO()
    head = make_backup(at(*house), output)
    head_text = json.dumps(head.schema).encode()
    old, new = b'"schema": ' + head_text, b'"schema": "9999"'
    backup = with_text("backup.json", old, new)(output.getvalue())
    with tarfile.open(fileobj=io.BytesIO(backup)) as archive:
        file = archive.extractfile("backup.json")
        assert file is not None
        changed = file.read()
    digests = [hashlib.sha256(text).hexdigest().encode() for text in (changed.replace(new, old), changed)]
    backup = with_text(SUMS, *digests)(backup)

    with pytest.raises(ConfigurationError, match=r"of a newer version of bitfleet .schema 9999."):
        restore_backup(io.BytesIO(backup), at(*there))


def test_nothing_is_overwritten(house: tuple[Path, str], there: tuple[Path, str], database_url: str) -> None:
    backup = backup_of(*house)
    open_storage(database_url).close()

    with pytest.raises(ConfigurationError, match="must be empty"):
        restore_backup(io.BytesIO(backup), at(*house))
    with pytest.raises(ConfigurationError, match="the database to restore to must be empty"):
        restore_backup(io.BytesIO(backup), at(there[0], database_url))
    with owned(there[0]), pytest.raises(ConfigurationError, match="is in use by another coordinator"):
        restore_backup(io.BytesIO(backup), at(*there))


def test_half_a_restore_is_not_served(tmp_path: Path) -> None:
    (tmp_path / RESTORING).mkdir()

    with (
        pytest.raises(ConfigurationError, match="interrupted: empty the folder and restore again"),
        owned(tmp_path),
    ):
        pass


def test_what_is_no_coordinators_state_is_not_backed_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bitfleet.db'}"

    with pytest.raises(ConfigurationError, match="is no state folder"):
        make_backup(at(tmp_path, url), io.BytesIO())
    (tmp_path / "blobs").mkdir()
    with pytest.raises(ConfigurationError, match="there is no database"):
        make_backup(at(tmp_path, url), io.BytesIO())
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]
