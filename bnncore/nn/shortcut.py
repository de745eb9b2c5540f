"""What becomes of a residual network's stream where its map changes, and at its end.

A shortcut is one function: perhaps an average pool, a real 1 x 1 convolution, l1 batch norm. It keeps the pooled map,
in 16 bits, and two numbers a channel. ``channel_means`` takes the mean of each channel, perhaps of its positive numbers
alone, and keeps a bit a number, or nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bnncore.nn.bits import pack, unpack_mask
from bnncore.nn.channels import Channels, GradientSums, thresholds_of
from bnncore.nn.maps import channels_last, channels_second
from bnncore.nn.precision import autocast_off, compute_dtype
from bnncore.nn.stream import LARGEST, UNITS, Fixed, add_to_stream, average_pool, fix

__all__ = ["channel_means", "run_shortcut"]

_BITS = 20
_LARGEST_GRADIENT, _LARGEST_TERM = 127, 256
"""Of the engine's 8-bit gradients, and of the parts in which it multiplies the stream: both bound its weights."""


def run_shortcut(s: Any, window: tuple[int, int], weight: Any, norm: Any, limit: int) -> Any:
    """Run a shortcut on a stream.

    Args:
      s: [B, C, H, W].
      window: of the average pool; (1, 1): there is none.
      weight: [N, C, 1, 1].
      norm: its batch norm module.
      limit: largest magnitude of what it gives, in units of the stream.
    """
    return _Shortcut.apply(s, weight, norm.bias, window, norm, limit)


def channel_means(s: Any, *, is_positive: bool) -> Any:
    """Give the mean of each channel of s, [B, C, H, W] -> [B, C, 1, 1], of max(s, 0) if asked for."""
    return _Means.apply(s, is_positive)


class _Shortcut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Any, weight: Any, beta: Any, window: tuple[int, int], norm: Any, limit: int) -> Any:
        with autocast_off(s):
            s = s.to(compute_dtype(s))
            pooled = channels_last(average_pool(s, window)).contiguous()
            fixed = _fix(weight, s.dtype)
            y = _products(pooled, weight, fixed)
            channels = norm.take_channels(y)
            kept = pooled
            if fixed is not None and float(pooled.abs().max()) * UNITS <= LARGEST:
                kept = pooled.mul_(UNITS).short()
            ctx.save_for_backward(kept, weight, channels.mean, channels.mean_abs_dev)
            ctx.window, ctx.shape, ctx.uses_batch, ctx.beta_dtype = window, s.shape, norm.uses_batch, beta.dtype
            return channels_second(add_to_stream(y, channels, beta, limit))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Any) -> Any:
        pooled, weight, mean, mean_abs_dev = ctx.saved_tensors
        with autocast_off(grad_out):
            dtype = compute_dtype(weight) if pooled.dtype == torch.int16 else pooled.dtype
            pooled = pooled.to(dtype).div_(UNITS) if pooled.dtype == torch.int16 else pooled
            fixed, channels = _fix(weight, dtype), Channels(mean, mean_abs_dev)
            y = _products(pooled, weight, fixed)
            own = channels_last(grad_out.to(dtype)).clone(memory_format=torch.contiguous_format)
            sums = GradientSums(channels, thresholds_of(channels, torch.zeros_like(mean), dtype))
            sides = sums.add(y, own)
            rows = sums.apply(own, sides, of_batch=ctx.uses_batch).flatten(0, -2)
            grad_weight = (rows.t() @ pooled.flatten(0, -2)).view(weight.shape)
            real = weight.to(dtype) if fixed is None else fixed.real(dtype)
            grad_pooled = channels_second((rows @ real.flatten(1)).view(pooled.shape))
            grad_s = _spread(grad_pooled, ctx.window, ctx.shape)
        return grad_s, grad_weight.to(weight.dtype), sums.grad.to(ctx.beta_dtype), None, None, None


def _fix(weight: Any, dtype: Any) -> Fixed | None:
    if dtype == torch.float64:
        return None
    most = max(_LARGEST_GRADIENT * weight.shape[0], _LARGEST_TERM * weight.shape[1])
    return fix(weight, largest_input=LARGEST, most=most, bits=_BITS)


def _products(pooled: Any, weight: Any, fixed: Fixed | None) -> Any:
    """Multiply [B, P, Q, C] with weights [N, C, 1, 1]."""
    if fixed is None:
        return pooled @ weight.to(pooled.dtype).flatten(1).t()
    return fixed.cut((pooled.double() * UNITS) @ fixed.integers.flatten(1).t(), UNITS)


def _spread(grad: Any, window: tuple[int, int], shape: tuple[int, ...]) -> Any:
    """Give each number of grad [B, C, P, Q] to its window of a map of this shape, in equal parts."""
    if window == (1, 1):
        return grad
    parts = (grad / (window[0] * window[1])).repeat_interleave(window[0], 2).repeat_interleave(window[1], 3)
    if parts.shape == shape:
        return parts
    out = grad.new_zeros(shape)
    out[:, :, : parts.shape[2], : parts.shape[3]] = parts
    return out


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Any, is_positive: bool) -> Any:
        ctx.shape = s.shape
        ctx.save_for_backward(pack((s > 0).flatten(1)) if is_positive else None)
        positive = s.clamp(min=0) if is_positive else s
        count = s.shape[2] * s.shape[3]
        if s.dtype == torch.float64:
            return positive.mean((2, 3), keepdim=True)
        # In the engine's order: whole units of the stream, and one product.
        return positive.sum((2, 3), keepdim=True).mul_(UNITS).mul_(1 / (UNITS * count))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        (positive,) = ctx.saved_tensors
        grad = (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)
        if positive is not None:
            grad = grad * unpack_mask(positive, ctx.shape[1:].numel()).view(ctx.shape)
        return grad, None
