"""The contract of ``PageStore``, on every kind of database: all records once, in order, whatever a page's size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from server.errors import InvalidCursorError
from server.storage.base import Storage
from server.storage.pages import JobSums, Page, RoundSums
from server.storage.sql import SqlStorage, open_storage
from server.storage.trust import AuditRecord, IdentityRecord, TokenRecord
from tests.server.storage.test_contract import ACCEPTED, DEVICE, JOB, ROUND, VERSION

_Record = TypeVar("_Record")


@pytest.fixture
def storage(database_url: str) -> Iterator[SqlStorage]:
    storage = open_storage(database_url)
    yield storage
    storage.close()


def all_of(read: Callable[[int, str | None], Page[_Record]], limit: int) -> list[_Record]:
    """Read a list page after page, and check what each says of the others."""
    records: list[_Record] = []
    after = None
    while True:
        page = read(limit, after)
        records += page.records
        assert len(page.records) == limit or page.next is None
        if page.next is None:
            assert page.total == len(records)
            return records
        after = page.next


def fill(storage: Storage, num_jobs: int, num_rounds: int) -> None:
    for number in range(num_jobs):
        job_id = f"job-{9 - number}"  # against the order of their names
        state = ("COMPLETED", "RUNNING")[number % 2]
        storage.add_job(replace(JOB, job_id=job_id, name=f"n{number // 2}", state=state))
        storage.add_version(replace(VERSION, job_id=job_id, version=0))
        for round_number in range(1, num_rounds + 1):
            round_ = replace(ROUND, job_id=job_id, round_number=round_number, state="COMMITTED", accuracy=50.0)
            rows = [replace(ACCEPTED, job_id=job_id, round_number=round_number, device_id=name) for name in "ba"]
            storage.commit_round(round_, replace(VERSION, job_id=job_id, version=round_number), rows)
        storage.save_round(replace(ROUND, job_id=job_id, round_number=num_rounds + 1))


@pytest.mark.parametrize("limit", [1, 3])
def test_jobs_their_rounds_and_models_come_page_after_page(storage: SqlStorage, limit: int) -> None:
    fill(storage, 4, 3)
    storage.add_job(replace(JOB, job_id="without-a-model"))
    pages = storage.pages

    jobs = all_of(pages.jobs, limit)
    assert jobs == storage.list_jobs()
    running = all_of(lambda limit, after: pages.jobs(limit, after, state="RUNNING"), limit)
    assert [job.job_id for job in running] == ["job-8", "job-6"]
    assert [job.name for job in all_of(lambda limit, after: pages.jobs(limit, after, name="n1"), limit)] == ["n1", "n1"]
    assert pages.count_jobs() == {"COMPLETED": 2, "RUNNING": 2, "PENDING": 1}

    rounds = all_of(lambda limit, after: pages.rounds("job-9", limit, after), limit)
    assert rounds == storage.list_rounds("job-9")
    open_ones = all_of(lambda limit, after: pages.rounds("job-9", limit, after, state="COLLECTING"), limit)
    assert [round_.round_number for round_ in open_ones] == [4]
    assert [(row.round_number, row.device_id) for row in pages.updates("job-9", [3, 1, 7])] == [
        (1, "a"), (1, "b"), (3, "a"), (3, "b")
    ]  # fmt: skip
    committed = pages.committed(["job-9", "job-7"], range(10))
    assert [(round_.job_id, round_.round_number, round_.accuracy) for round_ in committed] == [
        (job_id, number, 50.0) for job_id in ("job-7", "job-9") for number in (1, 2, 3)
    ]
    assert [round_.round_number for round_ in pages.committed(["job-9"], [0, 3])] == [3]

    lists: list[tuple[Callable[..., Page[Any]], list[Any]]] = [
        (pages.jobs, jobs),
        (pages.models, all_of(pages.models, limit)),
        (functools.partial(pages.rounds, "job-9"), rounds),
        (functools.partial(pages.versions, "job-9"), storage.list_versions("job-9")),
    ]
    for read, records in lists:
        assert all_of(functools.partial(read, newest_first=True), limit) == records[::-1]
    some = all_of(lambda limit, after: pages.rounds("job-9", limit, after, only=[4, 2, 9]), limit)
    assert [round_.round_number for round_ in some] == [2, 4]
    assert [row.round_number for row in pages.updates("job-9", [3, 1], {"b", "c"})] == [1, 3]
    assert pages.round_sums([]) == {}
    assert {number: sums.accepted for number, sums in pages.round_sums(rounds).items()} == {1: 2, 2: 2, 3: 2}

    models = all_of(pages.models, limit)
    assert [(model.job_id, model.num_versions, model.latest.version) for model in models] == [
        (f"job-{number}", 4, 3) for number in (9, 8, 7, 6)
    ]
    assert all_of(lambda limit, after: pages.versions("job-9", limit, after), limit) == storage.list_versions("job-9")


def test_what_a_jobs_rounds_come_to_is_summed_up(storage: SqlStorage) -> None:
    for job_id in ("a", "b", "c"):
        storage.add_job(replace(JOB, job_id=job_id))
    rounds = [
        # accuracy, judged by devices, of which right, overhead
        (60.0, 0, 0, 0.5),
        (80.0, 3, 2, None),
        (80.0, 30, 20, 0.25),
        (70.0, 3, 1, 0.125),
        (None, 0, 0, 2.0),
    ]
    for number, (accuracy, examples, correct, overhead_s) in enumerate(rounds, start=1):
        judged: dict[str, Any] = {
            "accuracy": accuracy,
            "loss": None if accuracy is None else accuracy / 8,
            "local_examples": examples,
            "local_correct": correct,
            "overhead_s": overhead_s,
        }
        round_ = replace(ROUND, job_id="a", round_number=number, state="COMMITTED", **judged)
        storage.commit_round(round_, replace(VERSION, job_id="a", version=number), [])
    storage.save_round(replace(ROUND, job_id="a", round_number=6, accuracy=99.0, overhead_s=9.0))
    only = replace(ROUND, job_id="b", state="COMMITTED", accuracy=None, local_examples=0, local_correct=0)
    storage.commit_round(replace(only, overhead_s=None), replace(VERSION, job_id="b"), [])

    assert storage.pages.job_sums(["a", "b", "c", "unknown"]) == {
        "a": JobSums(5, 70.0, 8.75, 100.0 / 3, best=2, local_best=2, overhead_s=0.375),
        "b": JobSums(1),
        "c": JobSums(0),
    }


def test_a_rounds_rows_are_summed_up_and_bytes_only_over_its_cohort(storage: SqlStorage) -> None:
    storage.add_job(JOB)
    lost = [replace(ACCEPTED, device_id=f"l{step}", status="LOST", exchange_step=step) for step in ("KEYS", "SHARES")]
    rows = [
        replace(ACCEPTED, down_bytes=2**40, seconds=2.5, joules=2.0),
        replace(ACCEPTED, device_id="b", down_bytes=5, seconds=1.5, joules=None),
        replace(ACCEPTED, device_id="c", status="REJECTED", seconds=9.0, training_seconds=9.0, joules=9.0),
        *lost,
        replace(ACCEPTED, device_id="earlier", status="ABANDONED", down_bytes=100, up_bytes=100),
    ]
    cohort = tuple(row.device_id for row in rows[:-1])
    storage.save_round(replace(ROUND, cohort=cohort), rows)
    storage.save_round(replace(ROUND, round_number=2, cohort=("a",)), [replace(ACCEPTED, round_number=2, joules=None)])

    found = storage.pages.round_sums(storage.list_rounds("job-1"))

    assert found[1] == RoundSums(
        members=5, down_bytes=2**40 + 5 + 3 * 7, up_bytes=5 * 2**35, accepted=2, rejected=1, seconds_max=2.5,
        training_seconds_max=1.25, joules=2.0, lost=2, lost_before_shares=1, lost_before_masked=1,
    )  # fmt: skip
    assert found[2] == RoundSums(1, 7, 2**35, 1, 0, 1.5, 1.25)


@pytest.mark.parametrize("limit", [1, 3])
def test_devices_come_page_after_page_with_and_without_some(storage: SqlStorage, limit: int) -> None:
    for name in "dbcae":
        storage.save_device(replace(DEVICE, device_id=name))
    pages = storage.pages

    def names(**wanted: Any) -> str:
        records = all_of(lambda limit, after: pages.devices(limit, after, **wanted), limit)
        return "".join(record.device_id for record in records)

    assert names() == "abcde"
    assert names(only={"e", "a", "unknown"}) == "ae"
    assert names(without=frozenset("bd")) == "ace"
    assert names(only={"e", "d"}, without=frozenset("bd")) == "e"
    assert names(only=set()) == ""
    assert pages.count_devices() == 5
    for name in ("pi-1", "Pi_2", "p%i"):
        storage.save_device(replace(DEVICE, device_id=name))
    assert names(containing="pI") in ("Pi_2pi-1", "pi-1Pi_2")
    assert names(containing="_") == "Pi_2"
    assert names(containing="%") == "p%i"
    assert names(containing="i", without={"pi-1"}, only={"a", "pi-1", "p%i"}) == "p%i"


@pytest.mark.parametrize("limit", [1, 3])
def test_the_audit_log_comes_from_its_newest_entry_on(storage: SqlStorage, limit: int) -> None:
    for number, (actor, action) in enumerate([("key:a", "enrol"), ("key:b", "enrol_x"), ("key:a", "leave")]):
        storage.trust.record(AuditRecord(float(number), actor, action, "127.0.0.1"))
    audit = storage.pages.audit

    def times(**wanted: str) -> list[float]:
        return [entry.at for entry in all_of(lambda limit, after: audit(limit, after, **wanted), limit)]

    assert times() == [2.0, 1.0, 0.0]
    assert times(actor="key:a") == [2.0, 0.0]
    assert times(action="enrol") == [1.0, 0.0]
    assert times(action="enrol_") == [1.0]  # no wildcard
    assert times(action="enrol", actor="key:b") == [1.0]


def test_labels_are_those_of_the_tokens_that_devices_enrolled_with(storage: SqlStorage) -> None:
    entry = AuditRecord(0.0, "device:a", "enrol", "")
    storage.trust.add_token(TokenRecord("t", "digest", {"site": "lab"}, 2, 0.0, 9.0), entry)
    for name in "ab":
        storage.trust.enrol(IdentityRecord(name, name, "ACTIVE", {}, 0.0, 9.0), "digest", 1.0, entry)

    assert storage.pages.labels() == {"a": {"site": "lab"}, "b": {"site": "lab"}}
    assert storage.pages.labels(["b", "c"]) == {"b": {"site": "lab"}}


@pytest.mark.parametrize("limit", [1, 3])
def test_devices_that_enrolled_and_never_connected_come_page_after_page(storage: SqlStorage, limit: int) -> None:
    entry = AuditRecord(0.0, "device", "enrol", "")
    storage.trust.add_token(TokenRecord("t", "digest", {}, 9, 0.0, 9.0), entry)
    for name in "dcba":
        storage.trust.enrol(IdentityRecord(name, name, "ACTIVE", {}, 0.0, 9.0), "digest", 1.0, entry)
    storage.save_device(replace(DEVICE, device_id="b"))
    storage.trust.change_identity("d", {"state": "REVOKED"}, entry)

    assert [record.device_id for record in all_of(storage.pages.unseen, limit)] == ["a", "c"]


def test_a_cursor_that_no_page_gave_is_refused(storage: SqlStorage) -> None:
    pages = storage.pages
    for after in ("", "x", "-1", "1e3", "9" * 20, "²"):
        for read in (pages.jobs, pages.models, pages.audit, functools.partial(pages.rounds, "job-1")):
            with pytest.raises(InvalidCursorError, match="is no cursor"):
                read(1, after)
