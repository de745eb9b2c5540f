"""The laws of strategies, applied to every registered one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from bnncore.errors import BitfleetError, CheckpointError, PayloadError
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, validate_state, weights_digest
from bnncore.zoo import mlp
from server.errors import InvalidJobError
from server.strategies import STRATEGIES, Accumulator, FoldingStrategy, difference_of, make_strategy
from server.strategies.fixed_point import MAX_WEIGHT

SPEC = mlp((5, 3), (8, 4), 3)


NO_MEAN = {"fedadam", "fedyogi"}
"""Strategies that rightly do not return what all devices agree on, but a step towards it."""


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> FoldingStrategy:
    return make_strategy(request.param)


def random_update(seed: int, *, dtype: Any = np.int8, spec: ModelSpec = SPEC) -> State:
    """A valid update: weights in range, statistics of the size that pre-activations have."""
    rng = np.random.default_rng(seed)
    state: State = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            weights = rng.integers(-127, 128, tensor.shape).astype(np.int8)
            state[tensor.name] = weights if dtype == np.int8 else to_float32(weights)
        else:
            values = rng.normal(0.0, 3.0, tensor.shape).astype(np.float32)
            state[tensor.name] = np.abs(values) if tensor.role == "mean_abs_dev" else values
    return state


DEPLOYED = random_update(77)
"""The model that the round started from, as devices received it."""
BASE = {name: to_float32(array) for name, array in DEPLOYED.items()}


def fold(strategy: FoldingStrategy, accumulator: Accumulator, update: State, weight: int) -> None:
    if strategy.needs_differences:
        update = difference_of(SPEC, update, DEPLOYED)
    strategy.fold(accumulator, update, weight)


def finish(strategy: FoldingStrategy, accumulator: Accumulator) -> State:
    state, _ = strategy.finish(accumulator, BASE, None)
    return state


def aggregate(strategy: FoldingStrategy, updates: list[tuple[State, int]]) -> State:
    accumulator = strategy.init(SPEC)
    for update, weight in updates:
        fold(strategy, accumulator, update, weight)
    return finish(strategy, accumulator)


def same(first: State, second: State) -> bool:
    return weights_digest(SPEC, first) == weights_digest(SPEC, second)


UPDATES = [(random_update(seed), num_examples) for seed, num_examples in ((1, 10), (2, 1), (3, 977), (4, 60_000))]


def test_the_result_is_a_valid_model_in_float32(strategy: FoldingStrategy) -> None:
    result = aggregate(strategy, UPDATES)

    validate_state(SPEC, result, statistics=True)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert list(result) == list(SPEC.tensor_shapes())


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - NO_MEAN), indirect=True)
def test_identical_updates_return_that_update(strategy: FoldingStrategy, dtype: Any) -> None:
    update = random_update(1, dtype=dtype)

    result = aggregate(strategy, [(update, 7), (update, 123), (update, 60_000)])

    for tensor in SPEC.tensors:
        if tensor.role == "weight" and dtype == np.int8:
            np.testing.assert_array_equal(result[tensor.name], to_float32(update[tensor.name]))
        else:
            # half a step of the coarsest unit here (2^-19: fan-in 15, inputs up to 255 < 2^12), and float32's rounding
            bound = 2.0**-20 + np.abs(update[tensor.name]) * 2.0**-24
            assert np.all(np.abs(result[tensor.name] - update[tensor.name]) <= bound)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_what_all_devices_send_counts_as_what_one_sends(strategy: FoldingStrategy, dtype: Any) -> None:
    update = random_update(1, dtype=dtype)

    assert same(aggregate(strategy, [(update, 7)] * 5), aggregate(strategy, [(update, 7)]))


def test_the_order_of_devices_does_not_change_one_bit(strategy: FoldingStrategy) -> None:
    results = [aggregate(strategy, list(order)) for order in itertools.permutations(UPDATES)]

    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("factor", [2, 3, 10, 17])
def test_scaling_all_num_examples_does_not_change_one_bit(strategy: FoldingStrategy, factor: int) -> None:
    scaled = [(state, num_examples * factor) for state, num_examples in UPDATES]

    assert same(aggregate(strategy, scaled), aggregate(strategy, UPDATES))


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


def test_no_updates_raise(strategy: FoldingStrategy) -> None:
    with pytest.raises(BitfleetError, match="at least one update"):
        finish(strategy, strategy.init(SPEC))


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


def test_bytes_that_are_no_accumulator_are_refused() -> None:
    data = make_strategy("fedavg").init(SPEC).to_bytes()

    for wrong in (b"", data[:-1], b"x" * 100):
        with pytest.raises(CheckpointError):
            Accumulator.from_bytes(wrong)


@pytest.mark.parametrize("num_examples", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_outside_its_range_is_refused(strategy: FoldingStrategy, num_examples: int) -> None:
    accumulator = strategy.init(SPEC)

    with pytest.raises(PayloadError, match="num_examples"):
        fold(strategy, accumulator, random_update(1), num_examples)
    assert accumulator.num_updates == 0


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


def test_a_strategy_tells_its_parameters(strategy: FoldingStrategy) -> None:
    assert make_strategy(strategy.name, strategy.parameters()) == strategy


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9, 1e9, True, "1"])
def test_a_parameter_outside_its_range_is_refused_by_name(strategy: FoldingStrategy, value: Any) -> None:
    for name in strategy.parameters():
        with pytest.raises(InvalidJobError, match=f"{name} of strategy '{strategy.name}' must be"):
            make_strategy(strategy.name, {name: value})


def test_an_unknown_parameter_is_refused_by_name(strategy: FoldingStrategy) -> None:
    with pytest.raises(InvalidJobError, match="not 'momentun'"):
        make_strategy(strategy.name, {"momentun": 0.9})


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidJobError, match=r"fedavg.*'fedbest'"):
        make_strategy("fedbest")
