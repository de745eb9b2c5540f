"""The round state machine: events in, effects out, a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    Cancelled,
    CancelTasks,
    Committed,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Effect,
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
from server.coordinator.round import Phase, Round, RoundRules, advance, open_round, resume_round

DEADLINE_S = 100.0
SETTLE_S = 2.0


@dataclass
class Table:
    """A round under test with its clock and the effects of the latest event."""

    round: Round
    effects: list[Effect]
    now: float = 0.0
    history: list[Effect] = field(default_factory=list)

    def tell(self, *events: Event) -> list[Effect]:
        self.effects = []
        for event in events:
            self.round, effects = advance(self.round, event, self.now)
            self.effects += effects
        self.history += self.effects
        return self.effects

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.tell(TimePassed())

    def accept(self, *device_ids: str) -> list[Effect]:
        return self.tell(*(UpdateOffered(device_id) for device_id in device_ids))


def rules(**changes: Any) -> RoundRules:
    defaults: dict[str, Any] = {
        "round_number": 5,
        "seed": 1,
        "min_devices": 2,
        "cohort_size": 0,
        "quorum": None,
        "deadline_s": DEADLINE_S,
        "settle_s": SETTLE_S,
        "max_attempts": 3,
    }
    return RoundRules(**{**defaults, **changes})


def opened(*connected: str, **changes: Any) -> Table:
    """A round opened in a fleet that has been quiet for long, so that it need not settle."""
    round_, effects = open_round(rules(**changes), now=0.0, connected=frozenset(connected), quiet_since=-1000.0)
    return Table(round_, list(effects))


def refusal(status: SubmitStatus, effects: list[Effect]) -> str:
    (answer,) = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
    assert answer.status is status
    return answer.reason


# Opening


def test_a_round_waits_for_enough_devices() -> None:
    table = opened("a")

    assert table.round.phase is Phase.OPEN
    assert table.effects == []
    assert table.round.wake_at is None


def test_a_round_opens_at_once_in_a_quiet_fleet() -> None:
    table = opened("b", "a")

    assert table.effects == [StartCollecting(), SendTask("a"), SendTask("b")]
    assert table.round.phase is Phase.COLLECTING
    assert table.round.wake_at == DEADLINE_S


def test_devices_that_join_while_the_fleet_settles_take_part() -> None:
    table = opened("a")

    assert table.tell(DeviceConnected("b")) == []
    table.now = SETTLE_S / 2
    assert table.tell(DeviceConnected("c")) == []
    assert table.wait(SETTLE_S / 2) == [StartCollecting(), SendTask("a"), SendTask("b"), SendTask("c")]


def test_joining_devices_do_not_put_off_the_opening() -> None:
    table = opened("a", "b", min_devices=2)
    assert table.round.phase is Phase.COLLECTING

    table = opened("a")
    table.tell(DeviceConnected("b"))
    table.now = SETTLE_S - 0.1
    table.tell(DeviceConnected("c"))

    assert table.round.wake_at == SETTLE_S


def test_a_device_that_leaves_while_the_fleet_settles_is_waited_for() -> None:
    table = opened("a")
    table.tell(DeviceConnected("b"), DeviceDisconnected("a"))

    assert table.wait(10 * SETTLE_S) == []
    table.tell(DeviceConnected("c"))
    assert table.wait(SETTLE_S) == [StartCollecting(), SendTask("b"), SendTask("c")]


def test_a_round_needs_as_many_devices_as_its_quorum() -> None:
    table = opened("a", "b", quorum=3)

    assert table.round.phase is Phase.OPEN
    table.tell(DeviceConnected("c"))
    table.wait(SETTLE_S)
    assert table.round.phase is Phase.COLLECTING


def test_a_fleet_that_joined_just_now_settles_first() -> None:
    round_, effects = open_round(rules(), now=10.0, connected=frozenset("ab"), quiet_since=9.0)

    assert effects == ()
    assert round_.wake_at == 9.0 + SETTLE_S


def test_a_cohort_of_a_given_size_is_chosen() -> None:
    table = opened(*"abcdefgh", cohort_size=3)

    assert len(table.round.cohort) == 3
    assert table.effects == [StartCollecting(), *(SendTask(device_id) for device_id in sorted(table.round.cohort))]


# Collecting


def test_a_round_closes_when_the_whole_cohort_has_delivered() -> None:
    table = opened("a", "b")

    assert table.accept("a") == [AnswerUpdate("a", SubmitStatus.ACCEPTED)]
    assert table.accept("b") == [AnswerUpdate("b", SubmitStatus.ACCEPTED), Aggregate()]
    assert table.round.phase is Phase.AGGREGATING
    table.tell(Committed())
    assert table.round.phase is Phase.COMMITTED
    assert table.round.is_over


def test_connected_members_are_waited_for_though_the_quorum_is_reached() -> None:
    table = opened("a", "b", "c", quorum=2)

    table.accept("a", "b")

    assert table.round.phase is Phase.COLLECTING


def test_the_deadline_with_a_quorum_aggregates() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")

    assert table.wait(DEADLINE_S) == [CancelTasks(("c",), "round 5 has closed"), Aggregate()]


def test_a_device_that_is_gone_is_not_waited_for_once_the_quorum_is_reached() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.tell(DeviceDisconnected("c"), DeviceGone("c"))
    assert table.round.phase is Phase.COLLECTING

    effects = table.accept("a", "b")

    assert effects[-2:] == [CancelTasks(("c",), "round 5 has closed"), Aggregate()]


def test_losing_the_last_outstanding_device_closes_a_round_with_a_quorum() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")

    assert table.tell(DeviceDisconnected("c")) == []  # it may come back within its grace
    assert Aggregate() in table.tell(DeviceGone("c"))


def test_a_lost_device_that_the_quorum_needs_is_waited_for_until_the_deadline() -> None:
    table = opened("a", "b")
    table.accept("a")

    assert table.tell(DeviceDisconnected("b"), DeviceGone("b")) == []
    assert table.tell(DeviceConnected("b")) == [SendTask("b")]
    assert Aggregate() in table.accept("b")


def test_a_device_that_came_back_is_not_gone() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")
    table.tell(DeviceDisconnected("c"), DeviceConnected("c"))

    assert table.tell(DeviceGone("c")) == []
    assert table.round.phase is Phase.COLLECTING


def test_a_reconnecting_member_gets_its_task_again_unless_it_has_delivered() -> None:
    table = opened("a", "b", "c")
    table.accept("a")

    assert table.tell(DeviceConnected("b")) == [SendTask("b")]
    assert table.tell(DeviceConnected("a")) == []
    assert table.tell(DeviceConnected("stranger")) == []


def test_a_duplicate_is_answered_and_not_counted() -> None:
    table = opened("a", "b")
    table.accept("a")

    assert table.accept("a") == [AnswerUpdate("a", SubmitStatus.DUPLICATE)]
    assert table.round.accepted == {"a"}


def test_a_stranger_is_rejected() -> None:
    table = opened("a", "b")

    assert "not in the cohort of round 5" in refusal(SubmitStatus.REJECTED, table.accept("stranger"))


def test_an_update_after_closing_is_late_and_a_repeated_one_a_duplicate() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")
    table.wait(DEADLINE_S)

    assert refusal(SubmitStatus.LATE, table.accept("c")) == "round 5 has closed"
    refusal(SubmitStatus.DUPLICATE, table.accept("a"))


def test_the_deadline_counts_even_when_its_timer_has_not_fired_yet() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")
    table.now = DEADLINE_S

    effects = table.accept("c")

    assert Aggregate() in effects
    refusal(SubmitStatus.LATE, effects)


def test_an_invalid_update_does_not_stop_the_round() -> None:
    table = opened("a", "b", "c", quorum=2)

    assert table.tell(UpdateRefused("c")) == []
    assert table.accept("a", "b")[-1] == Aggregate()


def test_a_valid_update_after_an_invalid_one_counts() -> None:
    table = opened("a", "b")
    table.tell(UpdateRefused("a"))

    assert table.accept("a") == [AnswerUpdate("a", SubmitStatus.ACCEPTED)]


def test_an_invalid_update_of_a_stranger_or_after_an_accepted_one_changes_nothing() -> None:
    table = opened("a", "b", "c")
    table.accept("a")
    before = table.round

    assert table.tell(UpdateRefused("stranger"), UpdateRefused("a")) == []
    assert table.round == before


@pytest.mark.parametrize("outcome", list(TaskOutcome))
def test_a_task_that_ended_without_an_update_is_not_waited_for(outcome: TaskOutcome) -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")

    assert Aggregate() in table.tell(TaskEnded("c", outcome))


def test_a_device_that_stopped_and_started_again_gets_its_task_again() -> None:
    table = opened("a", "b")
    table.tell(TaskEnded("b", TaskOutcome.ABANDONED), DeviceDisconnected("b"))

    assert table.tell(DeviceConnected("b")) == [SendTask("b")]


def test_a_device_that_declined_is_not_asked_again_in_the_round() -> None:
    table = opened("a", "b")
    table.tell(TaskEnded("b", TaskOutcome.DECLINED))

    assert table.tell(DeviceConnected("b")) == []


# Attempts


def test_a_missed_quorum_opens_another_attempt_that_keeps_what_was_accepted() -> None:
    table = opened("a", "b", "c")
    table.accept("a")
    table.tell(DeviceDisconnected("c"))

    effects = table.wait(DEADLINE_S)

    assert effects[0] == Reopen("attempt 1 of 3: deadline of 100 s passed, 1 of the 3 updates needed were accepted")
    assert effects[1:3] == [StartCollecting(), SendTask("b")]
    assert effects[3] == CancelTasks(("c",), "another cohort was chosen")
    assert (table.round.attempt, table.round.cohort, table.round.accepted) == (2, {"a", "b"}, {"a"})
    assert table.round.wake_at == 2 * DEADLINE_S
    assert table.accept("b")[-1] == Aggregate()


def test_an_attempt_without_enough_devices_waits_for_them() -> None:
    table = opened("a", "b")
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))

    table.wait(DEADLINE_S)

    assert (table.round.phase, table.round.attempt) == (Phase.OPEN, 2)
    assert table.wait(1000 * DEADLINE_S) == []


def test_an_update_that_arrives_between_two_attempts_counts() -> None:
    table = opened("a", "b")
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))
    table.wait(DEADLINE_S)

    assert table.accept("b") == [AnswerUpdate("b", SubmitStatus.ACCEPTED)]
    effects = table.tell(DeviceConnected("a"))
    effects += table.wait(SETTLE_S)

    assert effects == [StartCollecting(), SendTask("a")]
    assert table.accept("a")[-1] == Aggregate()


def test_an_update_between_two_attempts_may_complete_the_round() -> None:
    table = opened("a", "b", min_devices=1)
    table.tell(DeviceDisconnected("a"), DeviceDisconnected("b"))
    table.wait(DEADLINE_S)

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
    effects = table.wait(DEADLINE_S)

    reason = "attempt 2 of 2: deadline of 100 s passed, 0 of the 2 updates needed were accepted"
    assert effects == [CancelTasks(("a", "b"), reason), Fail(reason)]
    assert (table.round.phase, table.round.reason) == (Phase.FAILED, reason)
    assert table.wait(DEADLINE_S) == []


# Cancelling


@pytest.mark.parametrize("connected", [("a",), ("a", "b")])
def test_a_cancelled_round_fails_and_tells_its_devices(connected: tuple[str, ...]) -> None:
    table = opened(*connected)
    waiting = tuple(sorted(table.round.waiting))

    effects = table.tell(Cancelled("why"))

    assert effects == ([CancelTasks(waiting, "why")] if waiting else []) + [Fail("why")]
    assert table.tell(Cancelled("again")) == []
    refusal(SubmitStatus.LATE, table.accept("a"))


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
    assert (round_.attempt, round_.cohort) == (2, {"a", "c"})


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
)
def test_whatever_happens_a_round_stays_sound(
    events: list[tuple[Event, float]], quorum: int | None, cohort_size: int
) -> None:
    table = opened("a", "b", quorum=quorum, cohort_size=cohort_size)
    accepted = 0
    for event, seconds in events:
        table.now += seconds
        was_over, before = table.round.is_over, table.round.accepted
        effects = table.tell(event)
        round_ = table.round

        answers = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
        accepted += sum(answer.status is SubmitStatus.ACCEPTED for answer in answers)
        assert len(answers) == isinstance(event, UpdateOffered)
        assert before <= round_.accepted <= round_.cohort
        assert len(round_.accepted) == accepted
        assert not cohort_size or len(round_.cohort) <= max(cohort_size, len(round_.accepted))
        assert round_.attempt <= round_.rules.max_attempts
        assert round_.phase is not Phase.COLLECTING or round_.wake_at is not None
        if Aggregate() in effects:
            assert len(round_.accepted) >= max(round_.quorum, 1)
        if was_over:
            assert not [effect for effect in effects if not isinstance(effect, AnswerUpdate)]
    assert sum(isinstance(effect, (Aggregate, Fail)) for effect in table.history) <= 2
    assert table.history.count(Aggregate()) <= 1
