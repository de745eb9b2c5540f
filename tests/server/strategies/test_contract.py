"""The laws of strategies, applied to every registered one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bnncore.errors import PayloadError
from bnncore.state import to_float32, validate_state
from server.errors import InvalidJobError
from server.strategies import STRATEGIES, make_strategy
from server.strategies.fixed_point import MAX_WEIGHT
from tests.server.strategies.updates import BASE, SPEC, UPDATES, AnyStrategy, aggregate, random_update, same

NO_MEAN = {"fedadam", "fedyogi", "signvote"}
"""Strategies that rightly do not return what all devices agree on, but a step towards it."""


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> AnyStrategy:
    return make_strategy(request.param)


def test_the_result_is_a_valid_model_in_float32(strategy: AnyStrategy) -> None:
    result = aggregate(strategy, UPDATES)

    validate_state(SPEC, result, statistics=True)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert list(result) == list(SPEC.tensor_shapes())


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - NO_MEAN), indirect=True)
def test_identical_updates_return_that_update(strategy: AnyStrategy, dtype: Any) -> None:
    update = random_update(1, dtype=dtype)

    result = aggregate(strategy, [(update, 7), (update, 123), (update, 60_000)])

    for tensor in SPEC.tensors:
        if tensor.role == "weight" and dtype == np.int8 and not strategy.needs_differences:
            np.testing.assert_array_equal(result[tensor.name], to_float32(update[tensor.name]))
        else:
            # half a step of the coarsest unit here (2^-19: fan-in 15, inputs up to 255 < 2^12), and float32's rounding
            sent = to_float32(update[tensor.name])
            assert np.all(np.abs(result[tensor.name] - sent) <= 2.0**-20 + np.abs(sent) * 2.0**-24)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_what_all_devices_send_counts_as_what_one_sends(strategy: AnyStrategy, dtype: Any) -> None:
    update = random_update(1, dtype=dtype)

    assert same(aggregate(strategy, [(update, 7)] * 5), aggregate(strategy, [(update, 7)]))


def test_the_order_of_devices_does_not_change_one_bit(strategy: AnyStrategy) -> None:
    results = [aggregate(strategy, list(order)) for order in itertools.permutations(UPDATES)]

    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("factor", [2, 3, 10, 17])
def test_scaling_all_num_examples_does_not_change_one_bit(strategy: AnyStrategy, factor: int) -> None:
    scaled = [(state, num_examples * factor) for state, num_examples in UPDATES]

    assert same(aggregate(strategy, scaled), aggregate(strategy, UPDATES))


def test_no_updates_raise(strategy: AnyStrategy) -> None:
    with pytest.raises(PayloadError, match="at least one update"):
        aggregate(strategy, [])


@pytest.mark.parametrize("num_examples", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_outside_its_range_is_refused(strategy: AnyStrategy, num_examples: int) -> None:
    with pytest.raises(PayloadError, match="num_examples"):
        aggregate(strategy, [UPDATES[0], (random_update(1), num_examples)])


def test_a_strategy_tells_its_parameters(strategy: AnyStrategy) -> None:
    assert make_strategy(strategy.name, strategy.parameters()) == strategy


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9, 1e9, True, "1"])
def test_a_parameter_outside_its_range_is_refused_by_name(strategy: AnyStrategy, value: Any) -> None:
    for name in strategy.parameters():
        with pytest.raises(InvalidJobError, match=f"{name} of strategy '{strategy.name}' must be"):
            make_strategy(strategy.name, {name: value})


def test_an_unknown_parameter_is_refused_by_name(strategy: AnyStrategy) -> None:
    with pytest.raises(InvalidJobError, match="not 'momentun'"):
        make_strategy(strategy.name, {"momentun": 0.9})


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidJobError, match=r"fedavg.*'fedbest'"):
        make_strategy("fedbest")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
@pytest.mark.parametrize("name", ["norm3.beta", "norm1.mean", "dense2.weight"])
def test_a_hostile_value_is_refused_by_name(strategy: AnyStrategy, name: str, value: float) -> None:
    bad = random_update(9, dtype=np.float32)
    bad[name] = bad[name].copy()
    bad[name].reshape(-1)[1] = value

    with pytest.raises(PayloadError, match=name):
        aggregate(strategy, [UPDATES[0], (bad, 5)])


def test_updates_and_the_model_are_left_as_they_were(strategy: AnyStrategy) -> None:
    updates = [(random_update(seed), 3) for seed in (1, 2)]
    base = {name: array.copy() for name, array in BASE.items()}
    for array in (*updates[0][0].values(), *updates[1][0].values(), *base.values()):
        array.flags.writeable = False  # as a decoded payload is; numpy refuses to write to it

    result = aggregate(strategy, updates, base=base)

    assert same(result, aggregate(strategy, updates))
