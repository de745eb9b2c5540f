"""The device's own privacy account: what the ledger says was spent, and which tasks it leaves room for."""

import math
from pathlib import Path

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from edge_client.errors import TaskDeclinedError
from edge_client.outbox import Dispatch, Outbox, Privacy
from edge_client.policy import Policy
from edge_client.privacy_account import PrivacyAccount, epsilon_of, spent_in

NOISE = Privacy("distributed", 10.0, 5.0, 1e-5)


def masked(round_number: int, attempt: int = 1, job_id: str = "job", kind: str = "masked") -> Dispatch:
    return Dispatch("2026-01-02", kind, job_id, round_number, f"t-{round_number}", 9, "d", attempt, NOISE)


def task(round_number: int, *, multiplier: float = 5.0, mechanism: str = "distributed") -> pb.Task:
    privacy = pb.DifferentialPrivacy(mechanism=mechanism, clip=10.0, noise_multiplier=multiplier, delta=1e-5)
    return pb.Task(
        job_id="job", round_number=round_number, secure=pb.SecureAggregation(attempt=1, min_members=3, privacy=privacy)
    )


def test_epsilon_is_that_of_the_published_bound() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert epsilon_of(0.1, 1e-5) == pytest.approx(0.1 + 2 * math.sqrt(0.1 * 5 * math.log(10)))


def test_a_masked_update_counts_once_for_its_attempt_over_all_jobs_and_restarts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    for entry in (
        masked(1, kind="keys"),
        masked(1),
        masked(1),  # sent again
        masked(1, attempt=2),
        masked(1, job_id="other"),
        masked(1, kind="reveal"),
    ):
        outbox.sending(entry)

    assert spent_in(Outbox(tmp_path / "outbox.jsonl")) == pytest.approx(3 / (2 * 5.0**2))


def test_rounds_are_declined_when_the_budget_is_spent(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    limit = epsilon_of(3 / 50, 1e-5) + 1e-9
    account = PrivacyAccount(outbox, Policy(max_epsilon=limit, delta=1e-5))
    for number in (1, 2, 3):
        account.check(task(number))
        outbox.sending(masked(number))
        account.note_masked(task(number))

    account.check(task(3))  # this round is spent already: sending it again costs nothing
    with pytest.raises(TaskDeclinedError, match=r"epsilon 1.72226 at delta 1e-05 over all jobs; 1.72 is spent"):
        account.check(task(4))
    with pytest.raises(TaskDeclinedError, match="is spent"):
        PrivacyAccount(outbox, Policy(max_epsilon=limit)).check(task(4))
    account.check(task(4, multiplier=1e6))
    PrivacyAccount(outbox, Policy(max_epsilon=2 * limit)).check(task(4))


def test_who_limits_epsilon_takes_no_noise_on_trust(tmp_path: Path) -> None:
    account = PrivacyAccount(Outbox(tmp_path / "outbox.jsonl"), Policy(max_epsilon=8.0))

    with pytest.raises(TaskDeclinedError, match="this job has none"):
        account.check(pb.Task())
    with pytest.raises(TaskDeclinedError, match="this job has none"):
        account.check(pb.Task(secure=pb.SecureAggregation(min_members=3)))
    with pytest.raises(TaskDeclinedError, match="this job has 'central'"):
        account.check(task(1, mechanism="central"))
    PrivacyAccount(Outbox(tmp_path / "outbox.jsonl"), Policy()).check(pb.Task())


def test_an_update_serves_in_one_sum_over_restarts_too(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    account = PrivacyAccount(outbox, Policy())
    outbox.sending(masked(1))
    account.check(task(1))  # nobody has helped to open that sum

    account.note_reveal(task(1))
    outbox.sending(masked(1, kind="reveal"))
    for each in (account, PrivacyAccount(outbox, Policy())):
        with pytest.raises(TaskDeclinedError, match=r"round 1 is in a sum that was revealed \(attempt 1\)"):
            each.check(task(1))
        each.check(task(2))
