"""The round state machine: events in, effects out, a clock that the test moves."""

from __future__ import annotations

import pytest

from server.coordinator.events import (
    Aggregate,
    AnswerUpdate,
    CancelTasks,
    Committed,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    SendTask,
    StartCollecting,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
    UpdateRefused,
)
from server.coordinator.round import Phase, open_round
from tests.server.coordinator.round_table import DEADLINE_S, SETTLE_S, opened, refusal, rules

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
    assert table.pass_time(SETTLE_S / 2) == [StartCollecting(), SendTask("a"), SendTask("b"), SendTask("c")]


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

    assert table.pass_time(10 * SETTLE_S) == []
    table.tell(DeviceConnected("c"))
    assert table.pass_time(SETTLE_S) == [StartCollecting(), SendTask("b"), SendTask("c")]


def test_a_round_needs_as_many_devices_as_its_quorum() -> None:
    table = opened("a", "b", quorum=3)

    before = table.round.phase
    table.tell(DeviceConnected("c"))
    table.pass_time(SETTLE_S)
    assert (before, table.round.phase) == (Phase.OPEN, Phase.COLLECTING)


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
    before = table.round.phase
    table.tell(Committed())
    assert (before, table.round.phase) == (Phase.AGGREGATING, Phase.COMMITTED)
    assert table.round.is_over


def test_connected_members_are_waited_for_though_the_quorum_is_reached() -> None:
    table = opened("a", "b", "c", quorum=2)

    table.accept("a", "b")

    assert table.round.phase is Phase.COLLECTING


def test_the_deadline_with_a_quorum_aggregates() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.accept("a", "b")

    assert table.pass_time(DEADLINE_S) == [CancelTasks(("c",), "round 5 has closed"), Aggregate()]


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
    table.pass_time(DEADLINE_S)

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
