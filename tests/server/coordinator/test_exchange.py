"""The exchange on a table: what each step needs, who is out of it, and laws that hold whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.coordinator.events import (
    AnswerUpdate,
    CancelTasks,
    DeviceConnected,
    DeviceGone,
    ExchangeStep,
    SubmitStatus,
    TaskEnded,
    TaskOutcome,
    TimePassed,
)
from server.coordinator.exchange import (
    BeginStep,
    Exchange,
    ExchangeEffect,
    ExchangeEvent,
    Miss,
    OrderStep,
    StepOffered,
    StepRefused,
    Unmask,
    advance,
    begin_exchange,
    judge,
    resume_exchange,
)

PHASE_S = 10.0
KEYS, SHARES, MASKED, REVEAL = ExchangeStep
ACCEPTED, DUPLICATE, LATE, REJECTED = SubmitStatus


@dataclass
class Table:
    """An exchange under test, with its clock and the effects of the latest event."""

    state: Exchange
    effects: list[ExchangeEffect]
    now: float = 0.0
    history: list[ExchangeEffect] = field(default_factory=list)

    def tell(self, *events: ExchangeEvent) -> list[ExchangeEffect]:
        self.effects = []
        for event in events:
            self.state, effects = advance(self.state, event, self.now)
            self.effects += effects
        self.history += self.effects
        return self.effects

    def take(self, step: ExchangeStep, *device_ids: str, suffices: bool = False) -> list[ExchangeEffect]:
        return self.tell(*(StepOffered(device_id, step, suffices) for device_id in device_ids))

    def wait(self) -> list[ExchangeEffect]:
        self.now += PHASE_S
        return self.tell(TimePassed())

    @property
    def missed(self) -> str:
        (miss,) = [effect for effect in self.effects if isinstance(effect, Miss)]
        return miss.reason


def begun(members: str = "abcd", min_members: int = 3) -> Table:
    exchange = Exchange(number=2, members=frozenset(members), min_members=min_members, phase_s=PHASE_S)
    state, effects = begin_exchange(exchange, now=0.0)
    return Table(state, list(effects))


def in_step(step: ExchangeStep) -> Table:
    """An exchange of four in a step, which nobody was lost before."""
    table = begun()
    for earlier in (SHARES, MASKED):
        if step is not earlier:
            table.take(earlier, *"abcd")
        else:
            break
    assert table.state.step is step
    return table


def verdict(effects: list[ExchangeEffect]) -> tuple[SubmitStatus, str]:
    (answer,) = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
    return answer.status, answer.reason


def test_all_steps_are_taken_and_the_masks_come_off() -> None:
    table = begun()
    assert table.effects == [BeginStep(SHARES)]

    assert table.take(SHARES, *"abcd")[-2:] == [AnswerUpdate("d", ACCEPTED), BeginStep(MASKED)]
    assert table.take(MASKED, *"abcd")[-1] == BeginStep(REVEAL)
    assert table.take(REVEAL, "a", "b") == [AnswerUpdate("a", ACCEPTED), AnswerUpdate("b", ACCEPTED)]
    assert table.take(REVEAL, "c", suffices=True) == [AnswerUpdate("c", ACCEPTED), Unmask()]
    assert table.state.is_over


@pytest.mark.parametrize(("step", "following"), [(SHARES, MASKED), (MASKED, REVEAL)])
def test_who_misses_a_step_is_told_to_stop_and_is_out_of_the_next(step: ExchangeStep, following: ExchangeStep) -> None:
    table = in_step(step)
    table.take(step, *"abc")

    assert table.wait() == [CancelTasks(("d",), f"step {step} of the exchange is over"), BeginStep(following)]
    assert table.state.waiting == {"a", "b", "c"}
    assert verdict(table.take(step, "d"))[0] is LATE
    assert verdict(table.take(following, "d"))[0] is LATE


@pytest.mark.parametrize("step", [SHARES, MASKED])
def test_below_the_least_number_of_members_the_exchange_fails(step: ExchangeStep) -> None:
    table = in_step(step)
    table.take(step, *"ab")
    table.wait()

    assert table.missed == (
        f"exchange 2, step {step}: its time of 10 s is over, 2 of 4 devices answered; 3 members are needed"
    )
    assert table.state.is_over


def test_revealed_shares_that_do_not_suffice_fail_the_exchange_when_nobody_is_left_or_time_is_over() -> None:
    table = in_step(REVEAL)
    table.take(REVEAL, *"abcd")
    assert "no device is left that could take it, the shares of 4 of 4 devices do not" in table.missed

    table = in_step(REVEAL)
    table.take(REVEAL, "a")
    table.wait()
    assert "its time of 10 s is over, the shares of 1 of 4 devices" in table.missed


def test_who_has_revealed_shares_has_no_part_in_a_further_exchange() -> None:
    table = in_step(REVEAL)
    assert table.state.spent == frozenset()

    table.tell(TaskEnded("d", TaskOutcome.DECLINED))
    table.take(REVEAL, "a", "b")
    table.wait()

    assert (table.state.spent, table.state.declined) == (frozenset("ab"), frozenset("d"))


@pytest.mark.parametrize("outcome", [TaskOutcome.DECLINED, TaskOutcome.FAILED])
@pytest.mark.parametrize("step", [SHARES, MASKED])
def test_nobody_waits_for_a_member_that_goes_on_no_further(step: ExchangeStep, outcome: TaskOutcome) -> None:
    table = in_step(step)
    table.take(step, *"abc")

    effects = table.tell(TaskEnded("d", outcome, "why"))

    assert isinstance(effects[-1], BeginStep)
    assert table.state.lost == {"d"}
    assert table.state.declined == ({"d"} if outcome is TaskOutcome.DECLINED else set())


def test_an_invalid_step_ends_its_device_in_the_exchange() -> None:
    table = in_step(SHARES)
    table.tell(StepRefused("a", SHARES), StepRefused("b", MASKED), StepRefused("x", SHARES))

    assert table.state.lost == table.state.declined == {"a"}
    table.take(SHARES, *"bcd")
    assert table.state.step is MASKED


def test_a_member_that_is_gone_is_waited_for_only_where_it_is_needed() -> None:
    table = in_step(SHARES)
    table.take(SHARES, *"abc")
    assert table.tell(DeviceGone("d"))[-1] == BeginStep(MASKED)

    table.take(MASKED, *"ab")
    assert table.tell(TaskEnded("c", TaskOutcome.ABANDONED)) == []
    assert table.tell(DeviceConnected("c")) == [OrderStep("c")]
    assert table.take(MASKED, "c")[-1] == BeginStep(REVEAL)

    assert table.tell(DeviceGone("a"), DeviceGone("b"), DeviceGone("c")) == []  # before the time is over
    assert table.state.step is REVEAL


def test_who_comes_back_is_asked_for_what_is_missing() -> None:
    table = in_step(MASKED)
    table.take(MASKED, "a")

    assert table.tell(DeviceConnected("a"), DeviceConnected("b"), DeviceConnected("x")) == [OrderStep("b")]


def test_a_step_is_judged_by_where_the_exchange_stands() -> None:
    table = in_step(MASKED)
    table.take(MASKED, "a")

    assert judge(table.state, "a", MASKED)[0] is DUPLICATE
    assert judge(table.state, "a", SHARES)[0] is DUPLICATE
    assert judge(table.state, "b", MASKED)[0] is ACCEPTED
    assert judge(table.state, "b", REVEAL) == (REJECTED, "step MASKED of exchange 2 was asked for, not REVEAL")
    assert judge(table.state, "x", MASKED) == (REJECTED, "device x is not a member of exchange 2")


def test_after_the_sum_is_known_a_survivor_is_answered_that_it_counts() -> None:
    table = in_step(MASKED)
    table.take(MASKED, *"abc")
    table.wait()
    table.take(REVEAL, "a", suffices=True)

    assert verdict(table.take(REVEAL, "b"))[0] is DUPLICATE
    assert verdict(table.take(MASKED, "b"))[0] is DUPLICATE
    assert verdict(table.take(MASKED, "d"))[0] is LATE
    assert verdict(table.take(REVEAL, "d"))[0] is LATE


def test_an_exchange_is_gone_on_with_where_it_stood() -> None:
    stopped = Exchange(2, frozenset("abcd"), 3, PHASE_S, step=MASKED, shared=frozenset("abc"), masked=frozenset("a"))

    state, effects = resume_exchange(stopped, now=500.0, suffices=False)

    assert effects == (OrderStep("b"), OrderStep("c"))
    assert (state.wake_at, state.waiting) == (510.0, frozenset("bc"))
    state, effects = resume_exchange(Exchange(2, frozenset("abc"), 3, PHASE_S, step=REVEAL), now=0.0, suffices=True)
    assert (effects, state.is_over) == ((Unmask(),), True)


def test_an_exchange_that_was_complete_goes_on_at_once() -> None:
    everyone = frozenset("abc")

    state, effects = resume_exchange(Exchange(2, everyone, 3, PHASE_S, shared=everyone), now=0.0, suffices=False)

    assert (effects, state.step) == ((BeginStep(MASKED),), MASKED)


def test_too_few_members_are_no_exchange() -> None:
    table = begun("ab")

    assert table.missed == "exchange 2, step SHARES: it has 2 members; 3 members are needed"


DEVICES = st.sampled_from("abcdex")
EVENTS = st.one_of(
    st.builds(StepOffered, DEVICES, st.sampled_from([SHARES, MASKED, REVEAL]), st.booleans()),
    st.builds(StepRefused, DEVICES, st.sampled_from([SHARES, MASKED, REVEAL])),
    st.builds(TaskEnded, DEVICES, st.sampled_from(TaskOutcome)),
    st.builds(DeviceConnected, DEVICES),
    st.builds(DeviceGone, DEVICES),
    st.just(TimePassed()),
)


@given(
    events=st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.0, 1.0, PHASE_S])), max_size=80),
    min_members=st.integers(3, 5),
)
def test_whatever_happens_an_exchange_stays_sound(events: list[tuple[ExchangeEvent, float]], min_members: int) -> None:
    table = begun("abcde", min_members)
    fixed: dict[ExchangeStep, frozenset[str]] = {}
    for event, seconds in events:
        table.now += seconds
        was_over = table.state.is_over
        effects, state = table.tell(event), table.state

        assert state.masked <= state.shared <= state.members
        assert state.revealed <= state.masked
        for step, taken in fixed.items():
            assert state.taken(step) == taken  # what a step that is over came to never changes
        for effect in effects:
            if isinstance(effect, BeginStep):
                before = SHARES if effect.step is MASKED else MASKED
                fixed[before] = state.taken(before)
                assert len(fixed[before]) >= min_members
        answers = [effect for effect in effects if isinstance(effect, AnswerUpdate)]
        assert len(answers) == isinstance(event, StepOffered)
        if was_over:
            assert effects == answers
            assert ACCEPTED not in [answer.status for answer in answers]
        else:
            assert state.is_over == any(isinstance(effect, Unmask | Miss) for effect in effects)
    ends = [effect for effect in table.history if isinstance(effect, Unmask | Miss)]
    assert len(ends) <= 1
    if Unmask() in ends:
        assert len(table.state.masked) >= min_members
        assert table.state.revealed
