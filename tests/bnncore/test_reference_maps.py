"""The oracle's convolutions and pools: against loops written out, and against differences of their own outputs."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.reference import (
    convolve,
    input_gradient,
    l1_batch_norm,
    l1_batch_norm_gradient,
    max_pool,
    patches,
    route_to_arg_max,
    weight_gradient,
)

# Map (height, width, channels), kernel, stride, padding.
CONVOLUTIONS: list[tuple[tuple[int, int, int], tuple[int, int], int, tuple[int, int]]] = [
    ((5, 6, 2), (3, 3), 1, (0, 0)),
    ((5, 6, 2), (3, 3), 1, (1, 1)),
    ((5, 6, 1), (3, 5), 1, (1, 2)),
    ((6, 7, 2), (3, 3), 2, (1, 1)),
    ((7, 6, 3), (2, 3), 2, (0, 0)),
    ((7, 8, 1), (1, 2), 3, (0, 0)),
    ((1, 9, 2), (1, 5), 1, (0, 2)),
    ((8, 1, 2), (3, 1), 2, (1, 0)),
    ((2, 3, 2), (5, 7), 1, (2, 3)),
    ((3, 4, 2), (3, 4), 1, (0, 0)),
    ((1, 1, 6), (1, 1), 1, (0, 0)),
]


def naive_convolution(x: NDArray[Any], w: NDArray[Any], stride: int, padding: tuple[int, int]) -> NDArray[Any]:
    """Six loops, and one over the batch; a tap outside the map adds nothing."""
    batch, height, width, _ = x.shape
    channels, kernel_height, kernel_width, inputs = w.shape
    rows = (height + 2 * padding[0] - kernel_height) // stride + 1
    columns = (width + 2 * padding[1] - kernel_width) // stride + 1
    y = np.zeros((batch, rows, columns, channels), x.dtype)
    for b, p, q, n in np.ndindex(*y.shape):
        for ky, kx, c in np.ndindex(kernel_height, kernel_width, inputs):
            row, column = p * stride + ky - padding[0], q * stride + kx - padding[1]
            if 0 <= row < height and 0 <= column < width:
                y[b, p, q, n] += x[b, row, column, c] * w[n, ky, kx, c]
    return y


def integers(seed: int, *shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-255, 256, shape)


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_a_convolution_is_its_six_loops(
    shape: tuple[int, int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> None:
    x, w = integers(1, 2, *shape), integers(2, 3, *kernel, shape[2])

    y = convolve(x, w, stride, padding)

    assert y.dtype == np.int64
    assert np.array_equal(y, naive_convolution(x, w, stride, padding))


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_gradients_of_a_convolution_are_its_differences(
    shape: tuple[int, int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> None:
    x, w = integers(1, 2, *shape), integers(2, 3, *kernel, shape[2])
    y = convolve(x, w, stride, padding)
    g = integers(3, *y.shape)

    grad_x = input_gradient(g, w, shape[:2], stride, padding)
    grad_w = weight_gradient(x, g, kernel, stride, padding)

    # It is linear in either argument, so the difference to a neighbour is the derivative, and integers make it exact.
    assert (grad_x.shape, grad_w.shape) == (x.shape, w.shape)
    for values, gradient in ((x, grad_x), (w, grad_w)):
        for place in np.ndindex(values.shape):
            values[place] += 1
            assert gradient[place] == (g * (convolve(x, w, stride, padding) - y)).sum(), place
            values[place] -= 1


def test_patches_are_what_an_output_reads() -> None:
    x = np.arange(1, 13).reshape(1, 3, 4, 1)

    found = patches(x, (3, 3), 2, (1, 1))

    assert found.shape == (1, 2, 2, 3, 3, 1)
    assert found[0, 0, 0, :, :, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 5, 6]]
    assert found[0, 1, 1, :, :, 0].tolist() == [[6, 7, 8], [10, 11, 12], [0, 0, 0]]


def test_a_dense_layer_is_the_convolution_over_its_whole_map() -> None:
    x, w = integers(1, 4, 3, 5, 2), integers(2, 7, 3, 5, 2)

    y = convolve(x, w, 1, (0, 0))

    assert np.array_equal(y.reshape(4, 7), x.reshape(4, 30) @ w.reshape(7, 30).T)


POOLS = [((4, 6), (2, 2)), ((5, 7), (2, 3)), ((1, 9), (1, 2)), ((7, 1), (3, 1)), ((3, 4), (3, 4)), ((3, 3), (1, 1))]


@pytest.mark.parametrize(("shape", "window"), POOLS)
@pytest.mark.parametrize("bound", [1, 1000])  # bound 1: equal values in almost every window
def test_a_pool_takes_the_first_of_the_largest(shape: tuple[int, int], window: tuple[int, int], bound: int) -> None:
    y = np.random.default_rng(5).integers(-bound, bound + 1, (3, *shape, 4))

    pooled, choice = max_pool(y, window)

    assert pooled.shape == choice.shape == (3, shape[0] // window[0], shape[1] // window[1], 4)
    for b, p, q, n in np.ndindex(*pooled.shape):
        best, first = None, None
        for i, (dy, dx) in enumerate(itertools.product(range(window[0]), range(window[1]))):
            value = y[b, p * window[0] + dy, q * window[1] + dx, n]
            if best is None or value > best:
                best, first = value, i
        assert pooled[b, p, q, n] == best
        assert choice[b, p, q, n] == first


@pytest.mark.parametrize(("shape", "window"), POOLS)
def test_the_gradient_of_a_pool_is_its_difference(shape: tuple[int, int], window: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    y = 2 * rng.permutation(2 * shape[0] * shape[1] * 3).reshape(2, *shape, 3)  # no two equal, nor one apart
    pooled, choice = max_pool(y, window)
    g = rng.integers(-9, 10, pooled.shape)

    gradient = route_to_arg_max(g, choice, shape, window)

    assert gradient.shape == y.shape
    for place in np.ndindex(y.shape):
        y[place] += 1
        assert gradient[place] == (g * (max_pool(y, window)[0] - pooled)).sum(), place
        y[place] -= 1


def test_a_window_of_equal_values_sends_its_gradient_to_the_first() -> None:
    y = np.zeros((1, 5, 5, 1), np.int64)
    y[0, 3, 2:4, 0] = 1  # the window of rows 2 and 3, columns 2 and 3: [0, 0], [1, 1]

    _, choice = max_pool(y, (2, 2))
    gradient = route_to_arg_max(np.array([[[[1], [2]], [[3], [4]]]]), choice, (5, 5), (2, 2))

    expected = np.zeros((5, 5), np.int64)
    expected[0, 0], expected[0, 2], expected[2, 0], expected[3, 2] = 1, 2, 3, 4  # nothing in the fifth row or column
    assert np.array_equal(gradient[0, :, :, 0], expected)


def test_the_backward_pass_is_the_gradient_of_a_float_network_with_pools() -> None:
    """With clip(x, -1, 1) in the sign's place the straight-through rule is no longer an estimate but the derivative."""
    rng = np.random.default_rng(3)
    inputs, labels, rows = rng.normal(0, 1, (4, 6, 8, 2)), np.array([0, 1, 2, 1]), np.arange(4)
    parameters = {
        "w1": rng.normal(0, 1, (3, 3, 3, 2)),  # padded, strided over columns and rows, pooled before the norm
        "b1": rng.normal(0, 0.5, 3),
        "w2": rng.normal(0, 1, (4, 1, 2, 3)),  # not padded, pooled after the clip
        "b2": rng.normal(0, 0.5, 4),
        "w3": rng.normal(0, 1, (3, 1, 1, 4)),
    }

    def normalise(y: NDArray[Any], beta: NDArray[Any]) -> NDArray[Any]:
        return l1_batch_norm(y.reshape(-1, y.shape[3]), beta)[0].reshape(y.shape)

    def forward(p: dict[str, NDArray[Any]]) -> dict[str, Any]:
        f: dict[str, Any] = {"c1": convolve(inputs, p["w1"], 1, (1, 1))}
        f["y1"], f["choice1"] = max_pool(f["c1"], (2, 2))
        f["x1"] = normalise(f["y1"], p["b1"])
        f["h1"] = np.clip(f["x1"], -1, 1)
        f["y2"] = convolve(f["h1"], p["w2"], 1, (0, 0))
        f["x2"] = normalise(f["y2"], p["b2"])
        f["h2"], f["choice2"] = max_pool(np.clip(f["x2"], -1, 1), (3, 3))
        f["y3"] = convolve(f["h2"], p["w3"], 1, (0, 0))
        f["logits"] = normalise(f["y3"], np.zeros(3)).reshape(4, 3)
        return f

    def loss(p: dict[str, NDArray[Any]]) -> float:
        logits = forward(p)["logits"]
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[rows, labels]).mean())

    def back_through_norm(y: NDArray[Any], grad: NDArray[Any]) -> NDArray[Any]:
        channels = y.shape[3]
        return l1_batch_norm_gradient(y.reshape(-1, channels), grad.reshape(-1, channels)).reshape(y.shape)

    f = forward(parameters)
    grad = np.exp(f["logits"]) / np.exp(f["logits"]).sum(axis=1, keepdims=True)
    grad[rows, labels] -= 1
    grad_y3 = back_through_norm(f["y3"], grad / 4)
    grad_h2 = input_gradient(grad_y3, parameters["w3"], (1, 1), 1, (0, 0))
    masked2 = route_to_arg_max(grad_h2, f["choice2"], (3, 3), (3, 3)) * (np.abs(f["x2"]) <= 1)
    grad_y2 = back_through_norm(f["y2"], masked2)
    masked1 = input_gradient(grad_y2, parameters["w2"], (3, 4), 1, (0, 0)) * (np.abs(f["x1"]) <= 1)
    grad_c1 = route_to_arg_max(back_through_norm(f["y1"], masked1), f["choice1"], (6, 8), (2, 2))
    found = {
        "w1": weight_gradient(inputs, grad_c1, (3, 3), 1, (1, 1)),
        "b1": masked1.sum(axis=(0, 1, 2)),
        "w2": weight_gradient(f["h1"], grad_y2, (1, 2), 1, (0, 0)),
        "b2": masked2.sum(axis=(0, 1, 2)),
        "w3": weight_gradient(f["h2"], grad_y3, (1, 1), 1, (0, 0)),
    }

    h = 1e-6
    for name, value in parameters.items():
        for place in np.ndindex(value.shape):
            shifted = {key: array.copy() for key, array in parameters.items()}
            shifted[name][place] += h
            up = loss(shifted)
            shifted[name][place] -= 2 * h
            assert found[name][place] == pytest.approx((up - loss(shifted)) / (2 * h), abs=1e-8, rel=1e-5), name
    assert all(np.abs(gradient).max() > 1e-3 for gradient in found.values())
