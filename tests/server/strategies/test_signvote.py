"""Sign vote: who outvotes whom."""

from __future__ import annotations

import numpy as np
import pytest

from bnncore.state import State
from bnncore.zoo import mlp
from server.strategies import difference_of
from server.strategies.signvote import SignVote
from tests.bnncore.random_differences import numbers

SPEC = mlp((2,), (), 2)


def state_of(weights: list[int], beta: float = 0.0) -> State:
    return {
        "dense1.weight": np.array(weights, np.int8).reshape(2, 2),
        "norm1.beta": np.full(2, beta, np.float32),
        "norm1.mean": np.full(2, 2.0 * beta, np.float32),
        "norm1.mean_abs_dev": np.full(2, 1.0, np.float32),
    }


@pytest.mark.parametrize("as_float", [False, True])
def test_the_weighted_majority_of_signs_decides_not_the_size_of_a_difference(as_float: bool) -> None:
    base = state_of([0, 10, -127, 5])
    full = {name: array.astype(np.float32) / (127 if array.dtype == np.int8 else 1) for name, array in base.items()}
    strategy = SignVote(step=0.5)
    accumulator = strategy.init(SPEC)
    votes = (([1, 127, -126, 5], 0.0, 2), ([-127, 11, -127, 4], 3.0, 1), ([1, -127, -127, 6], 0.0, 3))
    for weights, beta, num_examples in votes:
        difference = dict(difference_of(SPEC, state_of(weights, beta), base))
        if as_float:
            difference["dense1.weight"] = numbers(difference["dense1.weight"]).astype(np.float32) / np.float32(127)
        strategy.fold(accumulator, difference, num_examples)

    result, memory = strategy.finish(accumulator, full, None)

    # votes: +2 -1 +3 = 4; +2 +1 -3 = 0, a tie; +2, from -1; 0 -1 +3 = 2
    expected = np.array([0.5, 10 / 127, -0.5, 5 / 127 + 0.5], np.float32).reshape(2, 2)
    np.testing.assert_allclose(result["dense1.weight"], expected, rtol=2.0**-23)
    np.testing.assert_array_equal(result["norm1.beta"], np.float32(0.5))
    np.testing.assert_array_equal(result["norm1.mean"], np.float32(1.0))
    assert memory is None
