"""Products with binary weights, and their gradients: a convolution or a linear layer, on maps whose channels lie last.

Products of signs are integers below 2**24, so float32 holds them exactly, in whatever order they are added. On a
processor the engine's kernels convolve signs in bits, to the same numbers in a fraction of the time; linear layers use
8-bit integers where those are fast. Letters: B = samples, H, W = rows and columns of the map, C = its channels,
N = channels of the products, K = fan-in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from bnncore.nn.bits import unpack
from bnncore.nn.maps import channels_last, channels_second
from bnncore.nn.precision import compute_dtype
from bnncore.sign_maps import LARGEST_FAN_IN, SignWeights, multiply_sign_maps

__all__ = [
    "Geometry",
    "Signs",
    "binarize",
    "chunk_bytes",
    "input_gradient",
    "products",
    "sign_products",
    "weight_gradient",
]


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves, as ``torch.nn.functional.conv2d`` takes it."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether it is what the engine's kernels convolve: one group, no dilation, one stride both ways."""
        return self.groups == 1 and self.dilation == (1, 1) and self.stride[0] == self.stride[1]

    def out_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the products of a map of this size."""
        height, width = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return height, width


def binarize(weight: Any, dtype: Any) -> Any:
    """Give the sign of latent weights, +1 and -1 of ``dtype``; sign(0) = +1."""
    return (weight < 0).to(dtype).mul_(-2).add_(1)


class Signs:
    """The signs of latent weights in the forms that products want, made when they are asked for.

    Args:
      weight: latent, [N, C / groups, kernel height, kernel width] or [N, K].
    """

    def __init__(self, weight: Any) -> None:
        self.weight = weight
        self._rows: Any = None
        self._words: SignWeights | None = None
        self._kernels: Any = None

    def int8_rows(self) -> Any:
        """Signs of a linear layer as int8 [N, K]."""
        if self._rows is None:
            self._rows = binarize(self.weight, torch.int8)
        return self._rows

    def words(self) -> SignWeights:
        """Signs of a convolution in bits, on a processor."""
        if self._words is None:
            signs = channels_last(binarize(self.weight.detach(), torch.int8)).contiguous()
            self._words = SignWeights.of(signs.numpy())
        return self._words

    def kernels(self, dtype: Any) -> Any:
        """Signs of a convolution as floats, in its shape; many are made anew each time, so as not to lie about."""
        if self._kernels is not None and self._kernels.dtype == dtype:
            return self._kernels
        kernels = binarize(self.weight, dtype).contiguous(memory_format=torch.channels_last)
        if kernels.nbytes <= 8 * chunk_bytes(self.weight.device.type):
            self._kernels = kernels
        return kernels

    def slabs(self, dtype: Any) -> Iterator[tuple[slice, Any]]:
        """Signs of a linear layer as floats, some rows at a time, so that they need little memory."""
        rows = max(1, chunk_bytes(self.weight.device.type) // (4 * self.weight.shape[1]))
        for first in range(0, len(self.weight), rows):
            part = slice(first, first + rows)
            yield part, binarize(self.weight[part], dtype)


def products(x: Any, signs: Signs, geometry: Geometry | None) -> Any:
    """Multiply floats with the signs of weights.

    Args:
      x: [B, H, W, C], or [B, K] for a linear layer.
      signs: of the weights.
      geometry: None for a linear layer.

    Returns:
      [B, rows, columns, N] or [B, N], of x's type.
    """
    if geometry is None:
        out = x.new_empty((len(x), len(signs.weight)))
        for rows, part in signs.slabs(x.dtype):
            out[:, rows] = x @ part.t()
        return out
    return channels_last(
        functional.conv2d(channels_second(x), signs.kernels(x.dtype), None, *_arguments(geometry))
    ).contiguous()


def sign_products(bits: Any, shape: tuple[int, ...], signs: Signs, geometry: Geometry | None) -> Any:
    """Multiply signs with the signs of weights.

    Args:
      bits: of each sample, as ``bnncore.nn.bits`` packs them: uint8 [B, bytes].
      shape: of a sample, (H, W, C), or (K,) for a linear layer.
      signs: of the weights.
      geometry: None for a linear layer.

    Returns:
      [B, rows, columns, N] or [B, N]: int16, int32 or floating, integers in any case.
    """
    device, fan_in = bits.device.type, signs.weight[0].numel()
    if geometry is not None and device == "cpu" and fan_in <= LARGEST_FAN_IN and geometry.is_plain:
        return torch.from_numpy(
            multiply_sign_maps(
                bits.contiguous().numpy(),
                (shape[0], shape[1]),
                signs.words(),
                stride=geometry.stride[0],
                padding=geometry.padding,
                threads=torch.get_num_threads(),
            )
        )
    x = unpack(bits, math.prod(shape), torch.int8).unflatten(1, shape)
    # With a fan-in of 1, torch._int_mm of PyTorch 2.13 gives wrong numbers.
    if geometry is None and fan_in > 1 and _multiplies_int8(device):
        return torch._int_mm(x, signs.int8_rows().t())
    y = products(x.to(compute_dtype(signs.weight)), signs, geometry)
    # On other devices a convolution may be computed by transforms, which round; its result is known to be whole.
    return y if device == "cpu" else y.round_()


def input_gradient(grad: Any, signs: Signs, shape: tuple[int, ...], geometry: Geometry | None) -> Any:
    """Give the gradient of x [B, ...shape] from that of the products, for floating ``grad``."""
    if geometry is None:
        out = grad.new_zeros((len(grad), *shape))
        for rows, part in signs.slabs(grad.dtype):
            out.addmm_(grad[:, rows], part)
        return out
    size = (len(grad), shape[2], *shape[:2])
    return channels_last(
        conv2d_input(size, signs.kernels(grad.dtype), channels_second(grad), *_arguments(geometry))
    ).contiguous()


def weight_gradient(x: Any, grad: Any, weight: Any, geometry: Geometry | None) -> Any:
    """Give the gradient of the binary weights, in the shape of ``weight``, from x and that of the products."""
    if geometry is None:
        return grad.t() @ x
    return conv2d_weight(channels_second(x), weight.shape, channels_second(grad), *_arguments(geometry))


def chunk_bytes(device: str) -> int:
    """Bytes that the temporaries of one chunk of a batch should keep to: a processor's cache, or enough for a GPU."""
    return 2 << 20 if device == "cpu" else 256 << 20


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    return geometry.stride, geometry.padding, geometry.dilation, geometry.groups


@lru_cache(maxsize=8)
def _multiplies_int8(device: str) -> bool:
    """Whether 8-bit integer products are faster than float32 ones: elsewhere PyTorch has a plain loop for them."""
    return device == "cpu" and bool(torch.cpu._is_vnni_supported())
