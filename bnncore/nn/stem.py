"""A stem as one function: real convolution, l1 batch norm, perhaps ReLU, perhaps a max pool, perhaps a second norm.

It makes the stream of a residual network. Between forward and backward it keeps what it reads and two numbers a channel
of each norm. The products are made again, in 16 bits where samples are 8-bit numbers, and with them the arg-max of the
pool, what the ReLU cut, and the exact gradients of the norms.

Letters: B = samples, P, Q = rows and columns of the products, N = their channels; P', Q' = those of the pooled map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from bnncore.nn.channels import Channels, GradientSums, thresholds_of
from bnncore.nn.maps import channels_last, channels_second
from bnncore.nn.precision import autocast_off, compute_dtype
from bnncore.nn.products import Geometry, chunk_bytes
from bnncore.nn.stream import LARGEST, add_to_stream, fix, sample_units

__all__ = ["Pool", "Stem", "run_stem"]

_LARGEST_SAMPLE, _BITS = 255, 14


@dataclass(frozen=True)
class Pool:
    """A max pool, whose windows may overlap, as ``torch.nn.functional.max_pool2d`` takes it."""

    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Stem:
    """What a stem does, but for its parameters; ``limit`` is the largest magnitude of what it gives, in units."""

    geometry: Geometry
    has_relu: bool
    pool: Pool | None
    limit: int


def run_stem(stem: Stem, x: Any, weight: Any, norm: Any, second_norm: Any) -> Any:
    """Run a stem.

    Args:
      stem: what to do.
      x: [B, C, H, W].
      weight: [N, C / groups, kernel height, kernel width].
      norm: its batch norm module.
      second_norm: the one after the pool, or None.
    """
    second_beta = None if second_norm is None else second_norm.bias
    return _Stem.apply(x, weight, norm.bias, second_beta, stem, norm, second_norm)


class _Products:
    """Products of a real convolution: whole in 16 bits where samples are whole, and floats elsewhere."""

    def __init__(self, x: Any, weight: Any, stem: Stem) -> None:
        self.x, self.stem, self.dtype = x, stem, compute_dtype(x)
        units = sample_units(x)
        self.units = units or 1.0
        self.fixed = None
        if units is not None:
            most = _LARGEST_SAMPLE * weight[0].numel()
            self.fixed = fix(weight, largest_input=_LARGEST_SAMPLE, most=most, bits=_BITS)
        self.weight = weight.to(self.dtype) if self.fixed is None else self.fixed.integers
        size = stem.geometry.out_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3]))
        self.shape = (len(x), *size, len(weight))
        kept = self.dtype if self.fixed is None else torch.int16
        self.y = torch.empty(self.shape, dtype=kept, device=x.device)
        self.scale = 1.0
        """What one of ``y`` is worth."""
        if self.fixed is not None:
            self.scale = 2.0 ** (self.fixed.shift - self.fixed.exponent) / self.units
        for rows in self.chunks():
            self.y[rows] = self._multiply(rows)

    def chunks(self) -> Iterator[slice]:
        """Cut the batch so that a chunk's products stay small."""
        per_sample = 4 * self.shape[1] * self.shape[2] * self.shape[3]
        step = max(1, chunk_bytes(self.x.device.type) // per_sample)
        for first in range(0, len(self.x), step):
            yield slice(first, min(first + step, len(self.x)))

    def real(self, rows: slice) -> Any:
        """Products of some samples, [b, P, Q, N]."""
        y = self.y[rows].to(self.dtype)
        return y if self.fixed is None else y.mul_(self.scale)

    def _multiply(self, rows: slice) -> Any:
        g, x = self.stem.geometry, self.x[rows].to(self.weight.dtype)
        if self.fixed is not None:
            x.mul_(self.units)
        y = channels_last(functional.conv2d(x, self.weight, None, g.stride, g.padding, g.dilation, g.groups))
        return y if self.fixed is None else y.mul(2.0**-self.fixed.shift).floor_()


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, beta: Any, second_beta: Any, stem: Stem, norm: Any, second_norm: Any
    ) -> Any:
        with autocast_off(x):
            products = _Products(x, weight, stem)
            channels = norm.take_channels(products.y, scale=products.scale)
            inner = _all_inner(products, channels, beta, LARGEST if second_norm is not None else stem.limit)
            ctx.stem, ctx.uses_batch = stem, norm.uses_batch
            if second_norm is None:
                ctx.save_for_backward(x, weight, beta, channels.mean, channels.mean_abs_dev, None, None)
                return channels_second(inner)
            second = second_norm.take_channels(inner)
            ctx.save_for_backward(
                x, weight, beta, channels.mean, channels.mean_abs_dev, second.mean, second.mean_abs_dev
            )
            return channels_second(add_to_stream(inner, second, second_beta, stem.limit))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Any) -> Any:
        x, weight, beta, mean, mean_abs_dev, second_mean, second_mean_abs_dev = ctx.saved_tensors
        with autocast_off(x):
            channels, of_batch = Channels(mean, mean_abs_dev), ctx.uses_batch
            products = _Products(x, weight, ctx.stem)
            grad = channels_last(grad_out.to(products.dtype)).clone(memory_format=torch.contiguous_format)
            grad_second = None
            has_second = second_mean is not None
            if has_second or ctx.stem.has_relu:
                inner = _all_inner(products, channels, beta, LARGEST if has_second else ctx.stem.limit)
                if has_second:
                    second = Channels(second_mean, second_mean_abs_dev)
                    grad_second = _norm_backward(inner, grad, second, products.chunks, of_batch=of_batch)
                if ctx.stem.has_relu:
                    grad.mul_(inner > 0)
                del inner
            grad_x, grad_weight, grad_beta = _convolution_backward(
                products, weight, channels, grad, of_batch=of_batch, needs_input=ctx.needs_input_grad[0]
            )
        return grad_x, grad_weight.to(weight.dtype), grad_beta.to(beta.dtype), grad_second, None, None, None


def _all_inner(products: _Products, channels: Channels, beta: Any, limit: int) -> Any:
    """Give what stands before the second norm, [B, P', Q', N]. The pool comes first: norm and ReLU are increasing."""
    inner = None
    for rows in products.chunks():
        y, _ = _pooled(products.real(rows), products.stem.pool)
        part = add_to_stream(y, channels, beta, limit, is_positive=products.stem.has_relu)
        if inner is None:
            inner = part.new_empty((len(products.x), *part.shape[1:]))
        inner[rows] = part
    return inner


def _pooled(y: Any, pool: Pool | None) -> tuple[Any, Any]:
    """Give the largest of each window and where it stands in the map; of equal ones, the first."""
    if pool is None:
        return y, None
    # Channel by channel: where channels lie last, PyTorch does not say which of equal numbers it takes.
    planes = channels_second(y).contiguous()
    largest, choice = functional.max_pool2d(planes, pool.window, pool.stride, pool.padding, return_indices=True)
    return channels_last(largest), choice


def _unpooled(grad: Any, choice: Any, size: tuple[int, int]) -> Any:
    """Add each number of grad [b, P', Q', N] to the one of [b, P, Q, N] that was chosen."""
    if choice is None:
        return grad.clone()
    planes = channels_second(grad).flatten(2)
    out = planes.new_zeros((*planes.shape[:2], size[0] * size[1]))
    out.scatter_add_(2, choice.flatten(2), planes)
    return channels_last(out.unflatten(2, size)).contiguous()


def _norm_backward(y: Any, grad: Any, channels: Channels, chunks: Any, *, of_batch: bool) -> Any:
    """Turn the gradient of what leaves a norm into that of y, both [B, P', Q', N], in place; give that of beta."""
    sums = GradientSums(channels, thresholds_of(channels, torch.zeros_like(channels.mean), y.dtype))
    sides = torch.empty(y.shape, dtype=torch.uint8, device=y.device)
    for rows in chunks():
        sides[rows] = sums.add(y[rows], grad[rows])
    for rows in chunks():
        sums.apply(grad[rows], sides[rows], of_batch=of_batch)
    return sums.grad.to(y.dtype)


def _convolution_backward(
    products: _Products, weight: Any, channels: Channels, grad: Any, *, of_batch: bool, needs_input: bool
) -> tuple[Any, Any, Any]:
    """Give the gradients of x, the weights and beta from that of what leaves the first norm and the pool."""
    sums = GradientSums(channels, thresholds_of(channels, torch.zeros_like(channels.mean), products.dtype))
    size, x, g = products.shape[1:3], products.x, products.stem.geometry
    sides = torch.empty(products.shape, dtype=torch.uint8, device=x.device)
    for rows in products.chunks():
        y = products.real(rows)
        sides[rows] = sums.add(y, _unpooled(grad[rows], _pooled(y, products.stem.pool)[1], size))
    grad_x = torch.empty(x.shape, dtype=products.dtype, device=x.device) if needs_input else None
    real = products.weight if products.fixed is None else products.fixed.real(products.dtype)
    grad_weight = None
    for rows in products.chunks():
        choice = _pooled(products.real(rows), products.stem.pool)[1]
        own = sums.apply(_unpooled(grad[rows], choice, size), sides[rows], of_batch=of_batch)
        own = channels_second(own)
        part = x[rows].to(products.dtype)
        found = conv2d_weight(part, weight.shape, own, g.stride, g.padding, g.dilation, g.groups)
        grad_weight = found if grad_weight is None else grad_weight.add_(found)
        if grad_x is not None:
            grad_x[rows] = conv2d_input(part.shape, real, own, g.stride, g.padding, g.dilation, g.groups)
    return grad_x, grad_weight, sums.grad
