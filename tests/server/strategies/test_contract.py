"""The laws of strategies, applied to every registered one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bnncore.errors import BitfleetError, CheckpointError, PayloadError
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, validate_state, weights_digest
from bnncore.zoo import mlp
from server.strategies import STRATEGIES, Accumulator, Strategy, get_strategy
from server.strategies.fedavg import MAX_EXAMPLES

SPEC = mlp((5, 3), (8, 4), 3)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return STRATEGIES[request.param]


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


def aggregate(strategy: Strategy, updates: list[tuple[State, int]], spec: ModelSpec = SPEC) -> State:
    accumulator = strategy.init(spec)
    for state, num_examples in updates:
        strategy.fold(accumulator, state, num_examples)
    return strategy.finish(accumulator)


def same(first: State, second: State) -> bool:
    return weights_digest(SPEC, first) == weights_digest(SPEC, second)


UPDATES = [(random_update(seed), num_examples) for seed, num_examples in ((1, 10), (2, 1), (3, 977), (4, 60_000))]


def test_the_result_is_a_valid_model_in_float32(strategy: Strategy) -> None:
    result = aggregate(strategy, UPDATES)

    validate_state(SPEC, result, statistics=True)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert list(result) == list(SPEC.tensor_shapes())


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_identical_updates_return_that_update(strategy: Strategy, dtype: Any) -> None:
    update = random_update(1, dtype=dtype)

    result = aggregate(strategy, [(update, 7), (update, 123), (update, 60_000)])

    for tensor in SPEC.tensors:
        if tensor.role == "weight" and dtype == np.int8:
            np.testing.assert_array_equal(result[tensor.name], to_float32(update[tensor.name]))
        else:
            # half a step of the coarsest unit here (2^-19: fan-in 15, inputs up to 255 < 2^12), and float32's rounding
            bound = 2.0**-20 + np.abs(update[tensor.name]) * 2.0**-24
            assert np.all(np.abs(result[tensor.name] - update[tensor.name]) <= bound)


def test_the_order_of_devices_does_not_change_one_bit(strategy: Strategy) -> None:
    results = [aggregate(strategy, list(order)) for order in itertools.permutations(UPDATES)]

    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("factor", [2, 3, 10, 17])
def test_scaling_all_num_examples_does_not_change_one_bit(strategy: Strategy, factor: int) -> None:
    scaled = [(state, num_examples * factor) for state, num_examples in UPDATES]

    assert same(aggregate(strategy, scaled), aggregate(strategy, UPDATES))


def test_inputs_are_left_as_they_were(strategy: Strategy) -> None:
    state = random_update(1)
    before = {name: array.copy() for name, array in state.items()}
    for array in state.values():
        array.flags.writeable = False  # as a decoded payload is

    aggregate(strategy, [(state, 3), (state, 4)])

    assert all(np.array_equal(state[name], before[name]) for name in state)


def test_no_updates_raise(strategy: Strategy) -> None:
    with pytest.raises(BitfleetError, match="at least one update"):
        strategy.finish(strategy.init(SPEC))


def test_merging_partial_sums_is_exact(strategy: Strategy) -> None:
    halves = [strategy.init(SPEC), strategy.init(SPEC)]
    for index, (state, num_examples) in enumerate(UPDATES):
        strategy.fold(halves[index % 2], state, num_examples)
    before = halves[0].to_bytes()

    merged = strategy.merge(halves[0], halves[1])

    assert same(strategy.finish(merged), aggregate(strategy, UPDATES))
    assert merged.num_updates == len(UPDATES)
    assert halves[0].to_bytes() == before
    with_nothing = strategy.merge(merged, strategy.init(SPEC))
    assert same(strategy.finish(with_nothing), strategy.finish(merged))


def test_an_accumulator_survives_being_written_down(strategy: Strategy) -> None:
    accumulator = strategy.init(SPEC)
    strategy.fold(accumulator, *UPDATES[0])
    restored = Accumulator.from_bytes(accumulator.to_bytes())
    for update in UPDATES[1:]:
        strategy.fold(restored, *update)

    assert same(strategy.finish(restored), aggregate(strategy, UPDATES))


def test_bytes_that_are_no_accumulator_are_refused() -> None:
    data = STRATEGIES["fedavg"].init(SPEC).to_bytes()

    for wrong in (b"", data[:-1], b"x" * 100):
        with pytest.raises(CheckpointError):
            Accumulator.from_bytes(wrong)


@pytest.mark.parametrize("num_examples", [0, -1, MAX_EXAMPLES + 1])
def test_a_weight_outside_its_range_is_refused(strategy: Strategy, num_examples: int) -> None:
    accumulator = strategy.init(SPEC)

    with pytest.raises(PayloadError, match="num_examples"):
        strategy.fold(accumulator, random_update(1), num_examples)
    assert accumulator.num_updates == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_a_value_that_fixed_point_cannot_carry_is_refused_and_leaves_no_trace(strategy: Strategy, value: float) -> None:
    accumulator = strategy.init(SPEC)
    strategy.fold(accumulator, *UPDATES[0])
    before = accumulator.to_bytes()
    bad = random_update(9)
    bad["norm3.beta"] = bad["norm3.beta"].copy()
    bad["norm3.beta"][1] = value

    with pytest.raises(PayloadError, match=r"norm3\.beta"):
        strategy.fold(accumulator, bad, 5)
    assert accumulator.to_bytes() == before


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BitfleetError, match=r"fedavg.*'fedbest'"):
        get_strategy("fedbest")
