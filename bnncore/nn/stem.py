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

_LARGEST_SAMPLE, _BITS, _LOW_BITS = 255, 14, 7
_MOST_FLOAT = 1 << 24
"""Whole numbers up to here float32 holds exactly."""


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
        self.weight = weight.to(self.dtype) if self.fixed is None else _halves(self.fixed.integers)
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
            x = x * self.units
        y = channels_last(functional.conv2d(x, self.weight, None, g.stride, g.padding, g.dilation, g.groups))
        if self.fixed is None:
            return y
        high, low = y.round().int().chunk(2, dim=-1)
        return (high << _LOW_BITS).add_(low) >> self.fixed.shift


def _halves(integers: Any) -> Any:
    """Give whole weights as their high bits and their low ones, one behind the other: [2 N, ...].

    The sums of either fit float32, unless a kernel reads more numbers than any stem does: then they are float64.
    """
    high = (integers * 2.0**-_LOW_BITS).floor_()
    halves = torch.cat((high, integers - high * 2**_LOW_BITS))
    fits = _LARGEST_SAMPLE * 2**_LOW_BITS * integers[0].numel() < _MOST_FLOAT
    return halves.float() if fits else halves


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, beta: Any, second_beta: Any, stem: Stem, norm: Any, second_norm: Any
    ) -> Any:
        with autocast_off(x):
            products = _Products(x, weight, stem)
            channels = norm.take_channels(products.y, scale=products.scale)
            inner, _ = _all_inner(products, channels, beta, LARGEST if second_norm is not None else stem.limit)
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
            inner, choice = _all_inner(products, channels, beta, LARGEST if has_second else ctx.stem.limit)
            if has_second:
                second = Channels(second_mean, second_mean_abs_dev)
                grad_second = _norm_backward(inner, grad, second, products.chunks, of_batch=of_batch)
            if ctx.stem.has_relu:
                grad.mul_(inner > 0)
            del inner
            grad_x, grad_weight, grad_beta = _convolution_backward(
                products, weight, channels, grad, choice, of_batch=of_batch, needs_input=ctx.needs_input_grad[0]
            )
        return grad_x, grad_weight.to(weight.dtype), grad_beta.to(beta.dtype), grad_second, None, None, None


def _all_inner(products: _Products, channels: Channels, beta: Any, limit: int) -> tuple[Any, Any]:
    """Give what stands before the second norm, [B, P', Q', N], and what the pool chose.

    The pool comes first: norm and ReLU are increasing.
    """
    inner = choice = None
    is_small = products.shape[1] * products.shape[2] <= torch.iinfo(torch.int16).max
    for rows in products.chunks():
        y, chosen = _pooled(products.real(rows), products.stem.pool)
        part = add_to_stream(y, channels, beta, limit, is_positive=products.stem.has_relu)
        if inner is None:
            inner = part.new_empty((len(products.x), *part.shape[1:]))
            if chosen is not None:
                choice = torch.empty(inner.shape, dtype=torch.int16 if is_small else torch.int32, device=part.device)
        inner[rows] = part
        if choice is not None:
            choice[rows] = chosen
    return inner, choice


def _pooled(y: Any, pool: Pool | None) -> tuple[Any, Any]:
    """Give the largest of each window and where it stands in the map, channels last; of equal ones, the first."""
    if pool is None:
        return y, None
    largest, choice = functional.max_pool2d(
        channels_second(y), pool.window, pool.stride, pool.padding, return_indices=True
    )
    return channels_last(largest), channels_last(choice)


def _unpooled(grad: Any, choice: Any, y: Any, pool: Pool | None) -> Any:
    """Add each number of grad [b, P', Q', N] to the one of y [b, P, Q, N] that was chosen."""
    if pool is None:
        return grad.clone()
    options = (pool.window, pool.stride, pool.padding, (1, 1), False)
    planes = channels_second(grad), channels_second(y)
    found = torch.ops.aten.max_pool2d_with_indices_backward(*planes, *options, channels_second(choice.long()))
    return channels_last(found).contiguous()


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
    products: _Products, weight: Any, channels: Channels, grad: Any, choice: Any, *, of_batch: bool, needs_input: bool
) -> tuple[Any, Any, Any]:
    """Give the gradients of x, the weights and beta from that of what leaves the first norm and the pool."""
    sums = GradientSums(channels, thresholds_of(channels, torch.zeros_like(channels.mean), products.dtype))
    x, g, pool = products.x, products.stem.geometry, products.stem.pool
    sides = torch.empty(products.shape, dtype=torch.uint8, device=x.device)
    for rows in products.chunks():
        y = products.real(rows)
        sides[rows] = sums.add(y, _unpooled(grad[rows], choice if choice is None else choice[rows], y, pool))
    grad_x = torch.empty(x.shape, dtype=products.dtype, device=x.device) if needs_input else None
    real = weight.to(products.dtype) if products.fixed is None else products.fixed.real(products.dtype)
    grad_weight = None
    for rows in products.chunks():
        chosen = choice if choice is None else choice[rows]
        own = _unpooled(grad[rows], chosen, products.real(rows), pool)
        own = channels_second(sums.apply(own, sides[rows], of_batch=of_batch))
        part = x[rows].to(products.dtype)
        found = conv2d_weight(part, weight.shape, own, g.stride, g.padding, g.dilation, g.groups)
        grad_weight = found if grad_weight is None else grad_weight.add_(found)
        if grad_x is not None:
            grad_x[rows] = conv2d_input(part.shape, real, own, g.stride, g.padding, g.dilation, g.groups)
    return grad_x, grad_weight, sums.grad
