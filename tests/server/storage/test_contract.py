"""The contract of ``Storage``, on every kind of database: what was written is there after it is opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, insert, inspect

from bnncore.errors import ConfigurationError
from server.errors import ConflictError
from server.storage import tables
from server.storage.base import (
    DeviceRecord,
    JobRecord,
    RoundRecord,
    ScoreRecord,
    StepRecord,
    Storage,
    UpdateRecord,
    VersionRecord,
)
from server.storage.schema import alembic_config
from server.storage.sql import open_storage

JOB = JobRecord("job-1", "digits", "PENDING", '{"rounds":3}', '{"format":"bitfleet.model"}', created_at=1.7e9 + 0.25)
ROUND = RoundRecord(
    "job-1", 1, "COLLECTING", attempt=1, opened_at=5.5, cohort=("a", "b"), collecting_since=6.25, collected_s=0.5
)
ACCEPTED = UpdateRecord(
    "job-1", 1, "a", "ACCEPTED", update_digest="1" * 64, num_examples=2**40, payload_bytes=2**33, seconds=1.5,
    training_seconds=1.25, steps=60, loss=0.25, peak_pss_bytes=2**34, down_bytes=7, up_bytes=2**35, received_at=6.5,
    validation_examples=2**20, validation_correct=2**19, validation_loss=1.125,
    joules=2.5, joules_source="pmic", folded_by="host-1a2b3c",
)  # fmt: skip
VERSION = VersionRecord("job-1", 1, "int8", "2" * 64, 2**33, "3" * 64, "4" * 64, created_at=7.5)
UNMASKING = replace(ROUND, state="UNMASKING", exchange=2, exchange_step="MASKED")
SHARES = StepRecord("job-1", 1, 2, "SHARES", "a", "e" * 64, num_bytes=2**33, received_at=7.25)
DEVICE = DeviceRecord(
    "a", first_seen=1.5, last_seen=2.5, client_version="0.1.0", classes=("cat", "dög"), input_shape=(8, 8),
    num_examples=2**40, isa="avx2", machine="x86_64", threads=4, memory_bytes=2**40,
)  # fmt: skip


@pytest.fixture
def reopen(database_url: str) -> Iterator[Callable[[], Storage]]:
    """Open the database, closing the one that was open, as a restart does."""
    opened: list[Storage] = []

    def open_() -> Storage:
        while opened:
            opened.pop().close()
        opened.append(open_storage(database_url))
        return opened[-1]

    yield open_
    while opened:
        opened.pop().close()


@pytest.fixture
def storage(reopen: Callable[[], Storage]) -> Storage:
    storage = reopen()
    storage.add_job(JOB)
    return storage


def test_jobs_come_back_in_the_order_in_which_they_were_added(reopen: Callable[[], Storage]) -> None:
    storage = reopen()
    jobs = [replace(JOB, job_id=job_id, created_at=0.0, starts_at=1.7e9 + 0.5) for job_id in ("z", "a", "m")]
    for job in jobs:
        storage.add_job(job)

    storage = reopen()

    assert storage.list_jobs() == jobs
    assert storage.get_job("a") == jobs[1]
    assert storage.get_job("none") is None


def test_a_job_id_is_used_once(storage: Storage) -> None:
    with pytest.raises(ConflictError, match="job-1"):
        storage.add_job(JOB)


def test_a_jobs_state_changes(storage: Storage, reopen: Callable[[], Storage]) -> None:
    storage.set_job_state("job-1", "FAILED", finished_at=9.5, reason="no device")

    assert reopen().get_job("job-1") == replace(JOB, state="FAILED", finished_at=9.5, reason="no device")


def test_a_round_is_saved_with_its_tasks_and_saved_again(storage: Storage, reopen: Callable[[], Storage]) -> None:
    assigned = [UpdateRecord("job-1", 1, device_id, "ASSIGNED") for device_id in ("b", "a")]
    storage.save_round(ROUND, assigned)
    storage.save_round(replace(ROUND, attempt=2, reason="quorum missed"))
    storage.save_round(replace(ROUND, round_number=2))

    storage = reopen()

    assert storage.get_round("job-1", 1) == replace(ROUND, attempt=2, reason="quorum missed")
    assert [round_.round_number for round_ in storage.list_rounds("job-1")] == [1, 2]
    assert storage.list_updates("job-1", 1) == assigned[::-1]
    assert storage.get_round("job-1", 3) is None


def test_what_became_of_a_task_is_written_over_its_assignment(storage: Storage, reopen: Callable[[], Storage]) -> None:
    storage.save_round(ROUND, [UpdateRecord("job-1", 1, "a", "ASSIGNED")])
    storage.record_updates([ACCEPTED])

    storage = reopen()

    assert storage.get_update("job-1", 1, "a") == ACCEPTED
    assert storage.list_updates("job-1") == [ACCEPTED]
    assert storage.get_update("job-1", 1, "b") is None


def test_committing_a_round_adds_its_version(storage: Storage, reopen: Callable[[], Storage]) -> None:
    storage.save_round(ROUND, [UpdateRecord("job-1", 1, "b", "ASSIGNED")])
    committed = replace(ROUND, state="COMMITTED", committed_at=8.5, weights_digest="4" * 64)
    storage.commit_round(committed, VERSION, [UpdateRecord("job-1", 1, "b", "MISSED")])
    storage.set_evaluation("job-1", 1, accuracy=93.25, loss=0.5)

    storage = reopen()

    assert storage.get_round("job-1", 1) == replace(committed, accuracy=93.25, loss=0.5)
    assert storage.get_version("job-1", 1) == VERSION
    assert [row.status for row in storage.list_updates("job-1", 1)] == ["MISSED"]


def test_a_commit_that_fails_leaves_nothing_behind(storage: Storage) -> None:
    storage.save_round(ROUND)
    foreign = UpdateRecord("no such job", 1, "b", "MISSED")  # refused by the foreign key

    with pytest.raises(Exception, match=r"(?i)foreign key"):
        storage.commit_round(replace(ROUND, state="COMMITTED"), VERSION, [foreign])

    assert storage.get_round("job-1", 1) == ROUND
    assert storage.get_version("job-1", 1) is None


def test_the_newest_overheads_come_first_whatever_their_job(storage: Storage) -> None:
    storage.add_job(replace(JOB, job_id="job-2"))
    for job_id, number, seconds in (("job-1", 1, 0.5), ("job-2", 1, 0.25), ("job-1", 2, 0.75), ("job-1", 3, None)):
        committed_at = None if seconds is None else 100.0 * seconds
        storage.save_round(replace(ROUND, job_id=job_id, round_number=number, committed_at=committed_at,
                                   overhead_s=seconds))  # fmt: skip

    assert storage.recent_overheads(2) == [0.75, 0.5]
    assert storage.recent_overheads(9) == [0.75, 0.5, 0.25]
    assert storage.recent_overheads(1, "job-2") == [0.25]


def test_measured_steps_are_of_the_latest_accepted_update_before_a_round(storage: Storage) -> None:
    storage.add_job(replace(JOB, job_id="job-2"))
    for number in (1, 2, 3):
        storage.save_round(replace(ROUND, round_number=number))
        storage.record_updates([replace(ACCEPTED, round_number=number, steps=10 * number)])
    storage.record_updates([replace(ACCEPTED, device_id="late", status="LATE")])
    storage.record_updates([replace(ACCEPTED, device_id="unmeasured", training_seconds=None)])
    storage.record_updates([replace(ACCEPTED, device_id="statistics", steps=0)])
    storage.record_updates([replace(ACCEPTED, job_id="job-2", device_id="elsewhere")])
    storage.record_updates([replace(ACCEPTED, device_id="b", training_seconds=0.5)])

    assert storage.measured_steps("job-1", 3) == {"a": (20, 1.25), "b": (60, 0.5)}
    assert storage.measured_steps("job-1", 1) == {}


def test_versions_are_listed_by_number(storage: Storage) -> None:
    storage.add_version(VERSION)
    storage.add_version(replace(VERSION, version=0))
    storage.add_version(VERSION)

    assert [version.version for version in storage.list_versions("job-1")] == [0, 1]
    assert [version.version for version in storage.versions_before("job-1", 1, 5)] == [0]
    assert [version.version for version in storage.versions_before("job-1", 9, 1)] == [1]
    assert storage.versions_before("job-1", 9, 5) == storage.list_versions("job-1")
    assert storage.versions_before("job-2", 9, 5) == []


def test_a_payload_is_found_for_devices_whose_tasks_lead_to_it(storage: Storage) -> None:
    storage.save_round(replace(ROUND, round_number=2))
    storage.add_version(replace(VERSION, version=0, payload_digest="a" * 64, step_digest=None))
    storage.add_version(replace(VERSION, step_digest="9" * 64, step_bytes=7))
    storage.add_version(replace(VERSION, version=2, payload_digest="b" * 64, step_digest="c" * 64))
    storage.record_updates([replace(ACCEPTED, round_number=2, device_id="in", status="ASSIGNED")])

    assert storage.find_payload("2" * 64, "in") == 2**33
    assert storage.find_payload("9" * 64, "in") == 7
    assert storage.find_payload("3" * 64, "in") is None  # the full state is not for devices
    assert storage.find_payload("a" * 64, "in") is None  # of an older round
    assert storage.find_payload("b" * 64, "in") is None  # of the round to come
    assert storage.find_payload("c" * 64, "in") is None
    assert storage.find_payload("2" * 64, "out") is None


def test_a_device_keeps_the_time_it_was_first_seen(reopen: Callable[[], Storage]) -> None:
    storage = reopen()
    storage.save_device(DEVICE)
    storage.save_device(replace(DEVICE, first_seen=50.0, last_seen=60.0, threads=2))

    assert reopen().list_devices() == [replace(DEVICE, last_seen=60.0, threads=2)]


def test_payloads_of_versions_and_of_open_rounds_are_referenced(storage: Storage) -> None:
    storage.save_round(ROUND, [ACCEPTED, UpdateRecord("job-1", 1, "b", "REJECTED", update_digest="5" * 64)])
    assert storage.referenced_digests() == {"1" * 64}

    storage.commit_round(replace(ROUND, state="COMMITTED"), VERSION)

    assert storage.referenced_digests() == {"2" * 64, "3" * 64}


def test_steps_of_an_exchange_come_back_in_order(storage: Storage, reopen: Callable[[], Storage]) -> None:
    steps = [SHARES, replace(SHARES, step="MASKED"), replace(SHARES, device_id="b")]
    storage.save_round(UNMASKING, [replace(ACCEPTED, exchange_step="KEYS")])
    storage.record_steps(steps)
    storage.record_steps([SHARES])
    storage.record_steps([replace(SHARES, round_number=2)])

    storage = reopen()

    assert storage.get_round("job-1", 1) == UNMASKING
    assert storage.get_update("job-1", 1, "a") == replace(ACCEPTED, exchange_step="KEYS")
    assert storage.list_steps("job-1", 1) == [steps[1], steps[0], steps[2]]


@pytest.mark.parametrize("change", [{"exchange": 3, "state": "OPEN"}, {"state": "FAILED"}])
def test_steps_of_an_exchange_that_has_ended_are_forgotten(storage: Storage, change: dict[str, Any]) -> None:
    storage.save_round(UNMASKING)
    storage.record_steps([SHARES, replace(SHARES, round_number=2, digest="f" * 64)])
    storage.save_round(replace(UNMASKING, exchange_step="REVEAL"))
    assert storage.referenced_digests() == {"e" * 64, "f" * 64}

    storage.save_round(replace(UNMASKING, **change))

    assert storage.list_steps("job-1", 1) == []
    assert storage.referenced_digests() == {"f" * 64}


def test_a_commit_forgets_the_steps_of_its_exchange(storage: Storage) -> None:
    storage.save_round(UNMASKING)
    storage.record_steps([SHARES, replace(SHARES, round_number=2)])

    storage.commit_round(replace(UNMASKING, state="COMMITTED"), VERSION)

    assert storage.list_steps("job-1", 1) == []
    storage.forget_versions("job-1", 0)
    assert storage.list_steps("job-1", 2) == []


def test_only_the_newest_memory_of_each_job_is_referenced(storage: Storage) -> None:
    storage.add_job(replace(JOB, job_id="job-2"))
    storage.add_version(replace(VERSION, memory_digest="6" * 64))
    storage.add_version(replace(VERSION, version=2, memory_digest="7" * 64))
    storage.add_version(replace(VERSION, job_id="job-2", memory_digest="8" * 64))

    assert storage.get_version("job-1", 1) == replace(VERSION, memory_digest="6" * 64)
    assert storage.referenced_digests() == {digit * 64 for digit in "2378"}


def test_a_payload_that_is_no_longer_kept_is_not_needed_and_not_found(
    storage: Storage, reopen: Callable[[], Storage]
) -> None:
    first = replace(VERSION, step_digest="5" * 64, step_bytes=9)
    second = replace(VERSION, version=2, payload_digest="6" * 64, state_digest="7" * 64)
    storage.add_version(first)
    storage.add_version(second)
    storage.record_updates([replace(ACCEPTED, round_number=number) for number in (2, 3)])
    before = {digest: storage.find_payload(digest * 64, "a") for digest in "256"}
    storage.replace_versions([replace(first, is_kept=False), replace(second, is_step_kept=False)])

    storage = reopen()

    assert before == {"2": 2**33, "5": 9, "6": 2**33}
    assert storage.get_version("job-1", 1) == replace(first, is_kept=False)
    assert storage.referenced_digests() == {digit * 64 for digit in "567"}
    assert {digest: storage.find_payload(digest * 64, "a") for digest in "256"} == {"2": None, "5": 9, "6": 2**33}


def test_the_migrations_build_the_tables_that_the_code_uses(reopen: Callable[[], Storage], database_url: str) -> None:
    reopen()
    engine = create_engine(database_url)

    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.metadata)
        names = set(inspect(connection).get_table_names())
    engine.dispose()

    assert differences == []
    assert names == {*tables.metadata.tables, "alembic_version"}


def test_scores_are_added_to_the_rounds_that_made_the_versions(storage: Storage, reopen: Callable[[], Storage]) -> None:
    first = replace(ROUND, state="COMMITTED")
    second, third = replace(first, round_number=2), replace(first, round_number=3)
    storage.commit_round(first, VERSION, (), {0: ScoreRecord(9, 9, 9.0)})
    storage.commit_round(second, replace(VERSION, version=2), (), {1: ScoreRecord(2**40, 2**39, 0.5)})
    storage.commit_round(
        third, replace(VERSION, version=3), (), {2: ScoreRecord(4, 3, 1.0), 1: ScoreRecord(1, 1, 0.25)}
    )

    rounds = reopen().list_rounds("job-1")

    assert [(r.local_examples, r.local_correct, r.local_loss_sum) for r in rounds] == [
        (2**40 + 1, 2**39 + 1, 0.75), (4, 3, 1.0), (0, 0, 0.0),
    ]  # fmt: skip
    assert (rounds[1].local_accuracy, rounds[1].local_loss) == (75.0, 0.25)
    assert (rounds[2].local_accuracy, rounds[2].local_loss) == (None, None)


def test_rounds_and_updates_of_the_first_schema_are_kept(database_url: str, reopen: Callable[[], Storage]) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        for table, record in (("jobs", JOB), ("rounds", ROUND), ("updates", ACCEPTED)):
            old = MetaData()
            old.reflect(connection, only=[table])
            names = [column.name for column in old.tables[table].columns if column.name != "position"]
            connection.execute(insert(old.tables[table]).values({name: getattr(record, name) for name in names}))
    engine.dispose()

    storage = reopen()

    assert storage.get_job("job-1") == JOB
    assert storage.list_rounds("job-1") == [replace(ROUND, collecting_since=None, collected_s=0.0)]
    assert storage.list_updates("job-1") == [
        replace(
            ACCEPTED,
            training_seconds=None,
            steps=0,
            validation_examples=0,
            validation_correct=0,
            validation_loss=None,
            joules=None,
            joules_source="",
            folded_by=None,
        )
    ]


def test_a_transaction_on_sqlite_is_on_disk_when_it_returns(tmp_path: object) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/x.db")

    with storage._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    storage.close()

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "--database must be a URL"),
        ("oracle+none://x", "--database must be a URL of an installed driver"),
        ("sqlite:////no/such/folder/x.db", "cannot open the database sqlite:////no/such/folder/x.db"),
        ("postgresql+psycopg://me:secret@/x?host=/no/such/folder", "cannot open the database"),
    ],
)
def test_a_database_that_cannot_be_opened_is_a_configuration_error(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
