"""What the layers compute when each stands alone, with gradients; ``bnncore.nn.block`` runs them together.

Channels stand second here, as everywhere in PyTorch. What is kept for the backward pass: of a product, what it read
(bits, if all of it is +1 or -1); of a sign, one bit a number that says whether |x| <= 1, or x where the gradient is
"approx"; of a norm, its input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bnncore.nn import products as binary
from bnncore.nn.bits import is_signs, pack, unpack, unpack_mask
from bnncore.nn.channels import Channels, GradientSums, normalise, thresholds_of
from bnncore.nn.maps import channels_last, channels_second
from bnncore.nn.precision import autocast_off, compute_dtype
from bnncore.nn.products import Geometry, Signs

__all__ = ["binary_products", "l1_batch_norm", "sign"]


def sign(x: Any, gradient: str = "clip") -> Any:
    """Give +1 where x is not negative and -1 elsewhere; "clip" passes the gradient where |x| <= 1.

    "approx" multiplies it with max(0, 2 - 2 |x|).
    """
    return _Sign.apply(x) if gradient == "clip" else _ApproxSign.apply(x)


def binary_products(x: Any, weight: Any, geometry: Geometry | None) -> Any:
    """Multiply with the signs of latent weights, whose gradient is that of their signs.

    Args:
      x: [B, C, H, W]; [..., K] for a linear layer.
      weight: [N, C / groups, kernel height, kernel width] or [N, K].
      geometry: of the convolution; None for a linear layer.
    """
    if geometry is None and x.dim() != 2:
        return _Products.apply(x.reshape(-1, x.shape[-1]), weight, None).view(*x.shape[:-1], -1)
    return _Products.apply(x, weight, geometry)


def l1_batch_norm(y: Any, norm: Any) -> Any:
    """Normalise y [B, N, ...] as a module says: ``(y - mu) / (psi + eps) + beta``, by the batch or what it tracked."""
    return _Norm.apply(y, norm.bias, norm)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(pack((x.abs() <= 1).reshape(1, -1)))
        return torch.where(x < 0, -torch.ones((), dtype=x.dtype, device=x.device), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return grad * unpack_mask(inside, grad.numel()).view(grad.shape)


class _ApproxSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -torch.ones((), dtype=x.dtype, device=x.device), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * (2 - 2 * x.abs()).clamp_(min=0)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, geometry: Geometry | None) -> Any:
        with autocast_off(x):
            last = channels_last(x)
            ctx.geometry, ctx.shape, ctx.dtype = geometry, last.shape, compute_dtype(x)
            ctx.is_packed = is_signs(x)
            if ctx.is_packed:
                bits = pack((last < 0).reshape(len(x), -1))
                ctx.save_for_backward(bits, weight)
                y = binary.sign_products(bits, tuple(last.shape[1:]), Signs(weight), geometry).to(ctx.dtype)
            else:
                ctx.save_for_backward(x, weight)
                y = binary.products(last.to(ctx.dtype), Signs(weight), geometry)
            return channels_second(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        kept, weight = ctx.saved_tensors
        with autocast_off(grad):
            grad = channels_last(grad.to(ctx.dtype))
            grad_x = grad_weight = None
            if ctx.needs_input_grad[0]:
                grad_x = channels_second(binary.input_gradient(grad, Signs(weight), ctx.shape[1:], ctx.geometry))
            if ctx.needs_input_grad[1]:
                x = channels_last(kept)
                if ctx.is_packed:
                    x = unpack(kept, math.prod(ctx.shape[1:]), ctx.dtype).view(ctx.shape)
                grad_weight = binary.weight_gradient(x.to(ctx.dtype), grad, weight, ctx.geometry).to(weight.dtype)
            return grad_x, grad_weight, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Any, beta: Any, norm: Any) -> Any:
        with autocast_off(y):
            last = y.movedim(1, -1)
            ctx.uses_batch, ctx.dtype = norm.uses_batch, compute_dtype(y)
            channels = norm.take_channels(last)
            ctx.save_for_backward(y, channels.mean, channels.mean_abs_dev)
            ctx.beta_dtype = None if beta is None else beta.dtype
            shift = torch.zeros_like(channels.mean) if beta is None else beta.double()
            return normalise(last, channels, shift, ctx.dtype).movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        y, mean, mean_abs_dev = ctx.saved_tensors
        with autocast_off(grad):
            channels = Channels(mean, mean_abs_dev)
            last = y.movedim(1, -1).to(ctx.dtype).contiguous()
            own = grad.movedim(1, -1).to(ctx.dtype).clone(memory_format=torch.contiguous_format)
            sums = GradientSums(channels, thresholds_of(channels, torch.zeros_like(mean), ctx.dtype))
            sides = sums.add(last, own)
            grad_beta = None if ctx.beta_dtype is None else sums.grad.to(ctx.beta_dtype)
            return sums.apply(own, sides, of_batch=ctx.uses_batch).movedim(-1, 1), grad_beta, None
