"""The laws of strategies that fold updates as they come: their accumulators and what they remember."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from bnncore.errors import CheckpointError, PayloadError
from bnncore.state import State
from server.strategies import STRATEGIES, Accumulator, FoldingStrategy, difference_of, make_strategy
from tests.server.strategies.updates import BASE, DEPLOYED, SPEC, UPDATES, aggregate, as_needed, random_update, same


@pytest.fixture(params=sorted(name for name, kind in STRATEGIES.items() if issubclass(kind, FoldingStrategy)))
def strategy(request: pytest.FixtureRequest) -> FoldingStrategy:
    strategy = make_strategy(request.param)
    assert isinstance(strategy, FoldingStrategy)
    return strategy


def fold(strategy: FoldingStrategy, accumulator: Accumulator, update: State, weight: int) -> None:
    strategy.fold(accumulator, as_needed(strategy, update), weight)


def finish(strategy: FoldingStrategy, accumulator: Accumulator) -> State:
    state, _ = strategy.finish(accumulator, BASE, None)
    return state


def test_inputs_are_left_as_they_were(strategy: FoldingStrategy) -> None:
    state = random_update(1)
    before = {name: array.copy() for name, array in state.items()}
    base = {name: array.copy() for name, array in BASE.items()}
    for array in (*state.values(), *base.values()):
        array.flags.writeable = False  # as a decoded payload is
    accumulator = strategy.init(SPEC)
    fold(strategy, accumulator, state, 3)
    folded = accumulator.to_bytes()

    _, memory = strategy.finish(accumulator, base, None)
    again, _ = strategy.finish(accumulator, base, memory)
    after, _ = strategy.finish(accumulator, base, memory)

    assert accumulator.to_bytes() == folded
    assert same(after, again)  # the memory that went in is as it was

    assert all(np.array_equal(state[name], before[name]) for name in state)


def test_merging_partial_sums_is_exact(strategy: FoldingStrategy) -> None:
    halves = [strategy.init(SPEC), strategy.init(SPEC)]
    for index, (state, num_examples) in enumerate(UPDATES):
        fold(strategy, halves[index % 2], state, num_examples)
    before = halves[0].to_bytes()

    merged = strategy.merge(halves[0], halves[1])

    assert same(finish(strategy, merged), aggregate(strategy, UPDATES))
    assert merged.num_updates == len(UPDATES)
    assert halves[0].to_bytes() == before
    with_nothing = strategy.merge(merged, strategy.init(SPEC))
    assert same(finish(strategy, with_nothing), finish(strategy, merged))


def test_an_accumulator_survives_being_written_down(strategy: FoldingStrategy) -> None:
    accumulator = strategy.init(SPEC)
    fold(strategy, accumulator, *UPDATES[0])
    restored = Accumulator.from_bytes(accumulator.to_bytes())
    for update in UPDATES[1:]:
        fold(strategy, restored, *update)

    assert same(finish(strategy, restored), aggregate(strategy, UPDATES))


def test_bytes_that_are_no_accumulator_are_refused(strategy: FoldingStrategy) -> None:
    data = strategy.init(SPEC).to_bytes()

    for wrong in (b"", data[:-1], b"x" * 100):
        with pytest.raises(CheckpointError):
            Accumulator.from_bytes(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_a_value_beyond_fixed_point_is_refused_and_leaves_no_trace(strategy: FoldingStrategy, value: float) -> None:
    accumulator = strategy.init(SPEC)
    fold(strategy, accumulator, *UPDATES[0])
    before = accumulator.to_bytes()
    bad = random_update(9)
    bad["norm3.beta"] = bad["norm3.beta"].copy()
    bad["norm3.beta"][1] = value

    with pytest.raises(PayloadError, match=r"norm3\.beta"):
        fold(strategy, accumulator, bad, 5)
    assert accumulator.to_bytes() == before


def test_what_is_remembered_survives_being_written_down(strategy: FoldingStrategy) -> None:
    accumulator = strategy.init(SPEC)
    fold(strategy, accumulator, *UPDATES[0])
    _, memory = strategy.finish(accumulator, BASE, None)
    if memory is None:
        return

    state, _ = strategy.finish(accumulator, BASE, load(save(memory)))

    assert same(state, strategy.finish(accumulator, BASE, memory)[0])
    assert not same(state, strategy.finish(accumulator, BASE, None)[0])


def test_differences_without_their_base_make_no_model(strategy: FoldingStrategy) -> None:
    accumulator = strategy.init(SPEC, is_difference=True)
    strategy.fold(accumulator, difference_of(SPEC, UPDATES[0][0], DEPLOYED), 1)

    with pytest.raises(PayloadError, match="the model that the round started from"):
        strategy.finish(accumulator, None, None)
