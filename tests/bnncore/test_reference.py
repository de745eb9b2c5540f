"""The oracle itself: checked against libm, finite differences and the definition of each formula."""

import math

import numpy as np
import pytest

from bnncore import _native
from bnncore.reference import (
    exp,
    l1_batch_norm,
    l1_batch_norm_gradient,
    log,
    random_stream,
    random_words,
    round_stochastic,
)


def test_exp_and_log_agree_with_libm() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-50, 50, 2000), [-700.0, -1e-300, 0.0, 1.0, 700.0]])
    positive = np.concatenate([rng.uniform(1e-12, 1e12, 2000), [1.0, np.sqrt(2), 1e-300]])

    # Horner with 14 terms on |r| <= 0.35 rounds about 14 times, each by at most 2^-53.
    assert np.allclose(exp(x), np.exp(x), rtol=4e-15, atol=0)
    assert np.allclose(log(positive), np.log(positive), rtol=4e-15, atol=4e-16)
    assert exp(np.array([-701.0]))[0] == 0.0


def test_native_exp_and_log_have_the_same_bits_as_the_oracle() -> None:
    rng = np.random.default_rng(1)
    for x in rng.uniform(-60, 60, 500):
        assert _native.kernels.exp(x) == exp(np.array([x]))[0]
        assert _native.kernels.log(abs(x) + 1e-9) == log(np.array([abs(x) + 1e-9]))[0]


def test_native_random_words_have_the_same_bits_as_the_oracle() -> None:
    for seed, step, block, purpose in ((0, 0, 0, 1), (2**64 - 1, 10**9, 4, 5), (12345, 7, 300, 3)):
        words = np.empty(100, np.uint32)
        key = _native.kernels.random_words(seed, step, block, purpose, words)
        assert key == random_stream(seed, step, block, purpose)
        assert np.array_equal(words, random_words(key, np.arange(100, dtype=np.int64)))


def test_random_words_look_uniform_and_streams_unrelated() -> None:
    index = np.arange(1 << 16, dtype=np.int64)
    a = random_words(random_stream(1, 0, 0, 3), index)
    b = random_words(random_stream(1, 1, 0, 3), index)
    uniform = (a / 2**32, b / 2**32)

    # 65,536 uniforms: the mean has a standard deviation of 0.0011, a correlation one of 0.0039. Five of each.
    for values in uniform:
        assert abs(values.mean() - 0.5) < 0.0057
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(*uniform)[0, 1]) < 0.02
    assert abs(np.corrcoef(a >> np.uint32(16), a & np.uint32(0xFFFF))[0, 1]) < 0.02  # two roundings share a word
    for bit in range(32):
        ones = ((a >> np.uint32(bit)) & 1).mean()
        assert abs(ones - 0.5) < 0.01


def test_stochastic_rounding_is_unbiased_and_saturates() -> None:
    every = np.arange(65536, dtype=np.uint32)
    for x in (0.25, -0.25, 3.75, -126.5, 0.0, 5.0):
        rounded = round_stochastic(np.full(65536, x, np.float32), every)
        assert rounded.mean() == x  # exact: every fraction of 1/65536 occurs once
        assert set(np.unique(rounded)) <= {math.floor(x), math.ceil(x)}
    ends = round_stochastic(np.array([1e9, -1e9, 127.0, -127.0], np.float32), np.full(4, 65535, np.uint32))
    assert ends.tolist() == [127, -127, 127, -127]
    for x, r in ((0.3, 40000), (-77.7, 123), (1e30, 5)):
        assert _native.kernels.round_stochastic(x, r) == round_stochastic(np.array([x], np.float32), np.array([r]))[0]


def test_l1_batch_norm_normalises_to_unit_mean_deviation() -> None:
    y = np.random.default_rng(2).normal(3, 5, (40, 6))

    x, _, _ = l1_batch_norm(y, np.full(6, 0.25))

    assert np.allclose((x - 0.25).mean(axis=0), 0, atol=1e-14)
    assert np.allclose(np.abs(x - 0.25).mean(axis=0), 1)


@pytest.mark.parametrize("seed", range(5))
def test_l1_gradient_agrees_with_finite_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, beta, weights = rng.normal(0, 3, (9, 4)), rng.normal(0, 1, 4), rng.normal(0, 1, (9, 4))
    mu = y.mean(axis=0)
    assert np.abs(y - mu).min() > 1e-3  # away from the kinks of |y - mu|, where no derivative exists

    def loss(value: np.ndarray) -> float:
        x, _, _ = l1_batch_norm(value, beta)
        return float((weights * np.tanh(x)).sum())

    x, _, _ = l1_batch_norm(y, beta)
    gradient = l1_batch_norm_gradient(y, weights * (1 - np.tanh(x) ** 2))
    h = 1e-6
    for b in range(9):
        for n in range(4):
            up, down = y.copy(), y.copy()
            up[b, n] += h
            down[b, n] -= h
            # Central differences err by h^2 times a third derivative of order one, plus rounding 1e-15 / h.
            assert gradient[b, n] == pytest.approx((loss(up) - loss(down)) / (2 * h), abs=5e-8, rel=1e-6)


def test_a_channel_of_equal_values_passes_no_gradient() -> None:
    y = np.full((5, 1), 7.0)

    x, _, psi = l1_batch_norm(y, np.array([0.5]))

    assert psi[0] == 0
    assert np.all(x == 0.5)
    assert np.all(l1_batch_norm_gradient(y, np.ones((5, 1))) == 0)


def test_the_backward_pass_is_the_gradient_of_the_float_network() -> None:
    """With clip(x, -1, 1) in the sign's place the straight-through rule is no longer an estimate but the derivative."""
    rng = np.random.default_rng(8)
    inputs, labels = rng.normal(0, 1, (12, 5)), rng.integers(0, 3, 12)
    rows = np.arange(12)
    parameters = {
        "w1": rng.normal(0, 1, (6, 5)),
        "b1": rng.normal(0, 0.5, 6),
        "w2": rng.normal(0, 1, (3, 6)),
        "b2": rng.normal(0, 0.5, 3),
    }

    def forward(p: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        y1 = inputs @ p["w1"].T
        x1, _, _ = l1_batch_norm(y1, p["b1"])
        hidden = np.clip(x1, -1, 1)
        y2 = hidden @ p["w2"].T
        logits, _, _ = l1_batch_norm(y2, p["b2"])
        return y1, x1, hidden, y2, logits

    def loss(p: dict[str, np.ndarray]) -> float:
        logits = forward(p)[-1]
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[rows, labels]).mean())

    y1, x1, hidden, y2, logits = forward(parameters)
    grad = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    grad[rows, labels] -= 1
    grad /= 12
    grad_y2 = l1_batch_norm_gradient(y2, grad)
    masked = (grad_y2 @ parameters["w2"]) * (np.abs(x1) <= 1)
    grad_y1 = l1_batch_norm_gradient(y1, masked)
    found = {"w1": grad_y1.T @ inputs, "b1": masked.sum(axis=0), "w2": grad_y2.T @ hidden, "b2": grad.sum(axis=0)}

    h = 1e-6
    for name, value in parameters.items():
        for place in np.ndindex(value.shape):
            shifted = {key: array.copy() for key, array in parameters.items()}
            shifted[name][place] += h
            up = loss(shifted)
            shifted[name][place] -= 2 * h
            assert found[name][place] == pytest.approx((up - loss(shifted)) / (2 * h), abs=1e-8, rel=1e-5), name
