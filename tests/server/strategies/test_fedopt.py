"""FedAdam and FedYogi against the formulas of their paper, written out for two rounds."""

from __future__ import annotations

import numpy as np
import pytest

from bnncore.state import State
from bnncore.zoo import mlp
from server.strategies import difference_of
from server.strategies.fedopt import FedAdam, FedYogi
from tests.bnncore.random_differences import numbers

SPEC = mlp((2,), (), 2)
RATE, BETA1, BETA2, TAU = 0.05, 0.8, 0.9, 0.01
STARTS = [-0.5, 0.0, 0.25, 0.999]
ROUNDS = [[0.25, -0.125, 0.0, 0.001], [-0.5, 0.25, 0.125, 0.001]]  # exact in binary, or as good as


def state_of(weights: list[float], beta: float, mean: float) -> State:
    return {
        "dense1.weight": np.array(weights, np.float32).reshape(2, 2),
        "norm1.beta": np.full(2, beta, np.float32),
        "norm1.mean": np.full(2, mean, np.float32),
        "norm1.mean_abs_dev": np.full(2, 1.0, np.float32),
    }


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_two_rounds_follow_the_formulas(kind: type[FedAdam]) -> None:
    strategy = kind(learning_rate=RATE, beta1=BETA1, beta2=BETA2, tau=TAU)
    base, memory = state_of(STARTS, beta=0.0, mean=0.0), None

    m, v, w = np.zeros(4), np.full(4, TAU**2), np.array(STARTS)
    for change in ROUNDS:
        trained = state_of([float(a + b) for a, b in zip(base["dense1.weight"].ravel(), change, strict=True)], 0.5, 3.0)
        accumulator = strategy.init(SPEC)
        difference = difference_of(SPEC, trained, base)
        strategy.fold(accumulator, difference, 7)
        d = numbers(difference["dense1.weight"]).ravel().astype(np.float64)
        base, memory = strategy.finish(accumulator, base, memory)
        m = BETA1 * m + (1 - BETA1) * d
        v = BETA2 * v + (1 - BETA2) * d**2 if kind is FedAdam else v - (1 - BETA2) * d**2 * np.sign(v - d**2)
        w = np.clip(w + RATE * m / (np.sqrt(v) + TAU), -1, 1)

    # each round rounds w, m and v to float32 once: 2 * 2^-24 relative to numbers of size up to 1, through a ratio
    np.testing.assert_allclose(base["dense1.weight"].ravel(), w, rtol=0, atol=2.0**-20)
    np.testing.assert_array_equal(base["norm1.mean"], np.float32(3.0))
    assert memory is not None
    assert {array.dtype for array in memory.values()} == {np.dtype(np.float32)}
    assert sorted(memory) == ["m/dense1.weight", "m/norm1.beta", "v/dense1.weight", "v/norm1.beta"]


def test_the_two_differ_where_a_difference_shrinks() -> None:
    steps = []
    for kind in (FedAdam, FedYogi):
        strategy, base, memory = kind(beta2=0.5), state_of([0.0] * 4, 0.0, 0.0), None
        for change in (0.5, 0.01):
            accumulator = strategy.init(SPEC)
            strategy.fold(accumulator, state_of([change] * 4, 0.0, 0.0), 1)
            base, memory = strategy.finish(accumulator, base, memory)
        assert memory is not None
        steps.append(float(memory["v/dense1.weight"][0, 0]))

    # from v = about 0.125: Adam halves it, Yogi takes 0.5 * 0.01^2 off
    assert steps[0] == pytest.approx(0.0625, rel=0.01)
    assert steps[1] == pytest.approx(0.125, rel=0.01)
