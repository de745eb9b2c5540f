"""A round whose updates are added up under masks, on a table: UNMASKING, and what follows when it fails."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.coordinator.events import (
    Aggregate,
    Cancelled,
    CancelTasks,
    Committed,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Event,
    ExchangeDone,
    ExchangeMissed,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    StartUnmasking,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
    TimePassed,
    UpdateOffered,
)
from server.coordinator.round import Phase, open_round, resume_unmasking
from tests.server.coordinator.round_table import DEADLINE_S, Table, opened, refusal, rules

REASON = "attempt 1 of 3: exchange 1 failed"


def collected(members: str = "abc", **changes: object) -> Table:
    table = opened(*members, min_members=3, **changes)
    table.accept(*sorted(table.round.cohort))
    return table


def test_the_keys_of_all_members_begin_their_exchange_and_its_sum_is_merged() -> None:
    table = collected()
    assert table.effects[-1] == StartUnmasking()
    assert (table.round.phase, table.round.busy) == (Phase.UNMASKING, frozenset("abc"))

    assert table.tell(ExchangeDone()) == [Aggregate()]
    assert (table.round.phase, table.round.busy) == (Phase.AGGREGATING, frozenset())
    assert table.tell(Committed()) == []
    assert table.round.phase is Phase.COMMITTED


def test_a_cohort_is_chosen_when_there_are_members_enough() -> None:
    table = opened("a", "b", min_members=3)
    before = table.round.phase

    table.tell(DeviceConnected("c"))
    table.pass_time(2.0)

    assert (before, table.round.phase) == (Phase.OPEN, Phase.COLLECTING)


def test_after_an_exchange_that_failed_its_members_are_asked_for_new_keys() -> None:
    table = collected()

    effects = table.tell(ExchangeMissed("exchange 1 failed"))

    assert effects == [Reopen(REASON), StartCollecting(), SendTask("a"), SendTask("b"), SendTask("c")]
    assert (table.round.exchange, table.round.attempt, table.round.accepted) == (2, 2, frozenset())
    table.accept("a", "b", "c")
    assert table.effects[-1] == StartUnmasking()


def test_members_that_have_trained_come_first_in_the_next_attempt() -> None:
    table = opened("a", "b", "c", min_members=3, cohort_size=3)
    table.accept("a", "b", "c")
    table.tell(*(DeviceConnected(name) for name in "defgh"), DeviceDisconnected("b"))

    table.tell(ExchangeMissed("exchange 1 failed"))

    assert {"a", "c"} < table.round.cohort
    assert len(table.round.cohort) == 3
    assert CancelTasks(("b",), "another cohort was chosen") in table.effects


def test_a_member_that_declined_its_exchange_is_not_asked_again_while_there_are_others() -> None:
    table = opened("a", "b", "c", min_members=3)
    table.accept("a", "b", "c")
    table.tell(DeviceConnected("d"))

    table.tell(ExchangeMissed("exchange 1 failed", frozenset("a")))

    assert table.round.cohort == {"b", "c", "d"}
    assert table.round.refused == {"a"}


def test_a_member_whose_update_has_served_is_never_asked_again_in_the_round() -> None:
    table = opened("a", "b", "c", min_members=3)
    table.accept("a", "b", "c")

    effects = table.tell(ExchangeMissed("exchange 1 failed", spent=frozenset("a")))

    assert effects == [Reopen(REASON)]  # two are too few: the round waits for another device
    table.tell(DeviceConnected("d"))
    table.pass_time(2.0)
    assert table.round.cohort == {"b", "c", "d"}
    assert CancelTasks(("a",), "another cohort was chosen") in table.effects


def test_when_attempts_are_used_up_the_round_fails() -> None:
    table = collected(max_attempts=1)

    effects = table.tell(ExchangeMissed("exchange 1 failed"))

    reason = "attempt 1 of 1: exchange 1 failed"
    assert effects == [CancelTasks(("a", "b", "c"), reason), Fail(reason)]


def test_a_missed_quorum_keeps_the_keys_and_the_exchange() -> None:
    table = opened(*"abcd", min_members=3)
    table.accept("a", "b")

    table.pass_time(DEADLINE_S)

    assert table.round.accepted == {"a", "b"}
    assert (table.round.exchange, table.round.attempt) == (1, 2)
    assert [effect for effect in table.effects if isinstance(effect, SendTask)] == [SendTask("c"), SendTask("d")]


def test_keys_that_come_during_the_exchange_are_late_or_known() -> None:
    table = opened(*"abcd", min_members=3, quorum=3)
    table.accept("a", "b", "c")
    table.pass_time(DEADLINE_S)
    assert CancelTasks(("d",), "round 5 has closed") in table.effects

    assert refusal(SubmitStatus.LATE, table.accept("d")) == "round 5 has closed"
    assert refusal(SubmitStatus.DUPLICATE, table.accept("a")) == ""


def test_cancelling_the_job_during_the_exchange_stops_its_members() -> None:
    table = collected()

    assert table.tell(Cancelled("why")) == [CancelTasks(("a", "b", "c"), "why"), Fail("why")]


def test_an_exchange_is_taken_up_again_after_a_restart() -> None:
    members = frozenset("abc")

    round_, effects = resume_unmasking(
        rules(min_members=3), attempt=2, cohort=members | {"d"}, accepted=members, refused=frozenset("d"), exchange=2,
        connected=frozenset("a"),
    )  # fmt: skip

    assert effects == (StartUnmasking(),)
    assert (round_.phase, round_.exchange, round_.busy, round_.wake_at) == (Phase.UNMASKING, 2, members, None)


DEVICES = st.sampled_from("abcde")
EVENTS = st.one_of(
    st.builds(DeviceConnected, DEVICES),
    st.builds(DeviceDisconnected, DEVICES),
    st.builds(DeviceGone, DEVICES),
    st.builds(TaskEnded, DEVICES, st.sampled_from(TaskOutcome)),
    st.builds(UpdateOffered, DEVICES),
    st.just(TimePassed()),
)


@given(
    events=st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 1.0, DEADLINE_S])), max_size=80),
    outcomes=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_whatever_happens_an_exchange_has_its_members_and_keys_count_in_one_alone(
    events: list[tuple[Event, float]], outcomes: list[bool]
) -> None:
    round_, begun = open_round(rules(min_members=3), now=0.0, connected=frozenset("abcd"))
    table = Table(round_, list(begun))
    for event, seconds in events:
        table.now += seconds
        effects = table.tell(event)
        assert table.round.accepted <= table.round.cohort
        assert table.round.busy >= table.round.waiting
        if StartUnmasking() in effects:
            before = table.round
            assert len(before.accepted) >= 3
            if outcomes[table.round.exchange]:
                assert table.tell(ExchangeDone()) == [Aggregate()]
                return
            table.tell(ExchangeMissed("failed"))
            assert table.round.accepted == frozenset()
            assert table.round.exchange == before.exchange + 1
