"""The standard algorithm in PyTorch: Algorithm 1 of arXiv 2102.04270 (Courbariaux and Bengio), float32 throughout.

A block computes ``X' = norm(pool(sign(X) * sign(W))) + beta`` and hands on its sign, as the preset ``standard`` of the
native engine does; the last one hands its numbers to softmax and cross-entropy. The gradient passes a sign unchanged
where ``|x| <= 1`` and is 0 elsewhere. Latent weights are clipped to [-1, 1] after every step, so for them the rule
always passes.

It is written to be fast in PyTorch: one pass over memory for a sign and one for its gradient, batch norm and loss by
their native kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bnncore.blocks import Block
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32

__all__ = ["StandardNetwork"]

_MOMENTUM = 0.1
"""Share of the newest batch in the running statistics."""
_EPSILON = 1e-5
"""Addend to the variance. Products of +-1 have variances of about their number, so it only guards against 0."""
_LIMIT = float(np.nextafter(np.float32(1), np.float32(2)))
"""hardtanh's gradient is 0 at its limits; ours passes at +-1, so the limit is the next float32."""


class _ActivationSign(torch.autograd.Function):
    """sign(x) with sign(0) = +1; the gradient passes where |x| <= 1."""

    @staticmethod
    def forward(ctx: Any, x: Any, one: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.copysign(one, x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, -_LIMIT, _LIMIT), None


class _WeightSign(torch.autograd.Function):
    """sign(w) of weights in [-1, 1], where the gradient always passes."""

    @staticmethod
    def forward(ctx: Any, w: Any, one: Any) -> Any:
        return torch.copysign(one, w)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad, None


class _StandardBlock(nn.Module):
    """Weights, perhaps a pool, batch norm with beta alone, and a sign unless it is the last."""

    running_mean: Any
    running_var: Any
    one: Any

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        shape: tuple[int, ...] = (block.out_channels, block.fan_in)
        if block.is_conv:
            shape = (block.out_channels, block.in_channels, block.kernel_height, block.kernel_width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.beta = nn.Parameter(torch.zeros(block.out_channels))
        self.register_buffer("running_mean", torch.zeros(block.out_channels))
        self.register_buffer("running_var", torch.ones(block.out_channels))
        self.register_buffer("one", torch.ones(()), persistent=False)
        nn.init.normal_(self.weight, std=block.fan_in**-0.5)
        self.clip_weights()

    def clip_weights(self) -> None:
        """Bring the latent weights back into [-1, 1]."""
        with torch.no_grad():
            self.weight.clamp_(-1.0, 1.0)

    def forward(self, x: Any) -> Any:
        block = self.block
        weight = _WeightSign.apply(self.weight, self.one)
        if block.is_conv:
            x = functional.conv2d(x, weight, stride=block.stride, padding=(block.pad_height, block.pad_width))
        else:
            if x.dim() > 2:  # in the order of a spec: height, width, channels
                x = x.permute(0, 2, 3, 1).flatten(1)
            x = functional.linear(x, weight)
        window = (block.pool_height, block.pool_width)
        if block.pool == "before_norm":
            x = functional.max_pool2d(x, window)
        x = functional.batch_norm(
            x, self.running_mean, self.running_var, None, self.beta, self.training, _MOMENTUM, _EPSILON
        )
        if not block.is_last:
            x = _ActivationSign.apply(x, self.one)
        if block.pool == "after_sign":
            x = functional.max_pool2d(x, window)
        return x


class StandardNetwork(nn.Module):
    """A network of a spec.

    Args:
      spec: any that the native engine takes.

    ``forward`` takes what ``bnncore.nn.trainer.prepare`` gives and gives the logits, float32 [batch, classes].
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(_StandardBlock(block) for block in spec.blocks)

    def forward(self, x: Any) -> Any:
        """Give the logits."""
        for block in self.blocks:
            x = block(x)
        return x

    def loss(self, x: Any, labels: Any) -> Any:
        """Mean cross-entropy, in nats."""
        return functional.cross_entropy(self(x), labels)

    def clip_weights(self) -> None:
        """Bring the latent weights back into [-1, 1]; belongs after every step."""
        for block in self.blocks:
            block.clip_weights()

    def load_state(self, state: State) -> None:
        """Take weights and beta from a state of the same spec (see ``bnncore.Engine.state``)."""
        with torch.no_grad():
            for module, block in zip(self.blocks, self.spec.blocks, strict=True):
                weight = torch.from_numpy(to_float32(state[f"{block.linear}.weight"]).copy())
                module.weight.copy_(weight.permute(0, 3, 1, 2) if block.is_conv else weight)
                module.beta.copy_(torch.from_numpy(state[f"{block.norm}.beta"].copy()))
