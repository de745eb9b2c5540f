"""The round state machine after a missed quorum, a cancellation, a restart; and what holds whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    Cancelled,
    CancelTasks,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Event,
    Fail,
    Reopen,
    SendTask,
    StartCollecting,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
    TimePassed,
    UpdateOffered,
    UpdateRefused,
)
from server.coordinator.round import Phase, open_round, resume_round
from tests.server.coordinator.round_table import DEADLINE_S, SETTLE_S, Table, opened, refusal, rules

# Attempts


def test_a_missed_quorum_opens_another_attempt_that_keeps_what_was_accepted() -> None:
    table = opened("a", "b", "c")
    table.accept("a")
    table.tell(DeviceDisconnected("c"))

    effects = table.pass_time(DEADLINE_S)

    assert effects[0] == Reopen("attempt 1 of 3: deadline of 100 s passed, 1 of the 3 updates needed were accepted")
    assert effects[1:3] == [StartCollecting(), SendTask("b")]
    assert effects[3] == CancelTasks(("c",), "another cohort was chosen")
    assert (table.round.attempt, table.round.cohort, table.round.accepted) == (2, frozenset("ab"), frozenset("a"))
    assert table.round.wake_at == 2 * DEADLINE_S
    assert table.accept("b")[-1] == Aggregate()


def test_an_attempt_without_enough_devices_waits_for_them() -> None:
    table = opened("a", "b")
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))

    table.pass_time(DEADLINE_S)

    assert (table.round.phase, table.round.attempt) == (Phase.OPEN, 2)
    assert table.pass_time(1000 * DEADLINE_S) == []


def test_an_update_that_arrives_between_two_attempts_counts() -> None:
    table = opened("a", "b")
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))
    table.pass_time(DEADLINE_S)

    assert table.accept("b") == [AnswerUpdate("b", SubmitStatus.ACCEPTED)]
    effects = table.tell(DeviceConnected("a"))
    effects += table.pass_time(SETTLE_S)

    assert effects == [StartCollecting(), SendTask("a")]
    assert table.accept("a")[-1] == Aggregate()


def test_an_update_between_two_attempts_may_complete_the_round() -> None:
    table = opened("a", "b", min_devices=1)
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))
    table.pass_time(DEADLINE_S)

    effects = table.accept("b")

    assert effects == [
        AnswerUpdate("b", SubmitStatus.ACCEPTED),
        StartCollecting(),
        CancelTasks(("a",), ANOTHER),
        Aggregate(),
    ]


ANOTHER = "another cohort was chosen"


def test_failed_tasks_are_asked_again_in_the_next_attempt_at_once() -> None:
    table = opened("a", "b")
    table.accept("a")

    effects = table.tell(TaskEnded("b", TaskOutcome.FAILED))

    assert [type(effect) for effect in effects] == [Reopen, StartCollecting, SendTask]
    assert table.round.attempt == 2


def test_refused_devices_are_left_out_of_the_next_attempt() -> None:
    table = opened("a", "b", "c")
    table.accept("a", "b")

    effects = table.tell(UpdateRefused("c"))

    assert [type(effect) for effect in effects] == [Reopen, StartCollecting, Aggregate]
    assert table.round.cohort == {"a", "b"}


def test_refused_devices_are_asked_again_when_there_are_not_enough_others() -> None:
    table = opened("a", "b", min_devices=2)
    table.accept("a")

    effects = table.tell(UpdateRefused("b"))

    assert effects[1:] == [StartCollecting(), SendTask("b")]
    assert table.accept("b")[-1] == Aggregate()


def test_a_round_fails_when_its_attempts_are_used_up() -> None:
    table = opened("a", "b", max_attempts=2)

    table.tell(TaskEnded("a", TaskOutcome.FAILED), TaskEnded("b", TaskOutcome.FAILED))
    assert table.round.attempt == 2
    effects = table.pass_time(DEADLINE_S)

    reason = "attempt 2 of 2: deadline of 100 s passed, 0 of the 2 updates needed were accepted"
    assert effects == [CancelTasks(("a", "b"), reason), Fail(reason)]
    assert (table.round.phase, table.round.reason) == (Phase.FAILED, reason)
    assert table.pass_time(DEADLINE_S) == []


# Cancelling


@pytest.mark.parametrize("connected", [("a",), ("a", "b")])
def test_a_cancelled_round_fails_and_tells_its_devices(connected: tuple[str, ...]) -> None:
    table = opened(*connected)
    waiting = tuple(sorted(table.round.waiting))

    effects = table.tell(Cancelled("why"))

    assert effects == ([CancelTasks(waiting, "why")] if waiting else []) + [Fail("why")]
    assert table.tell(Cancelled("again")) == []
    refusal(SubmitStatus.LATE, table.accept("a"))


def test_who_cancels_at_the_deadline_finds_the_round_closed() -> None:
    round_, begun = open_round(rules(quorum=1), now=0.0, connected=frozenset("ab"))
    table = Table(round_, list(begun))
    table.tell(UpdateOffered("a"))
    table.now += DEADLINE_S

    effects = table.tell(Cancelled("why"))

    assert Aggregate() in effects
    assert not any(isinstance(effect, Fail) for effect in effects)  # it would be written over the committed round
    assert table.round.phase is Phase.AGGREGATING


# Recovery


def test_a_recovered_round_goes_on_with_a_new_deadline() -> None:
    round_, effects = resume_round(
        rules(), now=500.0, attempt=2, cohort=frozenset("abc"), accepted=frozenset("a"), refused=frozenset("b")
    )

    assert effects == ()
    assert (round_.phase, round_.attempt, round_.wake_at) == (Phase.COLLECTING, 2, 500.0 + DEADLINE_S)
    table = Table(round_, [], now=501.0)
    assert table.tell(DeviceConnected("a"), DeviceConnected("b"), DeviceConnected("c")) == [SendTask("c")]


def test_a_recovered_round_that_was_complete_aggregates_at_once() -> None:
    _, effects = resume_round(
        rules(), now=0.0, attempt=1, cohort=frozenset("ab"), accepted=frozenset("ab"), refused=frozenset()
    )

    assert effects == (Aggregate(),)


def test_a_recovered_open_round_keeps_what_was_accepted() -> None:
    round_, effects = open_round(
        rules(), now=0.0, attempt=2, cohort=frozenset("ab"), accepted=frozenset("a"), connected=frozenset("c")
    )

    assert effects == (StartCollecting(), SendTask("c"), CancelTasks(("b",), ANOTHER))
    assert (round_.attempt, round_.cohort) == (2, frozenset("ac"))


# Laws

DEVICES = st.sampled_from("abcde")
EVENTS = st.one_of(
    st.builds(DeviceConnected, DEVICES),
    st.builds(DeviceDisconnected, DEVICES),
    st.builds(DeviceGone, DEVICES),
    st.builds(TaskEnded, DEVICES, st.sampled_from(TaskOutcome)),
    st.builds(UpdateOffered, DEVICES),
    st.builds(UpdateRefused, DEVICES),
    st.just(TimePassed()),
    st.builds(Cancelled, st.just("why")),
)


@given(
    events=st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 1.0, SETTLE_S, DEADLINE_S])), max_size=60),
    quorum=st.sampled_from([None, 1, 2, 3]),
    cohort_size=st.sampled_from([0, 3, 4]),
    enough=st.sampled_from([None, 1, 2]),
    carried=st.sampled_from([None, frozenset(), frozenset("a"), frozenset("xyz")]),
)
def test_whatever_happens_a_round_stays_sound(
    events: list[tuple[Event, float]],
    quorum: int | None,
    cohort_size: int,
    enough: int | None,
    carried: frozenset[str] | None,
) -> None:
    over_select = 0.3 if cohort_size and carried is None else 0.0
    asked = {0: 0, 3: 4, 4: 6}[cohort_size] if over_select else cohort_size
    chosen = rules(
        quorum=quorum,
        cohort_size=cohort_size,
        over_select=over_select,
        enough=enough,
        keeps_late=carried is not None,
    )
    connected, carried = frozenset("ab"), carried or frozenset()
    round_, begun = open_round(chosen, now=0.0, connected=connected, carried=carried, last_call=carried & {"x"})
    table = Table(round_, list(begun))
    accepted = 0
    for event, seconds in events:
        table.now += seconds
        was_over, before = table.round.is_over, table.round.accepted
        effects = table.tell(event)
        round_ = table.round

        answers = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
        accepted += sum(answer.status is SubmitStatus.ACCEPTED for answer in answers)
        has_closed = round_.phase in (Phase.AGGREGATING, Phase.COMMITTED, Phase.FAILED)
        is_late = isinstance(event, UpdateOffered) and event.device_id in round_.late and has_closed
        assert len(answers) == (isinstance(event, UpdateOffered) and not is_late)
        assert before <= round_.accepted <= round_.cohort
        assert len(round_.accepted) == accepted
        if cohort_size and round_.phase is Phase.COLLECTING:
            assert len(round_.cohort) <= max(asked, len(round_.accepted | carried))
        assert round_.carried <= carried - round_.accepted
        assert round_.attempt <= round_.rules.max_attempts
        assert round_.phase is not Phase.COLLECTING or round_.wake_at is not None
        if Aggregate() in effects:
            assert len(round_.accepted) >= max(round_.quorum, 1)
            stopped = {name for effect in effects if isinstance(effect, CancelTasks) for name in effect.device_ids}
            assert not stopped & round_.late
        if was_over:
            assert not [effect for effect in effects if not isinstance(effect, AnswerUpdate)]
    assert sum(isinstance(effect, (Aggregate, Fail)) for effect in table.history) <= 2
    assert table.history.count(Aggregate()) <= 1


# Over-selection and late members


def test_more_are_asked_than_needed_and_the_first_close_the_round() -> None:
    table = opened(*"abcdef", cohort_size=3, over_select=0.34, enough=3)
    asked = sorted(table.round.cohort)
    table.accept(*asked[:2])

    effects = table.accept(asked[2])

    assert len(asked) == 5  # ceil(3 * 1.34)
    assert table.round.quorum == 3
    assert effects[1:] == [CancelTasks(tuple(asked[3:]), "round 5 has closed"), Aggregate()]


def test_at_the_deadline_the_quorum_decides() -> None:
    table = opened(*"abcdef", cohort_size=3, over_select=0.34, enough=3, quorum=2)
    asked = sorted(table.round.cohort)
    table.accept(*asked[:2])

    assert table.round.phase is Phase.COLLECTING
    assert table.pass_time(DEADLINE_S)[-1] == Aggregate()


def test_who_is_still_training_is_not_stopped_where_late_updates_count() -> None:
    table = opened(*"abc", quorum=2, enough=2, keeps_late=True)

    effects = table.accept("a", "b")

    assert effects[-1] == Aggregate()
    assert not [effect for effect in effects if isinstance(effect, CancelTasks)]
    assert table.round.late == {"c"}
    assert table.accept("c") == []  # for the next round


def test_a_carried_member_counts_and_takes_a_place() -> None:
    round_, effects = open_round(
        rules(cohort_size=3, quorum=2, enough=2, keeps_late=True),
        now=0.0,
        connected=frozenset("abcd"),
        quiet_since=-1000.0,
        carried=frozenset("dx"),
        last_call=frozenset("x"),
    )
    table = Table(round_, list(effects))

    (fresh,) = table.round.cohort - {"d", "x"}
    assert effects == (StartCollecting(), *(SendTask(name) for name in sorted({fresh, "d"})))
    assert table.tell(DeviceConnected("x")) == [SendTask("x")]
    closing = table.accept("d", fresh)
    assert closing[-2:] == [CancelTasks(("x",), "round 5 has closed"), Aggregate()]
