"""Convolution and pooling of maps [B, height, width, channels], with their gradients, for integers or reals.

Letters: B = batch size, H x W = input map, C = its channels, P x Q = output map, N = its channels, kernel_height x
kernel_width = kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["convolve", "input_gradient", "max_pool", "patches", "route_to_arg_max", "weight_gradient"]

Array = NDArray[Any]
"""int64 or float64; a result has the type of its arguments."""


def _product(a: Array, b: Array) -> Array:
    """Give a @ b. Integers go by way of float64: exact below 2^53, and NumPy's integer product is slow."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.result_type(a, b))


def patches(x: Array, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> Array:
    """Give what each output of a convolution reads.

    Args:
      x: [B, H, W, C].
      kernel: height and width.
      stride: of both axes.
      padding: zeros added above and below, and left and right.

    Returns:
      [B, P, Q, kernel_height, kernel_width, C] with P = (H + 2 padding - kernel_height) // stride + 1, Q likewise.
    """
    down, across = padding
    padded = np.pad(x, ((0, 0), (down, down), (across, across), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def convolve(x: Array, weights: Array, stride: int, padding: tuple[int, int]) -> Array:
    """Give y [B, P, Q, N]: the sum over a patch of x [B, H, W, C] times weights [N, kernel_height, kernel_width, C]."""
    channels, *kernel, _ = weights.shape
    windows = patches(x, (kernel[0], kernel[1]), stride, padding)
    batch, rows, columns = windows.shape[:3]
    y = _product(windows.reshape(batch * rows * columns, -1), weights.reshape(channels, -1).T)
    return y.reshape(batch, rows, columns, channels)


def weight_gradient(x: Array, grad_y: Array, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> Array:
    """Give dL/dweights [N, kernel_height, kernel_width, C] from x [B, H, W, C] and grad_y [B, P, Q, N]."""
    windows = patches(x, kernel, stride, padding)
    channels, outputs = grad_y.shape[3], int(np.prod(grad_y.shape[:3]))
    gradient = _product(grad_y.reshape(outputs, channels).T, windows.reshape(outputs, -1))
    return gradient.reshape(channels, *windows.shape[3:])


def input_gradient(
    grad_y: Array, weights: Array, shape: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Array:
    """Give dL/dx [B, H, W, C], ``shape`` = (H, W), from grad_y [B, P, Q, N] and the weights of ``convolve``.

    Under each tap of the kernel the outputs read every stride-th pixel of the padded map: there the gradient is added.
    """
    batch, rows, columns, _ = grad_y.shape
    _, kernel_height, kernel_width, channels = weights.shape
    (height, width), (down, across) = shape, padding
    padded = np.zeros((batch, height + 2 * down, width + 2 * across, channels), dtype=np.result_type(grad_y, weights))
    for ky, kx in np.ndindex(kernel_height, kernel_width):
        pixels = padded[:, ky : ky + stride * rows : stride, kx : kx + stride * columns : stride]
        pixels += _product(grad_y, weights[:, ky, kx])
    return padded[:, down : down + height, across : across + width]


def _windows(y: Array, window: tuple[int, int]) -> Array:
    """Cut y [B, P, Q, N] into [B, P', Q', window elements row by row, N]; what does not fill a window is dropped."""
    (height, width), (batch, _, _, channels) = window, y.shape
    rows, columns = y.shape[1] // height, y.shape[2] // width
    cut = y[:, : rows * height, : columns * width].reshape(batch, rows, height, columns, width, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, height * width, channels)


def max_pool(y: Array, window: tuple[int, int]) -> tuple[Array, NDArray[np.int64]]:
    """Give the largest of each window of y [B, P, Q, N] and which it is, both [B, P // height, Q // width, N].

    Elements of a window count row by row; of equal ones the first is the arg-max. The stride is the window, rows and
    columns that do not fill one are dropped.
    """
    elements = _windows(y, window)
    choice = elements.argmax(axis=3)  # NumPy's is the first of equal ones
    return np.take_along_axis(elements, choice[:, :, :, None], axis=3)[:, :, :, 0], choice


def route_to_arg_max(grad: Array, choice: NDArray[np.int64], shape: tuple[int, int], window: tuple[int, int]) -> Array:
    """Give dL/dy [B, P, Q, N], ``shape`` = (P, Q), from dL/d(pooled) and ``max_pool``'s choice: 0 but at arg-maxima."""
    (height, width), (batch, rows, columns, channels) = window, grad.shape
    elements = np.zeros((batch, rows, columns, height * width, channels), dtype=grad.dtype)
    np.put_along_axis(elements, choice[:, :, :, None], grad[:, :, :, None], axis=3)
    cut = elements.reshape(batch, rows, columns, height, width, channels).transpose(0, 1, 3, 2, 4, 5)
    routed = np.zeros((batch, *shape, channels), dtype=grad.dtype)
    routed[:, : rows * height, : columns * width] = cut.reshape(batch, rows * height, columns * width, channels)
    return routed
