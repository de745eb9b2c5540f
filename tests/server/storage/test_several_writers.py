"""What several coordinators do to one PostgreSQL database at the same moment; an SQLite file has one coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from server.errors import ConflictError, InvalidRequestError, ServerError, UnauthenticatedError
from server.storage.base import Storage
from server.storage.promotions import PromotionRecord
from server.storage.sql import open_storage
from server.storage.trust import AuditRecord, IdentityRecord, TokenRecord
from tests.server.storage.test_contract import JOB, VERSION

WRITERS = 4
ENTRY = AuditRecord(1.5, "key:ann", "enrol", "127.0.0.1")
TOKEN = TokenRecord("t1", "d" * 64, {"site": "lab"}, uses_left=5, created_at=1.0, expires_at=9.0)
PI = IdentityRecord("pi", "a" * 64, "ACTIVE", {}, enrolled_at=1.5, expires_at=9.5)


@pytest.fixture
def storages(postgres_url: str) -> Iterator[list[Storage]]:
    """As many connections to one empty database."""
    opened = [open_storage(postgres_url) for _ in range(WRITERS)]
    yield list(opened)
    for storage in opened:
        storage.close()


def at_once(storages: list[Storage], changes: list[Callable[[Storage], object]]) -> list[object]:
    """Make changes at the same moment, each over another connection; return what each gave or raised."""
    barrier = Barrier(len(changes))

    def make(number: int) -> object:
        barrier.wait()
        try:
            return changes[number](storages[number % len(storages)])
        except ServerError as error:
            return error

    with ThreadPoolExecutor(len(changes)) as pool:
        return list(pool.map(make, range(len(changes))))


def enrolment(device: IdentityRecord) -> Callable[[Storage], object]:
    return lambda storage: storage.trust.enrol(device, TOKEN.digest, 2.0, ENTRY)


def test_twenty_devices_at_once_use_a_token_for_five(storages: list[Storage]) -> None:
    storages[0].trust.add_token(TOKEN, ENTRY)
    devices = [replace(PI, device_id=f"pi-{number}") for number in range(20)]

    found = at_once(storages, [enrolment(device) for device in devices])

    enrolled = [record for record in found if isinstance(record, IdentityRecord)]
    assert sorted(record.device_id for record in enrolled) == [
        record.device_id for record in storages[1].trust.list_identities()
    ]
    assert len(enrolled) == 5
    assert [type(error) for error in found if error not in enrolled] == [UnauthenticatedError] * 15
    assert [token.uses_left for token in storages[0].trust.list_tokens()] == [0]


def test_a_name_is_given_once_and_what_was_not_given_costs_no_use(storages: list[Storage]) -> None:
    storages[0].trust.add_token(TOKEN, ENTRY)
    devices = [replace(PI, key_digest=digit * 64) for digit in "abc"]

    found = at_once(storages, [enrolment(device) for device in devices])

    (given,) = [record for record in found if isinstance(record, IdentityRecord)]
    assert storages[1].trust.get_identity("pi") == given
    assert [type(error) for error in found if error is not given] == [ConflictError] * 2
    assert [token.uses_left for token in storages[0].trust.list_tokens()] == [4]


def test_a_renewal_at_the_same_moment_does_not_undo_a_revocation(storages: list[Storage]) -> None:
    storages[0].trust.add_token(TOKEN, ENTRY)
    storages[0].trust.enrol(PI, TOKEN.digest, 2.0, ENTRY)

    at_once(
        storages,
        [
            lambda storage: storage.trust.change_identity("pi", {"expires_at": 8.5}, ENTRY, of_key="a" * 64),
            lambda storage: storage.trust.change_identity("pi", {"state": "REVOKED"}, ENTRY),
            lambda storage: storage.trust.change_identity("pi", {"state": "LEFT"}, ENTRY, of_key="b" * 64),
            lambda storage: storage.trust.change_identity("pi", {"expires_at": 7.5}, ENTRY, of_key="a" * 64),
        ],
    )

    (pi,) = storages[0].trust.list_identities()
    assert pi.state == "REVOKED"
    assert storages[1].trust.change_identity("pi", {"expires_at": 6.5}, ENTRY, of_key="a" * 64) is None
    assert storages[2].trust.get_identity("pi") == pi


def test_promotions_are_made_and_withdrawn_one_after_the_other(storages: list[Storage]) -> None:
    storages[0].add_job(JOB)
    for number in (1, 2, 3):
        storages[0].add_version(replace(VERSION, version=number))
        storages[0].promotions.add(PromotionRecord("job-1", number, promoted_at=number, promoted_by="key:ann"))

    withdrawn = at_once(
        storages, [lambda storage: storage.promotions.withdraw("job-1", 4.5, "key:bob") for _ in range(WRITERS)]
    )
    again = PromotionRecord("job-1", 3, promoted_at=5.5, promoted_by="key:ann")
    promoted = at_once(
        storages,
        [
            *[lambda storage: storage.promotions.add(again)] * 2,
            lambda storage: storage.replace_versions([replace(VERSION, version=3, is_kept=False)]),
        ],
    )

    assert sorted(record.version for record in withdrawn if isinstance(record, PromotionRecord)) == [1, 2]
    assert sum(isinstance(error, ConflictError) for error in withdrawn) == WRITERS - 2
    version = storages[0].get_version("job-1", 3)
    assert version is not None
    # Whichever came first: what is promoted is kept, once.
    assert storages[1].promotions.standing() == {"job-1": [1, 3] if version.is_kept else [1]}
    assert sum(error is None for error in promoted[:2]) == int(version.is_kept)


def test_a_text_that_only_sqlite_can_hold_is_the_mistake_of_who_sends_it(storages: list[Storage]) -> None:
    for ask in (
        lambda: storages[0].get_job("job\0"),
        lambda: storages[0].pages.audit(1, action="\0"),
        lambda: storages[0].trust.record(replace(ENTRY, action="POST /\0")),
    ):
        with pytest.raises(InvalidRequestError, match="must not hold the character NUL"):
            ask()
