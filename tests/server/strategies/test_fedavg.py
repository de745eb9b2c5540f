"""FedAvg: the weighted mean, and the arithmetic at the edges of what int64 can hold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from bnncore.errors import PayloadError
from bnncore.state import State
from bnncore.zoo import mlp
from server.strategies import difference_of
from server.strategies.fedavg import FedAvg
from server.strategies.fixed_point import MAX_TOTAL_WEIGHT, MAX_WEIGHT
from tests.bnncore.random_differences import numbers

SPEC = mlp((2,), (), 2)  # one dense layer of 2 x 2 weights, its norm, the loss


def update(weights: list[int] | list[float], beta: float = 0.0, mean: float = 0.0, mean_abs_dev: float = 1.0) -> State:
    dtype = np.int8 if all(isinstance(weight, int) for weight in weights) else np.float32
    return {
        "dense1.weight": np.array(weights, dtype=dtype).reshape(2, 2),
        "norm1.beta": np.full(2, beta, np.float32),
        "norm1.mean": np.full(2, mean, np.float32),
        "norm1.mean_abs_dev": np.full(2, mean_abs_dev, np.float32),
    }


def mean_of(*updates: tuple[State, int]) -> State:
    strategy = FedAvg()
    accumulator = strategy.init(SPEC)
    for state, num_examples in updates:
        strategy.fold(accumulator, state, num_examples)
    result, memory = strategy.finish(accumulator, None, None)
    assert memory is None
    return result


def test_it_is_the_mean_weighted_by_examples() -> None:
    result = mean_of((update([127, -127, 0, 10], beta=1.0), 1), (update([-127, -127, 1, 20], beta=3.0), 3))

    # (1 * 127 - 3 * 127) / 4 / 127 = -1/2; 3/4 of a step; (10 + 60) / 4 = 17.5 steps; beta (1 + 9) / 4
    expected = np.array([-0.5, -1.0, 0.75 / 127, 17.5 / 127], np.float32).reshape(2, 2)
    np.testing.assert_array_equal(result["dense1.weight"], expected)
    np.testing.assert_array_equal(result["norm1.beta"], np.float32(2.5))


def test_float32_weights_meet_int8_weights_in_one_sum() -> None:
    result = mean_of((update([127, 0, 0, 0]), 1), (update([0.5, 0.0, 0.0, -1.0]), 1))

    np.testing.assert_array_equal(result["dense1.weight"], np.array([[0.75, 0.0], [0.0, -0.5]], np.float32))


def test_the_largest_sum_that_is_allowed_does_not_overflow() -> None:
    # |x| <= 255 and fan-in 2: a pre-activation lies within +-510
    rounds = MAX_TOTAL_WEIGHT // MAX_WEIGHT
    extreme = update([-127, 127, -127, 127], beta=-1023.9, mean=-510.0, mean_abs_dev=510.0)

    result = mean_of(*[(extreme, MAX_WEIGHT)] * rounds)

    np.testing.assert_array_equal(result["dense1.weight"], np.array([[-1, 1], [-1, 1]], np.float32))
    np.testing.assert_array_equal(result["norm1.mean"], np.float32(-510.0))
    np.testing.assert_allclose(result["norm1.beta"], -1023.9, rtol=2.0**-23)


def test_one_example_more_is_refused() -> None:
    strategy = FedAvg()
    accumulator = strategy.init(SPEC)
    for _ in range(MAX_TOTAL_WEIGHT // MAX_WEIGHT):
        strategy.fold(accumulator, update([1, 1, 1, 1]), MAX_WEIGHT)

    with pytest.raises(PayloadError, match="at most 1073741824 examples"):
        strategy.fold(accumulator, update([1, 1, 1, 1]), 1)
    with pytest.raises(PayloadError, match="at most 1073741824 examples"):
        strategy.merge(accumulator, accumulator)


@pytest.mark.parametrize("seed", range(5))
def test_the_division_is_correctly_rounded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = [
        (update([int(value) for value in rng.integers(-127, 128, 4)]), int(rng.integers(1, MAX_WEIGHT)))
        for _ in range(5)
    ]
    total = sum(num_examples for _, num_examples in updates)

    result = mean_of(*updates)["dense1.weight"].ravel()

    for index in range(4):
        weighted = sum(int(state["dense1.weight"].ravel()[index]) * n for state, n in updates)
        exact = Fraction(weighted, 127 * total)
        # float64 carries the ratio to 2^-52, far below float32's half step
        assert abs(Fraction(float(result[index])) - exact) <= Fraction(1, 2**24) * abs(exact) + Fraction(1, 2**50)


@pytest.mark.parametrize(("server_step", "weight"), [(1.0, 60 / 127), (0.5, 45 / 127), (1.5, 75 / 127), (9.0, 1.0)])
def test_a_server_step_scales_the_mean_difference_and_stays_in_range(server_step: float, weight: float) -> None:
    base = update([30, 30, 30, 30], beta=1.0)
    full = {**base, "dense1.weight": base["dense1.weight"].astype(np.float32) / np.float32(127)}
    strategy = FedAvg(server_step=server_step)
    accumulator = strategy.init(SPEC, is_difference=True)
    for state, num_examples in ((update([20] * 4, beta=2.0, mean=4.0), 1), (update([100] * 4, beta=2.0, mean=8.0), 1)):
        strategy.fold(accumulator, difference_of(SPEC, state, base), num_examples)

    result, _ = strategy.finish(accumulator, full, None)

    # the mean difference is (20 + 100) / 2 - 30 = 30 steps, and 1 of beta; statistics are their own mean
    np.testing.assert_allclose(result["dense1.weight"], weight, rtol=2.0**-22)
    np.testing.assert_array_equal(result["norm1.beta"], np.float32(1.0 + server_step))
    np.testing.assert_array_equal(result["norm1.mean"], np.float32(6.0))


def test_a_difference_is_exact_where_both_sides_are_int8() -> None:
    difference = difference_of(SPEC, update([127, -127, 0, 5]), update([-127, 127, 0, 7]))

    weights = numbers(difference["dense1.weight"])
    np.testing.assert_array_equal(weights.ravel(), np.array([254, -254, 0, -2], np.int16))
    assert weights.dtype == np.int16
