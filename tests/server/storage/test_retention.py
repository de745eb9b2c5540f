"""Which payloads may go, on every kind of database: never those that somebody still needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.coordinator.retention import let_go, removable
from server.storage.base import JobRecord, RoundRecord, Storage, VersionRecord
from server.storage.blobs import LocalBlobs
from server.storage.promotions import PromotionRecord
from server.storage.sql import open_storage
from tests.server.conftest import make_job


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    storage = open_storage(database_url)
    yield storage
    storage.close()


def add_job(storage: Storage, job_id: str = "j", state: str = "RUNNING", versions: int = 41, **changes: Any) -> None:
    """Add a job with versions 0, 1, ... and the rounds that made them; all but the first have a step."""
    config = make_job(min_devices=1, **changes)
    storage.add_job(JobRecord(job_id, "stripes", state, config.to_json(), config.spec.to_json(), created_at=0.0))
    for number in range(versions):
        if number:
            storage.save_round(RoundRecord(job_id, number, "COMMITTED", attempt=1, opened_at=float(number)))
        storage.add_version(
            VersionRecord(
                job_id,
                number,
                "int8",
                f"{job_id}p{number}",
                100,
                f"{job_id}s{number}",
                "w",
                created_at=float(number),
                step_digest=f"{job_id}d{number}" if number else None,
            )
        )


def models_gone(storage: Storage, job_id: str = "j") -> list[int]:
    return [after.version for _, after in removable(storage) if after.job_id == job_id and not after.is_kept]


def steps_gone(storage: Storage, job_id: str = "j") -> list[int]:
    return [after.version for _, after in removable(storage) if after.job_id == job_id and not after.is_step_kept]


def test_the_newest_two_and_the_steps_that_devices_may_ask_for_stay(storage: Storage) -> None:
    add_job(storage)

    assert models_gone(storage) == list(range(39))
    assert steps_gone(storage) == list(range(1, 9))  # a task names at most 32: those to versions 9 to 40


def test_of_a_job_that_is_over_all_steps_may_go(storage: Storage) -> None:
    add_job(storage, state="COMPLETED", versions=5)

    assert models_gone(storage) == [0, 1, 2]
    assert steps_gone(storage) == [1, 2, 3, 4]


def test_the_best_version_by_either_judgement_stays(storage: Storage) -> None:
    add_job(storage, versions=10)
    for number, accuracy in ((2, 70.0), (3, 90.0), (4, 80.0)):
        storage.set_evaluation("j", number, accuracy=accuracy, loss=0.1)
    (fifth,) = [round_ for round_ in storage.list_rounds("j") if round_.round_number == 5]
    storage.save_round(replace(fifth, local_examples=10, local_correct=9))

    assert models_gone(storage) == [0, 1, 2, 4, 6, 7]


def test_the_statistics_of_the_best_version_stay_with_it(storage: Storage) -> None:
    add_job(storage, versions=10, statistics_batches=2)
    storage.set_evaluation("j", 3, accuracy=90.0, loss=0.1)

    assert models_gone(storage) == [0, 1, 2, 5, 6, 7]


def test_what_waits_for_its_evaluation_stays_until_the_job_is_over(storage: Storage) -> None:
    add_job(storage, versions=10, evaluation={"dataset": "digits"})
    for number in range(1, 6):
        storage.set_evaluation("j", number, accuracy=50.0, loss=0.1)

    assert models_gone(storage) == [0, 2, 3, 4, 5]
    storage.set_job_state("j", "CANCELLED")
    assert models_gone(storage) == [0, 2, 3, 4, 5, 6, 7]


def test_what_late_updates_start_from_stays(storage: Storage) -> None:
    add_job(storage, versions=10, strategy="fedbuff", strategy_params={"max_staleness": 4}, quorum=1)

    assert models_gone(storage) == [0, 1, 2, 3, 4]


def test_what_a_job_is_to_start_from_stays_until_it_has_begun(storage: Storage) -> None:
    add_job(storage, "first", state="COMPLETED", versions=5)
    add_job(storage, "second", state="PENDING", versions=0, start={"model": "first", "version": 1})

    assert models_gone(storage, "first") == [0, 2]
    storage.add_version(VersionRecord("second", 0, "int8", "p", 1, "s", "w", created_at=9.0))
    assert models_gone(storage, "first") == [0, 1, 2]


def test_what_was_promoted_stays_until_it_is_rolled_back(storage: Storage) -> None:
    add_job(storage, state="COMPLETED", versions=6)
    for version in (1, 3):
        storage.promotions.add(PromotionRecord("j", version, 1.5, "local"))

    assert models_gone(storage) == [0, 2]  # the one to go back to stays as well
    storage.promotions.withdraw("j", 2.5, "local")
    assert models_gone(storage) == [0, 2, 3]


def test_the_oldest_of_all_jobs_goes_first_and_no_more_than_needed(storage: Storage, tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    for job_id in ("a", "b"):
        add_job(storage, job_id, state="COMPLETED", versions=0)
    made = []
    for number in range(6):
        job_id = "ab"[number % 2]
        payload, state = (blobs.put(bytes([number, kind]) * 500) for kind in (1, 2))
        record = VersionRecord(job_id, number // 2, "int8", payload, 1000, state, "w", created_at=float(number))
        storage.add_version(record)
        made.append(record)

    gone = let_go(storage, blobs, 1500)
    for digest in gone - storage.referenced_digests():
        blobs.delete(digest)

    assert gone == {made[0].payload_digest, made[0].state_digest}
    assert storage.get_version("a", 0) == replace(made[0], is_kept=False)
    assert blobs.used_bytes == 10_000
    assert [after.version for _, after in removable(storage)] == [0]  # of b
