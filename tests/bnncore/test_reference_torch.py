"""The oracle's convolution, pool and l1 batch norm against PyTorch and its automatic gradients, where it is there."""

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
    route_to_arg_max,
    weight_gradient,
)

torch: Any = pytest.importorskip("torch")


def channels_first(x: NDArray[Any]) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()


def channels_last(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().numpy()).transpose(0, 2, 3, 1)


def assert_close(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    # Sums of at most 1,000 products of order one in float64: 1e-12 is a thousand times their rounding.
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((9, 7, 3), (3, 3), 1, (1, 1)),
        ((9, 7, 3), (3, 3), 1, (0, 0)),
        ((9, 8, 3), (3, 5), 2, (1, 2)),
        ((10, 7, 2), (2, 4), 3, (0, 0)),
        ((1, 20, 6), (1, 9), 1, (0, 4)),
    ],
)
def test_convolution_and_its_gradients(
    shape: tuple[int, int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, *shape)), rng.normal(size=(5, *kernel, shape[2]))
    tensor_x, tensor_w = channels_first(x), channels_first(w)

    tensor_y = torch.nn.functional.conv2d(tensor_x, tensor_w, stride=stride, padding=padding)
    g = rng.normal(size=channels_last(tensor_y).shape)
    tensor_y.backward(channels_first(g))

    assert_close(convolve(x, w, stride, padding), channels_last(tensor_y))
    assert_close(input_gradient(g, w, shape[:2], stride, padding), channels_last(tensor_x.grad))
    assert_close(weight_gradient(x, g, kernel, stride, padding), channels_last(tensor_w.grad))


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 4), (9, 7)])
def test_max_pool_and_its_gradient(window: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(3, 9, 7, 4))
    tensor_y = channels_first(y)

    tensor_pooled = torch.nn.functional.max_pool2d(tensor_y, window)
    g = rng.normal(size=channels_last(tensor_pooled).shape)
    tensor_pooled.backward(channels_first(g))

    pooled, choice = max_pool(y, window)
    assert_close(pooled, channels_last(tensor_pooled))
    assert_close(route_to_arg_max(g, choice, (9, 7), window), channels_last(tensor_y.grad))


def test_l1_batch_norm_and_its_gradient() -> None:
    rng = np.random.default_rng(2)
    y, beta, g = rng.normal(3, 5, (60, 4)), rng.normal(size=4), rng.normal(size=(60, 4))
    tensor_y = torch.from_numpy(y.copy()).requires_grad_()

    centred = tensor_y - tensor_y.mean(dim=0)
    tensor_x = centred / centred.abs().mean(dim=0) + torch.from_numpy(beta)
    tensor_x.backward(torch.from_numpy(g))

    assert_close(l1_batch_norm(y, beta)[0], tensor_x.detach().numpy())
    assert_close(l1_batch_norm_gradient(y, g), tensor_y.grad.numpy())
