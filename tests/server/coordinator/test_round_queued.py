"""Members whose device is still at another job's task: the deadline counts from when they are given the round's."""

from __future__ import annotations

from server.coordinator.events import (
    Aggregate,
    CancelTasks,
    DeviceConnected,
    DeviceDisconnected,
    DeviceGone,
    Reopen,
    SendTask,
    TaskBegun,
    TaskQueued,
)
from server.coordinator.round import Phase
from tests.server.coordinator.round_table import DEADLINE_S, Table, opened


def kinds(table: Table) -> list[type]:
    return [type(effect) for effect in table.effects]


def test_a_queued_member_has_the_deadline_from_when_it_begins() -> None:
    table = opened("a", "b")
    table.tell(TaskQueued("b"))
    table.accept("a")

    assert table.pass_time(10 * DEADLINE_S) == []
    table.tell(TaskBegun("b"))
    assert table.pass_time(DEADLINE_S - 1) == []
    table.accept("b")

    assert table.round.phase is Phase.AGGREGATING


def test_a_member_that_has_begun_misses_the_deadline_as_ever() -> None:
    table = opened("a", "b")
    table.tell(TaskQueued("b"))
    table.pass_time(10 * DEADLINE_S)
    table.tell(TaskBegun("b"))

    table.pass_time(DEADLINE_S)

    assert Reopen in kinds(table)


def test_while_one_is_queued_a_quorum_does_not_end_the_round_at_the_deadline() -> None:
    table = opened("a", "b", "c", quorum=2)
    table.tell(TaskQueued("c"))
    table.accept("a", "b")

    assert table.pass_time(2 * DEADLINE_S) == []
    table.tell(TaskBegun("c"))
    table.accept("c")

    assert table.effects[-1] == Aggregate()
    assert table.round.accepted == {"a", "b", "c"}


def test_a_queued_member_that_is_gone_holds_nobody_up() -> None:
    table = opened("a", "b", "c", quorum=1)
    table.tell(TaskQueued("b"))
    table.accept("a")
    table.pass_time(2 * DEADLINE_S)

    table.tell(DeviceDisconnected("b"), DeviceGone("b"))

    assert table.effects == [CancelTasks(("b", "c"), "round 5 has closed"), Aggregate()]


def test_a_queued_member_that_was_at_it_all_the_same_holds_nobody_up() -> None:
    # After a restart of the coordinator a device may be at a task that it was not handed again.
    table = opened("a", "b", quorum=1)
    table.tell(TaskQueued("b"))
    table.pass_time(2 * DEADLINE_S)

    table.accept("b")

    assert table.round.phase is Phase.AGGREGATING


def test_a_member_that_begins_after_it_was_accepted_does_not_put_off_the_deadline() -> None:
    table = opened("a", "b")
    table.tell(TaskQueued("b"))
    table.accept("b")
    table.now = DEADLINE_S / 2

    table.tell(TaskBegun("b"))

    assert table.round.wake_at == DEADLINE_S


def test_a_queued_member_that_comes_back_is_given_its_task_and_may_queue_again() -> None:
    table = opened("a", "b")
    table.tell(TaskQueued("b"), DeviceDisconnected("b"), DeviceGone("b"))

    assert table.tell(DeviceConnected("b")) == [SendTask("b")]
    table.tell(TaskQueued("b"))
    assert table.pass_time(2 * DEADLINE_S) == []


def test_who_is_still_queued_is_not_carried_into_the_next_round() -> None:
    table = opened("a", "b", "c", quorum=1, enough=1, keeps_late=True)
    table.tell(TaskQueued("c"))

    table.accept("a")

    assert table.round.late == {"b"}
    assert CancelTasks(("c",), "round 5 has closed") in table.effects


def test_a_new_attempt_asks_anew_who_is_queued() -> None:
    table = opened("a", "b")
    table.tell(TaskQueued("b"), TaskBegun("b"), TaskQueued("a"), TaskBegun("a"))
    table.pass_time(DEADLINE_S)

    assert table.round.attempt == 2
    assert table.round.queued == frozenset()
    assert {SendTask("a"), SendTask("b")} <= set(table.effects)
