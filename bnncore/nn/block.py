"""One block of a network as one function: binary weights, perhaps a max pool, l1 batch norm, and perhaps a sign.

Between forward and backward it keeps what it reads, and two numbers a channel: a bit for each number, if those are
signs, as they are in every layer but the first. The backward pass computes the products again, chunk by chunk of the
batch, and with them the exact gradient of the norm, the mask |x| <= 1 and the arg-max of the pool, none of which is
stored. No map of the products ever exists in float32 as a whole.

Autograd wants a tensor of floats for whatever a gradient flows through. Where blocks hand on bits, that tensor is a
*proxy*: of the right shape, and of one number that all places share. Its type is that of the gradient: float32, or the
16-bit type of automatic mixed precision where that is on.

Letters: B = samples, H, W, C = rows, columns and channels of a map; N = channels of the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bnncore.nn import products as binary
from bnncore.nn.bits import is_signs, pack, pack_codes, unpack, unpack_codes, unpack_mask
from bnncore.nn.channels import Channels, GradientSums, normalise, thresholds_of
from bnncore.nn.maps import channels_last, channels_second
from bnncore.nn.pooling import arg_max, max_pool, unpool
from bnncore.nn.precision import autocast_off, compute_dtype, travel_dtype
from bnncore.nn.products import Geometry, Signs, chunk_bytes
from bnncore.nn.stream import UNITS, add_to_stream

__all__ = ["Block", "Flow", "run_block"]

_MOST_INT16 = 32767
_CODE_BITS = 3
"""What a number of the products is remembered by in a backward pass: the codes of ``GradientSums``."""


@dataclass(frozen=True)
class Flow:
    """What flows between layers: floats [B, C, H, W] or [B, C], or signs in bits behind a proxy of that shape."""

    x: Any
    bits: Any = None

    @classmethod
    def of_signs(cls, x: Any, gradient: str = "clip") -> Flow:
        """Take the sign of floats: two bits a number are kept, for the gradient "approx" 11 of a stream's numbers."""
        return cls(*(_Signs if gradient == "clip" else _ApproxSigns).apply(x))

    def real(self) -> Any:
        """Give floats, whichever it is."""
        return self.x if self.bits is None else _Reals.apply(self.x, self.bits)

    def with_bits(self) -> Flow:
        """Give the same in bits if all of it is +1 or -1."""
        return Flow(*_Bits.apply(self.x)) if self.bits is None and is_signs(self.x) else self

    def flatten(self) -> Flow:
        """Give [B, C x H x W], in PyTorch's order: channel by channel."""
        if self.bits is None or self.x.dim() == 2:
            return Flow(self.x.flatten(1), self.bits)
        channels, height, width = self.x.shape[1:]
        maps = unpack(self.bits, channels * height * width, torch.int8).view(-1, height, width, channels)
        return Flow(self.x.flatten(1), pack(maps.permute(0, 3, 1, 2).flatten(1) < 0))

    def unflatten(self, channels: int) -> Flow:
        """Give [B, C] as maps of one place, [B, C, 1, 1]."""
        return Flow(self.x.unflatten(1, (channels, 1, 1)), self.bits)


@dataclass(frozen=True)
class Block:
    """What a block does, but for its parameters.

    Attributes:
      geometry: of the convolution; None for a linear layer.
      window: rows and columns of the max pool; None: there is none.
      pools_signs: it pools after the sign instead of before the norm.
      is_signed: it ends in a sign.
      limit: what it gives is added to a stream, and is this large at most, in units of it; None: it is not.
    """

    geometry: Geometry | None
    window: tuple[int, int] | None = None
    pools_signs: bool = False
    is_signed: bool = True
    limit: int | None = None


def run_block(block: Block, flow: Flow, weight: Any, norm: Any) -> Flow:
    """Run a block.

    Args:
      block: what to do.
      flow: what it reads.
      weight: latent weights.
      norm: the batch norm module: its ``bias``, its running statistics, its mode.
    """
    flow = flow.with_bits()
    x, bits = _Block.apply(flow.x, flow.bits, weight, norm.bias, block, norm)
    return Flow(x, bits)


class _Input:
    """What a block reads, a slice of samples at a time, with channels last."""

    def __init__(self, x: Any, bits: Any, dtype: Any) -> None:
        self.x, self.bits, self.dtype = x, bits, dtype
        is_map = x.dim() == 4
        self.shape = (*x.shape[2:], x.shape[1]) if is_map else tuple(x.shape[1:])

    def products(self, rows: slice, signs: Signs, geometry: Geometry | None) -> Any:
        """Multiply with the signs of weights: integers where signs are read."""
        if self.bits is not None:
            return binary.sign_products(self.bits[rows], self.shape, signs, geometry)
        return binary.products(self._floats(rows), signs, geometry)

    def floats(self, rows: slice) -> Any:
        return self._unpack(rows, self.dtype) if self.bits is not None else self._floats(rows)

    def _unpack(self, rows: slice, dtype: Any) -> Any:
        return unpack(self.bits[rows], math.prod(self.shape), dtype).unflatten(1, self.shape)

    def _floats(self, rows: slice) -> Any:
        return channels_last(self.x[rows].to(self.dtype))


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, bits: Any, weight: Any, beta: Any, block: Block, norm: Any) -> Any:
        dtype = travel_dtype(x)
        with autocast_off(x):
            source = _Input(x, bits, compute_dtype(x))
            y = _all_products(source, weight, block)
            channels = norm.take_channels(y)
            ctx.block, ctx.uses_batch = block, norm.uses_batch
            ctx.is_affine = beta is not None
            beta = torch.zeros_like(channels.mean) if beta is None else beta
            ctx.save_for_backward(x if bits is None else None, bits, weight, beta, channels.mean, channels.mean_abs_dev)
            ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
            if block.is_signed:
                shape, packed = _all_signs(y, thresholds_of(channels, beta, source.dtype), block)
                return _proxy(x, shape, dtype), packed
            if block.limit is not None:
                y = y.double() if source.dtype == torch.float64 else y
                return channels_second(add_to_stream(y, channels, beta, block.limit)), None
            return channels_second(normalise(y, channels, beta.double(), source.dtype)), None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Any, _: Any) -> Any:
        x, bits, weight, beta, mean, mean_abs_dev = ctx.saved_tensors
        x = _proxy(bits, ctx.x_shape, ctx.x_dtype) if x is None else x
        with autocast_off(x):
            again = _Backward(ctx.block, _Input(x, bits, compute_dtype(x)), weight, beta, Channels(mean, mean_abs_dev))
            grads = again.run(grad_out, uses_batch=ctx.uses_batch, needs_input=ctx.needs_input_grad[0])
        grad_x, grad_weight, grad_beta = grads
        return (
            grad_x,
            None,
            grad_weight.to(weight.dtype),
            grad_beta.to(beta.dtype) if ctx.is_affine else None,
            None,
            None,
        )


class _Backward:
    """The backward pass of a block: once over the batch for the channels' sums, once for the gradients."""

    def __init__(self, block: Block, source: _Input, weight: Any, beta: Any, channels: Channels) -> None:
        self.block, self.source, self.weight, self.channels = block, source, weight, channels
        self.signs = Signs(weight)
        self.thresholds = thresholds_of(channels, beta, source.dtype)
        self.size: tuple[int, int] = (1, 1)
        """Rows and columns of the products."""
        self.normalised: tuple[int, ...] = ()
        self.pooled: tuple[int, ...] = ()
        """Shapes of a sample where it is normalised, and where its windows are."""

    def run(self, grad_out: Any, *, uses_batch: bool, needs_input: bool) -> tuple[Any, Any, Any]:
        """Give the gradients of what was read, the weights and beta."""
        source, geometry = self.source, self.block.geometry
        sums = GradientSums(self.channels, self.thresholds)
        codes = [self._look(rows, grad_out, sums) for rows in _chunks(source, self.weight, geometry)]
        self.signs = Signs(self.weight)  # what the products wanted is not needed again
        grad_weight = grad_x = None
        if needs_input:
            grad_x = grad_out.new_empty((len(grad_out), *source.shape), dtype=source.x.dtype)
        for rows, packed in zip(_chunks(source, self.weight, geometry), _consume(codes), strict=True):
            grad = self._products_gradient(rows, packed, grad_out, sums, uses_batch=uses_batch)
            if grad_x is not None:
                grad_x[rows] = binary.input_gradient(grad, self.signs, source.shape, geometry)
            part = binary.weight_gradient(source.floats(rows), grad, self.weight, geometry)
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
            del grad, part  # not while the next chunk's are made
        return None if grad_x is None else channels_second(grad_x), grad_weight, sums.grad

    def _products_gradient(
        self, rows: slice, packed: list[Any], grad_out: Any, sums: GradientSums, *, uses_batch: bool
    ) -> Any:
        codes, choice = self._unpack(packed)
        grad = self._norm_gradient(grad_out, rows, choice).clone(memory_format=torch.contiguous_format)
        grad = sums.apply(grad, codes, is_masked=self.block.is_signed, of_batch=uses_batch)
        if self.block.window and not self.block.pools_signs:
            grad = unpool(grad, choice, self.block.window, self.size)
        return grad

    def _look(self, rows: slice, grad_out: Any, sums: GradientSums) -> list[Any]:
        """Compute products again, count their gradient in, and give what the second pass needs of them, packed."""
        block, choice = self.block, None
        y = self.source.products(rows, self.signs, block.geometry)
        if y.dim() == 4:
            self.size = (y.shape[1], y.shape[2])
        if block.window and not block.pools_signs:
            y, choice = arg_max(y if y.dtype.is_floating_point else y.to(self.source.dtype), block.window)
        elif block.window:
            _, choice = arg_max(~self.thresholds.is_negative(y), block.window)
        codes = sums.add(y, self._norm_gradient(grad_out, rows, choice), is_masked=block.is_signed)
        self.normalised = codes.shape[1:]
        kept = pack_codes(codes.flatten(1), _CODE_BITS)
        if choice is not None:
            self.pooled = choice.shape[1:]
            kept += pack_codes(choice.flatten(1), self._choice_bits()) if self._choice_bits() <= 8 else [choice]
        return kept

    def _unpack(self, packed: list[Any]) -> tuple[Any, Any]:
        """Give codes and choice of a chunk, None where there is no pool."""
        codes = unpack_codes(packed[:_CODE_BITS], math.prod(self.normalised)).view(-1, *self.normalised)
        choice = None
        if self.block.window:
            choice = packed[_CODE_BITS]
            if self._choice_bits() <= 8:
                choice = unpack_codes(packed[_CODE_BITS:], math.prod(self.pooled))
            choice = choice.view(-1, *self.pooled)
        return codes, choice

    def _choice_bits(self) -> int:
        """Bits that name a place in the window."""
        rows, columns = self.block.window or (1, 1)
        return max(1, (rows * columns - 1).bit_length())

    def _norm_gradient(self, grad_out: Any, rows: slice, choice: Any) -> Any:
        """Give the gradient of what leaves the norm, channels last."""
        grad = channels_last(grad_out[rows].to(self.source.dtype))
        if self.block.window and self.block.pools_signs:
            grad = unpool(grad, choice, self.block.window, self.size)
        return grad


def _consume(items: list[Any]) -> Iterator[Any]:
    """Go through a list and let go of each item when the next is asked for."""
    items.reverse()
    while items:
        yield items.pop()


class _Signs(torch.autograd.Function):
    """The sign of floats, in bits behind a proxy."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(pack((x.abs() <= 1).flatten(1)))
        ctx.shape = x.shape
        return _proxy(x, x.shape), _pack_maps(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return grad * unpack_mask(inside, math.prod(ctx.shape[1:])).view(ctx.shape)


class _ApproxSigns(torch.autograd.Function):
    """The sign of a stream's numbers, in bits behind a proxy, with the gradient of ApproxSign, 2 - 2 |x|."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.shape, kept = x.shape, x
        if x.dtype != torch.float64:
            steps = (x.abs() * UNITS).round_().clamp_(max=UNITS).short().flatten(1)
            kept = torch.stack([pack((steps & (1 << bit)) != 0) for bit in range(UNITS.bit_length())])
        ctx.save_for_backward(kept)
        return _proxy(x, x.shape), _pack_maps(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        (kept,) = ctx.saved_tensors
        if kept.is_floating_point():
            return grad * (2 - 2 * kept.abs()).clamp_(min=0)
        steps: Any = None
        for bit, plane in enumerate(kept):
            part = unpack_mask(plane, math.prod(ctx.shape[1:])).short() * (1 << bit)
            steps = part if steps is None else steps.add_(part)
        return grad * (UNITS - steps).to(grad.dtype).mul_(2 / UNITS).view(ctx.shape)


class _Bits(torch.autograd.Function):
    """Signs that are there as floats, in bits behind a proxy; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return _proxy(x, x.shape), _pack_maps(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        return grad


class _Reals(torch.autograd.Function):
    """Signs as floats, from bits behind a proxy; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Any, bits: Any) -> Any:
        source = _Input(x, bits, x.dtype)
        return channels_second(source.floats(slice(None)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        return grad, None


def _all_products(source: _Input, weight: Any, block: Block) -> Any:
    """Give what is normalised, [B, rows, columns, N] or [B, N]: in 16 bits where it is whole and fits."""
    y, signs = None, Signs(weight)
    for rows in _chunks(source, weight, block.geometry):
        part = source.products(rows, signs, block.geometry)
        if block.window and not block.pools_signs:
            part = max_pool(part, block.window)
        if y is None:
            fits = source.bits is not None and math.prod(weight.shape[1:]) <= _MOST_INT16
            y = part.new_empty((len(source.x), *part.shape[1:]), dtype=torch.int16 if fits else source.dtype)
        y[rows] = part
    return y


def _all_signs(y: Any, thresholds: Any, block: Block) -> tuple[tuple[int, ...], Any]:
    """Give the shape and the bits of what leaves a block."""
    parts: list[Any] = []
    shape: tuple[int, ...] = ()
    per_sample = max(1, math.prod(y.shape[1:]))
    step = max(1, chunk_bytes(y.device.type) // (4 * per_sample))
    for first in range(0, len(y), step):
        negative = thresholds.is_negative(y[first : first + step])
        if block.window and block.pools_signs:
            negative = max_pool(negative.logical_not_(), block.window).logical_not_()
        shape = negative.shape[1:]
        parts.append(pack(negative.flatten(1)))
    return (len(y), shape[-1], *shape[:-1]), torch.cat(parts)


def _chunks(source: _Input, weight: Any, geometry: Geometry | None) -> Iterator[slice]:
    """Cut the batch so that what a chunk reads, its products and their gradient stay small as floats."""
    places = 1
    if geometry is not None:
        places = math.prod(geometry.out_size((source.shape[0], source.shape[1]), tuple(weight.shape[2:])))
    needs = max(4 * (math.prod(source.shape) + 2 * places * len(weight)), 1)
    # Each chunk adds to the gradient of all weights, which should not become the work: many weights, large chunks.
    step = max(1, max(chunk_bytes(source.x.device.type), weight.numel()) // needs)
    for first in range(0, len(source.x), step):
        yield slice(first, min(first + step, len(source.x)))


def _proxy(x: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    return torch.zeros((), dtype=dtype or travel_dtype(x), device=x.device).expand(shape)


def _pack_maps(x: Any) -> Any:
    return pack(channels_last(x).reshape(len(x), -1) < 0)
