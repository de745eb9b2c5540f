"""Algorithms 1 and 2 of arXiv 2102.04270 in plain PyTorch, float32 throughout: the oracle of all other layers here.

Algorithm 1 (Courbariaux and Bengio) is what StandardNetwork does unless it is told otherwise. A block computes
``X' = norm(pool(sign(X) * sign(W))) + beta`` and hands on its sign, as the preset ``standard`` of the native engine
does; the last one hands its numbers to softmax and cross-entropy. The gradient passes a sign unchanged where
``|x| <= 1`` and is 0 elsewhere. Latent weights are clipped to [-1, 1] after every step, so for them the rule always
passes.

It is written to be fast in PyTorch: one pass over memory for a sign and one for its gradient, batch norm and loss by
their native kernels. The other norms are written to be read: they are formulas, and PyTorch finds their gradient.

========  ==========================================================================================================
norm      what a block does differently
========  ==========================================================================================================
l2        nothing: Algorithm 1
l1        divides by the mean absolute deviation; the gradient is exact, as the native engine's and bnncore.nn's is
paper     Algorithm 2: the same, and its gradient is that of the article, which knows of X but its sign and mean
          magnitude; the gradient of the weights is its sign
========  ==========================================================================================================
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bnncore.blocks import Block
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32

__all__ = ["EPSILON", "MOMENTUM", "NormKind", "StandardNetwork", "clipped_sign", "l1_norm", "weight_sign"]

NormKind = Literal["l2", "l1", "paper"]

MOMENTUM = 0.1
"""Share of the newest batch in the running statistics."""
EPSILON = 1e-5
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


def clipped_sign(x: Any, one: Any) -> Any:
    """Give sign(x), sign(0) = +1, whose gradient passes where |x| <= 1; ``one`` is a 1 of x's type."""
    return _ActivationSign.apply(x, one)


def weight_sign(w: Any, one: Any) -> Any:
    """Give sign(w) of weights in [-1, 1], whose gradient always passes."""
    return _WeightSign.apply(w, one)


def l1_norm(rows: Any, beta: Any) -> Any:
    """l1 batch norm of y [J, N] with beta [N]; a channel without deviation gives beta and no gradient."""
    centred = rows - rows.mean(0)
    psi = centred.abs().mean(0)
    alive = psi > 0
    return torch.where(alive, centred / torch.where(alive, psi, 1), 0) + beta


class _SignGradient(torch.autograd.Function):
    """Weights as they are; of their gradient, the sign."""

    @staticmethod
    def forward(ctx: Any, w: Any) -> Any:
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return torch.where(grad < 0, -1.0, 1.0).to(grad.dtype)


class _PaperNorm(torch.autograd.Function):
    """l1 batch norm of y [J, N] with beta [N] and the gradient of Algorithm 2, in which x is sgn(x) times mean |x|."""

    @staticmethod
    def forward(ctx: Any, y: Any, beta: Any) -> Any:
        centred = y - y.mean(0)
        psi = centred.abs().mean(0)
        x = centred / psi + beta
        ctx.save_for_backward(torch.where(x < 0, -1.0, 1.0).to(x.dtype), psi, x.abs().mean(0))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        signs, psi, omega = ctx.saved_tensors
        v = grad / psi
        return v - v.mean(0) - signs * (v * signs * omega).mean(0), grad.sum(0)


class _StandardBlock(nn.Module):
    """Weights, perhaps a pool, batch norm with beta alone, and a sign unless it is the last."""

    running_mean: Any
    running_var: Any
    one: Any

    def __init__(self, block: Block, norm: NormKind) -> None:
        super().__init__()
        self.block, self.norm = block, norm
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
        weight = weight_sign(_SignGradient.apply(self.weight) if self.norm == "paper" else self.weight, self.one)
        if block.is_conv:
            x = functional.conv2d(x, weight, stride=block.stride, padding=(block.pad_height, block.pad_width))
        else:
            if x.dim() > 2:  # in the order of a spec: height, width, channels
                x = x.permute(0, 2, 3, 1).flatten(1)
            x = functional.linear(x, weight)
        window = (block.pool_height, block.pool_width)
        if block.pool == "before_norm":
            x = functional.max_pool2d(x, window)
        x = self._normalise(x)
        if not block.is_last:
            x = clipped_sign(x, self.one)
        if block.pool == "after_sign":
            x = functional.max_pool2d(x, window)
        return x

    def _normalise(self, y: Any) -> Any:
        if self.norm == "l2":
            return functional.batch_norm(
                y, self.running_mean, self.running_var, None, self.beta, self.training, MOMENTUM, EPSILON
            )
        rows = y.movedim(1, -1).flatten(0, -2)
        x = _PaperNorm.apply(rows, self.beta) if self.norm == "paper" else l1_norm(rows, self.beta)
        return x.view(y.movedim(1, -1).shape).movedim(-1, 1)


class StandardNetwork(nn.Module):
    """A network of a spec.

    Args:
      spec: a chain of binary blocks; ``bnncore.nn.standard_residual`` has the residual networks.
      norm: which batch norm and whose gradient. Under l1 and paper it trains only: there are no running statistics.

    ``forward`` takes what ``bnncore.nn.trainer.prepare`` gives and gives the logits, float32 [batch, classes].
    """

    def __init__(self, spec: ModelSpec, norm: NormKind = "l2") -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(_StandardBlock(block, norm) for block in spec.blocks)

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
