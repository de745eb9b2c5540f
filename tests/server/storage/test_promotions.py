"""The contract of ``PromotionStore``, on every kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from server.errors import ConflictError, NotFoundError
from server.storage.base import Storage
from server.storage.promotions import PromotionRecord
from server.storage.sql import open_storage
from tests.server.storage.test_contract import JOB, VERSION

FIRST = PromotionRecord("job-1", 1, promoted_at=1.5, promoted_by="key:ann")


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """One with versions 1 to 3 of a model, of which the last is no longer kept, and another model."""
    storage = open_storage(database_url)
    for job_id in ("job-1", "job-2"):
        storage.add_job(replace(JOB, job_id=job_id))
        for version in (1, 2, 3):
            storage.add_version(replace(VERSION, job_id=job_id, version=version, is_kept=version < 3))
    yield storage
    storage.close()


def test_rolling_back_makes_the_version_promoted_before_stand_again(storage: Storage, database_url: str) -> None:
    promotions = [FIRST, replace(FIRST, version=2, promoted_at=2.5), replace(FIRST, promoted_at=3.5)]
    for promotion in promotions:
        storage.promotions.add(promotion)
    storage.promotions.add(replace(FIRST, job_id="job-2"))

    assert storage.promotions.withdraw("job-1", 4.5, "key:bob") == promotions[1]
    assert storage.promotions.withdraw("job-1", 5.5, "local") == promotions[0]
    with pytest.raises(ConflictError, match="'job-1' has one promotion"):
        storage.promotions.withdraw("job-1", 6.5, "local")
    again = open_storage(database_url)

    assert again.promotions.history("job-1") == [
        promotions[0],
        replace(promotions[1], withdrawn_at=5.5, withdrawn_by="local"),
        replace(promotions[2], withdrawn_at=4.5, withdrawn_by="key:bob"),
    ]
    assert again.promotions.standing() == {"job-1": [1], "job-2": [1]}
    again.close()


def test_what_cannot_be_promoted_or_rolled_back_is_refused(storage: Storage) -> None:
    storage.promotions.add(FIRST)

    for version, kind, words in (
        (1, ConflictError, "version 1 of model 'job-1' is the promoted one already"),
        (3, NotFoundError, "no longer keeps the bytes of version 3"),
        (9, NotFoundError, "has no version 9"),
    ):
        with pytest.raises(kind, match=words):
            storage.promotions.add(replace(FIRST, version=version))
    with pytest.raises(ConflictError, match="has no promotion"):
        storage.promotions.withdraw("job-2", 1.5, "local")

    assert storage.promotions.history("job-1") == [FIRST]


def test_forgotten_versions_are_promoted_no_more(storage: Storage) -> None:
    storage.promotions.add(FIRST)
    storage.promotions.add(replace(FIRST, version=2))

    storage.forget_versions("job-1", 1)

    assert storage.promotions.standing() == {"job-1": [1]}
